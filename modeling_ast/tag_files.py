"""All audio files of a folder -> a row each in a .jsonl or Parquet file; a killed run resumes.

The .jsonl is the journal of the run (`journal.py`). The Parquet file is written from it at the end,
whole or not at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from .calibration import NO_CALIBRATION, SAME_CALIBRATION
from .journal import Journal
from .tagging import AudioTagger, ClipTags

PARQUET_ROWS = 10_000
ROW_FIELDS = {"file", "seconds", "labels", "error", "model"}
# What decides the scores of a row beside the model, and the flag that sets it.
SETTINGS = {
    "padding": "--padding {}",
    "scores": "--scores {}",
    "dtype": "the same --dtype ({})",
    "calibration": SAME_CALIBRATION,
}


class TagJournal(Journal):
    """The .jsonl of the tags of many files.

    Args:
        path, model: As in `Journal`, which also says what is refused.
    """

    def __init__(self, path: Path, model: str):
        # Rows of version 0.1 do not say their padding: it always padded to the longest.
        defaults = {"padding": "longest", "calibration": NO_CALIBRATION}
        super().__init__(path, model, ROW_FIELDS, SETTINGS, defaults)

    def add_tags(self, name: str, tags: ClipTags) -> None:
        """Writes one result."""
        labels = [{"label": label, "score": score} for label, score in tags.labels.items()]
        row = {"file": name, "seconds": tags.seconds, "labels": labels, "error": tags.error}
        self.add(row if tags.detected is None else {**row, "detected": tags.detected})


def tag_files(tagger: AudioTagger, folder: Path, files: Sequence[str], journal: TagJournal) -> None:
    """Tags the files that are not in the journal yet, with a progress bar.

    Args:
        files: Relative to `folder`, as `audio_files.audio_files` gives them.
    """
    missing = [name for name in files if name not in journal.done]
    results = tagger(folder / name for name in missing)
    begin, before = time.monotonic(), journal.seconds
    with tqdm(total=len(files), initial=len(files) - len(missing), unit="file") as bar:
        for name, tags in zip(missing, results):
            journal.add_tags(name, tags)
            hours = (journal.seconds - before) / 3600
            minutes = max(time.monotonic() - begin, 1e-9) / 60
            bar.set_postfix_str(f"{hours / minutes:.2f} audio-h/min", refresh=False)
            bar.update()


def write_parquet(journal: TagJournal, target: Path) -> None:
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
            ("detected", pa.list_(pa.string())),
        ]
    )
    partial = target.with_name(target.name + ".partial")
    try:
        finished = map(_valid, journal.rows())
        with parquet.ParquetWriter(partial, schema) as writer:
            while rows := list(islice(finished, PARQUET_ROWS)):
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


__all__ = ["TagJournal", "tag_files", "write_parquet"]
