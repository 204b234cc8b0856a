"""All audio files of a folder -> a row for each in a .jsonl or Parquet file; a killed run resumes.

The .jsonl is the journal of the run (`journal.py`). The Parquet file is made from it at the end,
whole or not at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from .calibration import NO_CALIBRATION
from .journal import Journal
from .tag_rows import (
    NO_EMBEDDINGS,
    ROW_FIELDS,
    SETTINGS,
    tag_row,
    tag_schema,
    tag_table,
)
from .tagging import AudioTagger, ClipTags

PARQUET_ROWS = 10_000
# Rows of version 0.1 do not state their padding, because it always padded to the longest clip.
EARLIER = {"padding": "longest", "calibration": NO_CALIBRATION, "embeddings": NO_EMBEDDINGS}


class TagJournal(Journal):
    """The .jsonl of the tags of many files.

    Args:
        path, model: As in `Journal`.
    Raises:
        OSError, ValueError: As `Journal`.
    """

    def __init__(self, path: Path, model: str):
        super().__init__(path, model, ROW_FIELDS, SETTINGS, EARLIER)

    @property
    def embeddings(self) -> str:
        """Which vectors the rows have: an argument of `tag_rows.tag_row`."""
        return self.settings.get("embeddings", NO_EMBEDDINGS)

    def add_tags(self, name: str, tags: ClipTags) -> None:
        """Writes one result."""
        self.add(tag_row(name, tags, self.embeddings))


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
    """Writes the journal as one Parquet file, which appears when it is whole."""
    from pyarrow import parquet

    schema = tag_schema(journal.embeddings)
    partial = target.with_name(target.name + ".partial")
    try:
        finished = ({"padding": EARLIER["padding"], **row} for row in journal.rows())
        with parquet.ParquetWriter(partial, schema) as writer:
            while rows := list(islice(finished, PARQUET_ROWS)):
                writer.write_table(tag_table(rows, schema))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


__all__ = ["TagJournal", "tag_files", "write_parquet"]
