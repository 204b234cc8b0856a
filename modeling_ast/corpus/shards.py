"""The output of a corpus: Parquet shards, each whole or absent, and the manifest that counts them.

A shard is named by the digest of its bytes and appears under its name when it is whole. It counts
if its line is in `manifest.jsonl`. Only the process that drives the run writes this file, a line
for each finished shard that Ray reports. A shard without a line, from a writer that was killed or a
task that ran twice, is removed. So no row is lost or doubled, and no shard is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ..journal import Journal
from .keys import KeySet
from .reading import KEY

MANIFEST = "manifest.jsonl"
SHARD = "shard"
ROW_FIELDS = {SHARD, "rows", "bad", "seconds", "first", "last", "digest", "model"}
PARTIAL = ".partial"
# No other file is ever removed.
OURS = re.compile(r"shard-[0-9a-f]{24}\.parquet(\.[0-9a-f]{32}\.partial)?")
REPORT = pa.schema(
    [
        (SHARD, pa.string()),
        ("rows", pa.int64()),
        ("bad", pa.int64()),
        ("seconds", pa.float64()),
        ("first", pa.string()),
        ("last", pa.string()),
        ("digest", pa.string()),
    ]
)


def write_shard(rows: pa.Table, folder: str) -> pa.Table:
    """Writes rows as a shard.

    Args:
        rows: With the columns file, seconds and error.
        folder: A directory that all machines see.
    Returns:
        A table of one row, `REPORT`, which is the line of the manifest; empty if there are no rows.
    """
    if rows.num_rows == 0:
        return REPORT.empty_table()
    rows = rows.sort_by(KEY)
    sink = pa.BufferOutputStream()
    parquet.write_table(rows, sink)
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"shard-{digest[:24]}.parquet"
    _write_whole(Path(folder) / name, content)
    report = {
        SHARD: name,
        "rows": rows.num_rows,
        "bad": rows.num_rows - rows.column("error").null_count,
        "seconds": pc.sum(rows.column("seconds")).as_py() or 0.0,
        "first": rows.column(KEY)[0].as_py(),
        "last": rows.column(KEY)[-1].as_py(),
        "digest": f"sha256:{digest}",
    }
    return pa.Table.from_pylist([report], REPORT)


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears under its name when all of it is on the disk."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Manifest(Journal):
    """The shards that are finished.

    Args:
        folder: A directory that all machines see.
        model, settings, defaults: As in `Journal`.
    Raises:
        OSError, ValueError: As `Journal`.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        settings: Mapping[str, str],
        defaults: Mapping[str, str] | None = None,
    ):
        self.folder = folder
        self.num_rows = 0
        super().__init__(folder / MANIFEST, model, ROW_FIELDS, settings, defaults, key=SHARD)

    def count(self, row: Mapping[str, Any]) -> None:
        """Counts a shard."""
        self.done.add(row[SHARD])
        self.num_rows += row["rows"]
        self.num_bad += row["bad"]
        self.seconds += row["seconds"]

    def remove_others(self) -> None:
        """Removes shards, whole or partial, that are not in the manifest.

        Raises:
            ValueError: A shard that is in the manifest is missing.
        """
        there = set()
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name) and path.name not in self.done:
                path.unlink(missing_ok=True)
            there.add(path.name)
        if missing := sorted(self.done - there):
            raise ValueError(
                f"{len(missing)} shards of {self.path} are not there ({missing[0]}, ...); put them "
                f"back, or delete their lines to have their files done again"
            )

    def keys(self) -> KeySet:
        """The keys of all rows in the shards."""
        return KeySet(
            parquet.read_table(self.folder / name, columns=[KEY]).column(0).to_pylist()
            for name in sorted(self.done)
        )

    def bad_rows(self) -> Iterator[dict[str, Any]]:
        """{"file", "error"} of each bad row."""
        for row in self.rows():
            if row["bad"]:
                table = parquet.read_table(self.folder / row[SHARD], columns=[KEY, "error"])
                yield from table.filter(pc.is_valid(table.column("error"))).to_pylist()

    def write_bad_list(self) -> Path:
        """Writes the bad rows to bad.jsonl; returns its path."""
        path = self.folder / "bad.jsonl"
        lines = "".join(json.dumps(row) + "\n" for row in self.bad_rows())
        _write_whole(path, lines.encode())
        return path


__all__ = ["MANIFEST", "Manifest", "write_shard"]
