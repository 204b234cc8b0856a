"""Tags every audio file of a folder, and of the folders in it.

    python examples/tag_folder.py MODEL FOLDER --output tags.parquet [--top-k 5] [--dtype bfloat16]

MODEL is an AST on the Hub (MIT/ast-finetuned-audioset-10-10-0.4593) or a directory. The output has
a row for each file: file (relative to FOLDER), seconds, labels with scores, error, model. It is
.jsonl, to which each result is appended as it comes, or .parquet, which is written at the end from
such a .jsonl beside it. Killed and started again, the command goes on where it was; started again
when done, it tags the files that are new. A bad file is a row with the reason (delete the row from
the .jsonl to have the file tried again); the exit status is then 1. Links to folders are not
followed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from importlib import import_module
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from modeling_ast import AudioTagger, ClipTags, quantize_int8

try:
    import fcntl
except ImportError:  # Windows has other locks; there, two runs at once are not told apart
    fcntl = None

# What holds audio by its name. libsndfile cannot decode the last four: they become rows that say
# so, and are not passed over in silence.
AUDIO = "wav flac ogg oga opus mp3 aif aiff aifc au caf w64 m4a aac wma webm"
SUFFIXES = {f".{name}" for name in AUDIO.split()}
PARQUET_ROWS = 10_000
ON_CPU = (None, "cpu")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line and refuses what cannot work, before hours of work."""
    parser = argparse.ArgumentParser(
        description="Tag every audio file of a folder with an AST checkpoint.",
        epilog="Killed and started again, the command goes on where it was.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint on the Hub, or a directory")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="searched with all in it")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="tags.parquet or tags.jsonl"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels kept (5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; a GPU if there is one")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights; auto: the checkpoint's (a GPU is many times faster with bfloat16)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="on a CPU: 8-bit integers in the linear layers, faster, scores a little off",
    )
    parser.add_argument(
        "--batch-frames",
        type=int,
        metavar="N",
        help="frames of 10 ms in a batch (1024 on a CPU, 32768 on a GPU); fewer take less memory",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode (half the CPUs, at most 8)"
    )
    options = parser.parse_args(arguments)
    if options.top_k < 1:
        parser.error(f"--top-k is {options.top_k}; give at least 1")
    if options.batch_frames is not None and options.batch_frames < 1:
        parser.error(f"--batch-frames is {options.batch_frames}; give at least 1")
    if options.int8 and (options.dtype not in ("auto", "float32") or options.device not in ON_CPU):
        parser.error("--int8 is for a CPU and float32; leave --device and --dtype out")
    if options.workers is not None and options.workers < 0:
        parser.error(f"--workers is {options.workers}; give 0 or more")
    if not options.folder.is_dir():
        parser.error(f"no folder at {str(options.folder)!r}; check the path")
    if options.output.suffix not in (".parquet", ".jsonl"):
        parser.error(
            f"--output is {str(options.output)!r}; its name must end in .parquet or .jsonl"
        )
    if options.output.is_dir():
        parser.error(f"--output is {str(options.output)!r}, which is a folder; give another name")
    if not options.output.parent.is_dir():
        parser.error(f"no folder at {str(options.output.parent)!r} to write the output to; make it")
    if options.output.suffix == ".parquet":
        try:
            import_module("pyarrow")
        except ImportError:
            parser.error("writing .parquet needs pyarrow; pip install pyarrow, or give a .jsonl")
    return options


def audio_files(folder: Path) -> tuple[list[str], list[OSError]]:
    """Paths relative to `folder`, sorted; and why folders in it could not be listed."""
    found, errors = [], []
    for parent, _, names in os.walk(folder, onerror=errors.append):
        inside = os.path.relpath(parent, folder)
        found += [
            name if inside == os.curdir else f"{Path(inside).as_posix()}/{name}"
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found), errors


class Journal:
    """The .jsonl: a line for each finished file, appended at once, so that a kill loses none."""

    def __init__(self, path: Path, model: str):
        self.path = path
        self.model = model
        self.num_bad = 0
        self.seconds = 0.0
        self.done: set[str] = set()
        # Unbuffered: what a full disk did not take must not be written later, behind other lines.
        self.file = path.open("ab", buffering=0)
        self._lock()
        # Kept open: to close any handle of a file gives up the lock on it.
        self.lines = path.open("rb")
        # A kill in the middle of a line: that file is not done.
        self.file.truncate(self._read())

    def _lock(self) -> None:
        """Refuses a file to which another run is writing; the lock ends with this process."""
        if fcntl is None:
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
                raise ValueError(f"line {number} of {self.path} is no row of this script")
            if row["model"] != self.model:
                raise ValueError(
                    f"{self.path} has the tags of the model {row['model']!r}; give another --output"
                )
            self._count(row)
            end += len(line)
        return end

    def add(self, name: str, tags: ClipTags) -> None:
        """Writes one result."""
        labels = [{"label": label, "score": score} for label, score in tags.labels.items()]
        row = {
            "file": name,
            "seconds": tags.seconds,
            "labels": labels,
            "error": tags.error,
            "model": self.model,
        }
        # In ASCII: file names need not be valid Unicode.
        line = json.dumps(row).encode() + b"\n"
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
    fields = {"file", "seconds", "labels", "error", "model"}
    return row if isinstance(row, dict) and fields <= row.keys() else None


def tag(tagger: AudioTagger, folder: Path, files: list[str], journal: Journal) -> None:
    """Tags the files that are not in the journal yet."""
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
        ]
    )
    partial = target.with_name(target.name + ".partial")
    try:
        with journal.open("rb") as lines, parquet.ParquetWriter(partial, schema) as writer:
            while rows := list(islice(map(_row, lines), PARQUET_ROWS)):
                writer.write_table(pa.Table.from_pylist([*map(_valid, rows)], schema))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _valid(row: dict) -> dict:
    """Parquet's strings are Unicode; file names of other kinds get a replacement character."""
    texts = {
        name: row[name].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name in ("file", "error")
        if row[name] is not None
    }
    return {**row, **texts}


def load(options: argparse.Namespace) -> AudioTagger:
    """The tagger; what is wrong with the model is told in one line."""
    try:
        tagger = AudioTagger.from_pretrained(
            options.model,
            "cpu" if options.int8 else options.device,
            "float32" if options.int8 else options.dtype,
            batch_frames=options.batch_frames,
            num_workers=options.workers,
            top_k=options.top_k,
        )
        if options.int8:
            tagger.model = quantize_int8(tagger.model)
        return tagger
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: cannot load the model {options.model!r}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    """Tags the folder; what is wrong is told in one line."""
    options = parse_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    files, unlisted = audio_files(options.folder)
    for error in unlisted:
        sys.stderr.write(f"error: cannot list {error.filename!r}: {error.strerror}\n")
    if not files:
        sys.exit(f"error: no audio file in {options.folder}; names must end in one of {AUDIO}")
    path = options.output.with_suffix(".jsonl")
    try:
        journal = Journal(path, options.model)
    except (OSError, ValueError) as error:
        sys.exit(f"error: cannot go on with {path}: {error}")
    try:
        if not journal.done.issuperset(files):
            tag(load(options), options.folder, files, journal)
        if options.output.suffix == ".parquet":
            write_parquet(path, options.output)
    except KeyboardInterrupt:
        sys.exit(f"stopped after {len(journal.done)} files; the same command goes on from here")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: {_first_line(error)}; go on with a smaller --batch-frames")
    # A full disk, mostly.
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {_first_line(error)}; the same command goes on from here")
    sys.stdout.write(
        f"{os.fsencode(options.output).decode(errors='replace')}: {len(journal.done)} files, "
        f"{journal.num_bad} of them bad, {journal.seconds / 3600:.2f} hours of audio\n"
    )
    sys.exit(1 if journal.num_bad or unlisted else 0)


if __name__ == "__main__":
    main()
