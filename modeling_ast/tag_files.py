"""All audio files of a folder -> a row each in a .jsonl or Parquet file; a killed run goes on.

The .jsonl is the journal of a run: each result is appended as it comes, so that the same call goes
on where a killed one was, and later tags the files that are new. The Parquet file is written from
it at the end, whole or not at all.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from .tagging import AudioTagger, ClipTags

# Windows has other locks; there, two runs at once are not told apart.
if sys.platform != "win32":
    import fcntl

PARQUET_ROWS = 10_000
ROW_FIELDS = {"file", "seconds", "labels", "error", "model"}
# What decides the scores of a row beside the model, and the flag that sets it.
SETTINGS = {"padding": "--padding {}", "scores": "--scores {}", "dtype": "the same --dtype ({})"}


class Journal:
    """The .jsonl: a line for each finished file, appended at once, so that a kill loses none.

    Args:
        path: Of the file, which may be that of an earlier run.
        model: Name of the model, which is written into each row.
    Raises:
        ValueError: Another process is writing the file, it holds something else, or rows of
            another model.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path, model: str):
        self.path = path
        self.model = model
        # What else decides the scores of a row, as the rows that are there say it.
        self.settings: dict[str, str] = {}
        self.num_bad = 0
        self.seconds = 0.0
        self.done: set[str] = set()
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file; give another --output")
        # Unbuffered: what a full disk did not take must not be written later, behind other lines.
        self.file = path.open("ab", buffering=0)
        self._lock()
        # Kept open: to close any handle of a file gives up the lock on it.
        self.lines = path.open("rb")
        # A kill in the middle of a line: that file is not done.
        self.file.truncate(self._read())

    def _lock(self) -> None:
        """Refuses a file to which another run is writing; the lock ends with this process."""
        if sys.platform == "win32":
            return
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError("another process is writing it; wait for it, or stop it") from None
            raise

    def _read(self) -> int:
        """Takes the finished files over; returns where the last whole line ends."""
        end = 0
        for number, line in enumerate(self.lines, 1):
            if not line.endswith(b"\n") and _is_torn_row(line):
                break
            row = _row(line)
            if row is None:
                raise ValueError(f"line {number} of {self.path} is no row of this command")
            if row["model"] != self.model:
                raise ValueError(
                    f"{self.path} has the tags of the model {row['model']!r}; give another --output"
                )
            self.settings = {name: row[name] for name in SETTINGS if row.get(name)}
            # Rows of version 0.1 say none of them: it always padded to the longest.
            self.settings.setdefault("padding", "longest")
            self._count(row)
            end += len(line)
        return end

    def use(self, **settings: str) -> None:
        """Says with which of `SETTINGS` the next rows are scored.

        Raises:
            ValueError: The rows that are there have another one, which gives other scores.
        """
        for name, value in settings.items():
            before = self.settings.get(name, value)
            if before != value:
                raise ValueError(
                    f"{self.path} has tags with {name} {before!r}, not {value!r}; give another "
                    f"--output, or {SETTINGS[name].format(before)}"
                )
        self.settings |= settings

    def add(self, name: str, tags: ClipTags) -> None:
        """Writes one result."""
        labels = [{"label": label, "score": score} for label, score in tags.labels.items()]
        row = {
            "file": name,
            "seconds": tags.seconds,
            "labels": labels,
            "error": tags.error,
            "model": self.model,
            **self.settings,
        }
        # In ASCII: file names need not be valid Unicode.
        line = json.dumps(row).encode() + b"\n"
        # A file that was removed would take all further rows, and nobody could read them.
        if not self.path.exists() or not os.path.samestat(
            os.stat(self.path), os.fstat(self.file.fileno())
        ):
            raise FileNotFoundError(
                errno.ENOENT, "it was removed or replaced while it was written", str(self.path)
            )
        if self.file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._count(row)

    def _count(self, row: dict) -> None:
        self.done.add(row["file"])
        self.num_bad += row["error"] is not None
        self.seconds += row["seconds"] or 0.0


def _is_torn_row(line: bytes) -> bool:
    """Whether a last line may be cut off: what is not ours must not be."""
    begin = b'{"file": "'
    return line[: len(begin)] == begin[: len(line)]


def _row(line: bytes) -> dict | None:
    """A line of the journal, or None if it is something else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.keys() >= ROW_FIELDS else None


def tag_files(tagger: AudioTagger, folder: Path, files: Sequence[str], journal: Journal) -> None:
    """Tags the files that are not in the journal yet, with a progress bar.

    Args:
        files: Relative to `folder`, as `audio_files.audio_files` gives them.
    """
    missing = [name for name in files if name not in journal.done]
    results = tagger(folder / name for name in missing)
    begin, before = time.monotonic(), journal.seconds
    with tqdm(total=len(files), initial=len(files) - len(missing), unit="file") as bar:
        for name, tags in zip(missing, results):
            journal.add(name, tags)
            hours = (journal.seconds - before) / 3600
            minutes = max(time.monotonic() - begin, 1e-9) / 60
            bar.set_postfix_str(f"{hours / minutes:.2f} audio-h/min", refresh=False)
            bar.update()


def write_parquet(journal: Path, target: Path) -> None:
    """The journal as one Parquet file, which appears when it is whole."""
    import pyarrow as pa
    from pyarrow import parquet

    label = pa.struct([("label", pa.string()), ("score", pa.float32())])
    schema = pa.schema(
        [
            ("file", pa.string()),
            ("seconds", pa.float64()),
            ("labels", pa.list_(label)),
            ("error", pa.string()),
            ("model", pa.string()),
            *((name, pa.string()) for name in SETTINGS),
        ]
    )
    partial = target.with_name(target.name + ".partial")
    try:
        with journal.open("rb") as lines, parquet.ParquetWriter(partial, schema) as writer:
            all_rows = map(_valid, filter(None, map(_row, lines)))
            while rows := list(islice(all_rows, PARQUET_ROWS)):
                writer.write_table(pa.Table.from_pylist(rows, schema))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _valid(row: dict) -> dict:
    """Parquet's strings are Unicode; file names of other kinds get a replacement character, labels
    an escape."""
    texts = {
        name: row[name].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name in ("file", "error")
        if row[name] is not None
    }
    labels = [
        entry | {"label": entry["label"].encode("utf-8", "backslashreplace").decode()}
        for entry in row["labels"]
    ]
    return {"padding": "longest", **row, **texts, "labels": labels}


__all__ = ["Journal", "tag_files", "write_parquet"]
