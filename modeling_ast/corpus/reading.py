"""Rows with audio, as every stage before the model has them; Parquet files and tar shards -> such
rows."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import ray
from pyarrow import parquet

from ..audio_files import skipped_by_name
from ..errors import one_line
from ..labels import valid_unicode
from .keys import KeySet

KEY, AUDIO, PATH, ERROR = "file", "audio", "path", "error"
# Columns of Parquet that may name a clip; the first that exists is used. AudioSet on the Hub has
# video_id. Without any of them, a clip is named by its path, or by the file and the row's number.
KEY_COLUMNS = ("file", "key", "video_id", "id", "filename")
# Bytes of encoded audio that a reading task passes on at a time, and rows of Parquet that it holds.
BYTES_AT_ONCE, ROWS_AT_ONCE = 2**24, 32

# A row has bytes, a path (in bytes: names of files need not be valid Unicode), or an error.
ROWS = pa.schema(
    [(KEY, pa.string()), (AUDIO, pa.large_binary()), (PATH, pa.binary()), (ERROR, pa.string())]
)


def is_address(text: str) -> bool:
    """Whether a text has a protocol, as in s3://bucket/name."""
    return "://" in text


def read_parquet(
    shards: pa.Table, done: list[Any], key_column: str | None = None
) -> Iterator[pa.Table]:
    """The clips of Parquet files whose keys are not done.

    Args:
        shards: Rows of `ROWS` with the paths of the files.
        done: A list of one `KeySet`, or of one reference to it. In a list, Ray passes the reference
            on unchanged.
        key_column: As in `find_source`.
    """
    for name, path in _shards(shards):
        yield from _readable(name, _rows_of_parquet(name, path, _known(done), key_column), done)


def _rows_of_parquet(
    name: str, path: str, known: KeySet, key_column: str | None
) -> Iterator[pa.Table]:
    with fsspec.open(path, "rb") as opened:
        file = parquet.ParquetFile(opened)
        key_name = _key_column(key_column, file.schema_arrow.names, path)
        first = 0
        for group in range(file.num_row_groups):
            keys = _parquet_keys(file, group, key_name, f"{name}#", first)
            if known.missing(keys):
                rows = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[AUDIO])
                yield from _missing_rows(keys, rows, known)
            first += len(keys)


def _known(done: list[Any]) -> KeySet:
    return done[0] if isinstance(done[0], KeySet) else ray.get(done[0])


def _readable(name: str, tables: Iterator[pa.Table], done: list[Any]) -> Iterator[pa.Table]:
    """The same tables. If the shard cannot be read to its end, a row with the reason follows."""
    try:
        yield from tables
    except (FileNotFoundError, PermissionError, ValueError, tarfile.TarError, EOFError) as error:
        reason = f"{name} cannot be read to its end ({one_line(error)}); write the shard again"
        if _known(done).missing([name]):
            yield pa.table([[name], [None], [None], [valid_unicode(reason)]], schema=ROWS)


def _key_column(wanted: str | None, columns: Sequence[str], path: str) -> str | None:
    missing = next((name for name in (wanted, AUDIO) if name and name not in columns), None)
    if missing is not None:
        raise ValueError(f"{path} has no column {missing!r}; it has {', '.join(columns)}")
    return wanted or next((name for name in KEY_COLUMNS if name in columns), None)


def _parquet_keys(
    file: parquet.ParquetFile, group: int, key_name: str | None, prefix: str, first: int
) -> list[str]:
    """The keys of a group of rows: from a column, from the paths of the audio, or from numbers."""
    if key_name is not None:
        column = file.read_row_group(group, [key_name]).column(0)
        return [str(key) for key in column.to_pylist()]
    numbers = range(first, first + file.metadata.row_group(group).num_rows)
    audio = file.schema_arrow.field(AUDIO).type
    paths: list[str | None] = [None] * len(numbers)
    if pa.types.is_struct(audio) and audio.get_field_index("path") >= 0:
        (column,) = file.read_row_group(group, [f"{AUDIO}.path"]).flatten().columns
        paths = column.to_pylist()
    return [path or f"{prefix}{number}" for path, number in zip(paths, numbers)]


def _missing_rows(
    keys: Sequence[str], batches: Iterable[pa.RecordBatch], known: KeySet
) -> Iterator[pa.Table]:
    start = 0
    for batch in batches:
        here = keys[start : start + batch.num_rows]
        start += batch.num_rows
        wanted = set(known.missing(here))
        clips = (
            (key, audio["bytes"] if isinstance(audio, dict) else audio)
            for key, audio in zip(here, batch.column(0).to_pylist())
            if key in wanted
        )
        yield from _tables(clips)


def read_tar(
    shards: pa.Table, done: list[Any], key_column: str | None = None
) -> Iterator[pa.Table]:
    """The clips of tar shards whose keys, "SHARD/MEMBER", are not done; see `read_parquet`."""
    for name, path in _shards(shards):
        yield from _readable(name, _tables(_members(name, path, _known(done))), done)


def _members(name: str, path: str, known: KeySet) -> Iterator[tuple[str, bytes]]:
    with fsspec.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r|*") as shard:
        for member in shard:
            key = f"{name}/{member.name.removeprefix('./')}"
            is_audio = skipped_by_name(posixpath.basename(member.name)) is None
            if member.isfile() and is_audio and known.missing([key]):
                content = shard.extractfile(member)
                yield key, b"" if content is None else content.read()


def _shards(shards: pa.Table) -> Iterator[tuple[str, str]]:
    """(name, path or address) of each."""
    paths = map(os.fsdecode, shards.column(PATH).to_pylist())
    yield from zip(shards.column(KEY).to_pylist(), paths)


def _tables(clips: Iterable[tuple[str, bytes]]) -> Iterator[pa.Table]:
    """Tables of clips with their bytes, each of a bounded size."""
    keys: list[str | None] = []
    contents: list[bytes] = []
    size = 0
    try:
        for key, content in clips:
            keys.append(valid_unicode(key))
            contents.append(content)
            size += len(content or b"")
            if size >= BYTES_AT_ONCE:
                yield _table(keys, contents)
                keys, contents, size = [], [], 0
    except Exception:
        # The clips before an error count all the same; the error is passed on to the caller.
        if keys:
            yield _table(keys, contents)
        raise
    if keys:
        yield _table(keys, contents)


def _table(keys: list[str | None], contents: list[bytes]) -> pa.Table:
    nothing = [None] * len(keys)
    return pa.table([keys, contents, nothing, nothing], schema=ROWS)


__all__ = [
    "AUDIO",
    "ERROR",
    "KEY",
    "KEY_COLUMNS",
    "PATH",
    "ROWS",
    "is_address",
    "read_parquet",
    "read_tar",
]
