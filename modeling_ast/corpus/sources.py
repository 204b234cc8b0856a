"""A corpus in any form -> a Ray data set with a row for each clip: its key and its audio.

A folder or a list of files becomes rows with addresses, which the decoding stage opens. Parquet
files with audio bytes and tar shards become rows with bytes (`reading.py`). Keys of files are
relative to their folder, as in the rows of `tag` on one machine.
"""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import ray
from ray.data import TaskPoolStrategy

from ..audio_files import (
    AUDIO_SUFFIXES,
    DECODED_NAMES,
    OTHER_SUFFIX,
    Skipped,
    audio_files,
    skipped_by_name,
    suffix_of,
)
from ..errors import one_line
from ..labels import valid_unicode
from .keys import KeySet
from .reading import ROWS, is_address, read_parquet, read_tar

FILES, PARQUET, TAR = "files", "parquet", "tar"
SHARD_SUFFIXES = {".parquet": PARQUET, ".tar": TAR}
# Files of a block of Ray, and how many blocks are wanted. The sizes are powers of two, so that
# shards are multiples of them; the waveforms of 128 clips of 10 s take 82 MB.
LEAST_CHUNK, MOST_CHUNK, WANTED_CHUNKS = 32, 128, 200
# CPUs of the cluster for each task that reads shards.
CPUS_A_READER = 8


@dataclass
class Source:
    """A corpus.

    Args:
        kind: "files", "parquet" or "tar".
        root: Folder or address that keys are relative to; "" if keys are whole paths.
        names: Files or shards below the root, with slashes.
        skipped: The files of a folder that are left out.
        errors: Those of folders that could not be listed.
        key_column: Of Parquet; None for the first of `reading.KEY_COLUMNS` that exists.
        prefix: The beginning of the keys of files, before their names below the root.
    """

    kind: str
    root: str
    names: list[str]
    skipped: list[Skipped] = field(default_factory=list)
    errors: list[OSError] = field(default_factory=list)
    key_column: str | None = None
    prefix: str = ""

    def address(self, name: str) -> str:
        """The path or address of a file or shard."""
        if not self.root:
            return name if is_address(name) else os.path.abspath(name)
        join = posixpath.join if is_address(self.root) else os.path.join
        return join(self.root, name)

    def key(self, name: str) -> str:
        """The key of a file."""
        return os.path.join(self.prefix, name)

    def dataset(self, done: KeySet) -> ray.data.Dataset | None:
        """Rows (`reading.ROWS`) of the clips whose keys are not in `done`.

        It is None if no file is left. Of shards this is known only after they have been read.
        """
        names = self.names
        if self.kind == FILES:
            keys = dict(zip(map(self.key, names), names))
            names = [keys[key] for key in done.missing(list(keys))]
        if not names:
            return None
        size = 1
        if self.kind == FILES:
            size = LEAST_CHUNK
            while size < MOST_CHUNK and len(names) >= 2 * size * WANTED_CHUNKS:
                size *= 2
        chunks = [self._chunk(names[start : start + size]) for start in range(0, len(names), size)]
        dataset = ray.data.from_arrow(chunks)
        if self.kind == FILES:
            return dataset
        kept = ray.put(done)
        # Ray's type hints do not allow arguments besides the batch.
        read: Any = read_parquet if self.kind == PARQUET else read_tar
        return dataset.map_batches(
            read,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"done": [kept], "key_column": self.key_column},
            # Reading takes a tenth of the time of decoding, and must not take the CPU that is kept
            # for writing.
            num_cpus=0,
            compute=TaskPoolStrategy(max(1, int(ray.cluster_resources()["CPU"] / CPUS_A_READER))),
        )

    def _chunk(self, names: Sequence[str]) -> pa.Table:
        keys = [valid_unicode(self.key(name)) for name in names]
        nothing = [None] * len(keys)
        paths = [os.fsencode(self.address(name)) for name in names]
        return pa.table([keys, nothing, paths, nothing], schema=ROWS)


def find_source(
    source: str | Path | Iterable[str], key_column: str | None = None, whole_keys: bool = False
) -> Source:
    """Finds out what was given; only folders and lists are opened.

    Args:
        source: A folder or an address (s3://bucket/folder, hf://datasets/..., any of fsspec's) of
            audio files, .parquet files or .tar shards; one such file, or a pattern of them
            (`shards/*.tar`); a .txt file with a path or address in each line; or the paths
            themselves.
        key_column: Column of Parquet whose values are the keys.
        whole_keys: Whether keys of files begin with their folder as given, as in `detect`.
    Raises:
        ValueError: There is nothing usable, there are several kinds of files, or other machines
            cannot read it.
        OSError: It cannot be listed.
        ImportError: The library of the address's protocol is not installed.
    """
    if not isinstance(source, str | Path):
        return Source(FILES, "", _distinct(source), key_column=key_column)
    text = os.fspath(source)
    if text.startswith("memory://"):
        raise ValueError(
            f"{text} is in the memory of this process, which no other process can read; write the "
            f"clips to a folder, or to an object store such as s3://"
        )
    if suffix_of(text) == ".txt":
        with fsspec.open(text, encoding="utf-8", errors="surrogateescape", mode="rt") as lines:
            names = _distinct(filter(None, (line.rstrip("\r\n") for line in lines)))
        if not names:
            raise ValueError(f"{text} names no file; write a path or an address into each line")
        return Source(FILES, "", names)
    try:
        if suffix_of(text) in AUDIO_SUFFIXES | SHARD_SUFFIXES.keys():
            found = _from_pattern(text)
        else:
            found = _from_folder(text)
    except (OSError, ValueError, ImportError):
        raise
    # The library of a protocol may raise anything, for missing credentials, say.
    except Exception as error:
        raise ValueError(f"cannot list {text} ({one_line(error)})") from error
    found.key_column = key_column
    if not whole_keys or found.kind != FILES:
        found.prefix = ""
    return found


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(os.fspath, names)))


def _from_pattern(text: str) -> Source:
    """A file or a shard, or a pattern of them."""
    root, kind = posixpath.dirname(text), SHARD_SUFFIXES.get(suffix_of(text), FILES)
    while glob.has_magic(root):
        root = posixpath.dirname(root)
    prefix = root
    if is_address(text):
        filesystem, path = fsspec.core.url_to_fs(text)
        found = [filesystem.unstrip_protocol(name) for name in filesystem.glob(path)]
        base = filesystem.unstrip_protocol(fsspec.core.url_to_fs(root)[1])
        names = [posixpath.relpath(name, base) for name in found]
        root = base
    else:
        names = [os.path.relpath(name, root or os.curdir) for name in glob.glob(text)]
        root = os.path.abspath(root or os.curdir)
    if not names:
        raise ValueError(f"no file at {text!r}; check the path or the pattern")
    return Source(kind, root, sorted(names), prefix=prefix)


def _from_folder(text: str) -> Source:
    errors: list[OSError] = []
    if is_address(text):
        filesystem, path = fsspec.core.url_to_fs(text)
        root = filesystem.unstrip_protocol(path)
        found = [posixpath.relpath(name, path) for name in filesystem.find(path)]
        files, skipped = [], []
        for name in sorted(found):
            hidden = next((part for part in name.split("/") if part.startswith(".")), None)
            reason = skipped_by_name(hidden or posixpath.basename(name))
            if reason is None:
                files.append(name)
            else:
                skipped.append(Skipped(name, reason))
    else:
        if not os.path.isdir(text):
            raise ValueError(f"no folder at {text!r}; check the path")
        root = os.path.abspath(text)
        files, skipped, errors = audio_files(text)
    by_kind = {FILES: files}
    for suffix, kind in SHARD_SUFFIXES.items():
        by_kind[kind] = [
            entry.file
            for entry in skipped
            if suffix_of(entry.file) == suffix and entry.reason == OTHER_SUFFIX
        ]
    there = [kind for kind, names in by_kind.items() if names]
    if not there:
        raise ValueError(
            f"no audio file in {text}, no .parquet and no .tar; names of audio files must end in "
            f"one of {DECODED_NAMES}"
        )
    if len(there) > 1:
        counts = ", ".join(f"{len(by_kind[kind])} {kind}" for kind in there)
        raise ValueError(
            f"{text} holds several kinds ({counts}); name one by a pattern, such as "
            f"{posixpath.join(text, '*.tar')}"
        )
    kind = there[0]
    skipped = [entry for entry in skipped if entry.file not in set(by_kind[kind])]
    return Source(kind, root, by_kind[kind], skipped, errors, prefix=text)


__all__ = ["Source", "find_source"]
