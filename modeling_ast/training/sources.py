"""The argument DATA -> the data set with all its splits.

DATA is one of
- a directory with one folder of audio files per label, which may be inside train/, validation/ and
  test/ (`folders.py`);
- a CSV, TSV, JSON or JSON lines file with a column of paths (`--audio-column`), which are relative
  to the folder of the file, or to `--audio-root`; or a directory with train.csv and test.csv, or
  with a metadata.csv; or ESC-50's, FSD50K's or UrbanSound8K's directory as released (`tables.py`);
- a data set on the Hub, such as agkphysics/AudioSet, or a directory of its parquet files, or such a
  file, through `datasets`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import (
    Dataset,
    DatasetDict,
    IterableDatasetDict,
    concatenate_datasets,
    load_dataset,
)
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HFValidationError

from ..audio_files import AUDIO_SUFFIXES, Listing, audio_files, suffix_of
from ..errors import one_line
from ..hub_lookup import hub_lookup
from ..labels import read_label_file
from .classes import class_list
from .data_arguments import DataArguments
from .data_report import LocalData
from .folders import SPLITS, read_folder
from .tables import TABLE_SUFFIXES, read_columns, read_table

# Files of a directory that only `datasets` reads.
STORED_DATA = frozenset({".parquet", ".arrow", ".tar", ".zip", ".gz"})
# Released data sets: the table of each split, and the folder of its files.
RELEASES = (
    {"train": ("meta/esc50.csv", "audio")},
    {
        "train": ("FSD50K.ground_truth/dev.csv", "FSD50K.dev_audio"),
        "test": ("FSD50K.ground_truth/eval.csv", "FSD50K.eval_audio"),
    },
    {"train": ("metadata/UrbanSound8K.csv", "audio")},
)

Source: TypeAlias = DatasetDict | IterableDatasetDict


def read_source(arguments: DataArguments) -> LocalData | Source:
    """The data set with all its splits; for a folder or a table also what was left out.

    Raises:
        OSError, ValueError: The data does not exist, is a file of another kind, or is damaged.
    """
    name = str(arguments.data)
    path = Path(name)
    if arguments.audio_root is not None and not Path(arguments.audio_root).is_dir():
        raise ValueError(
            f"--audio-root is {arguments.audio_root!r}, which is not a folder on this machine; "
            f"give the folder of the audio files"
        )
    if os.path.isfile(name):
        return read_file(path, arguments)
    if os.path.isdir(name):
        return read_directory(path, arguments)
    missing = f"{name!r} is not a file or directory on this machine"
    if name.startswith(("/", ".", "~")):
        raise OSError(f"{missing}; check the path")
    # With the name of one of its formats, such as csv, `datasets` reads the working directory.
    if name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}"):
        raise OSError(f"{missing}, and as a name it stands for a format; give another --data")
    try:
        with hub_lookup():
            return with_datasets(arguments, arguments.data_config)
    except (OSError, HFValidationError) as error:
        raise OSError(
            f"{missing}, and cannot be loaded as a data set of the Hub ({one_line(error)}); give "
            f"another --data"
        ) from error


def read_file(path: Path, arguments: DataArguments) -> LocalData | Source:
    """A table, or a file that `datasets` reads."""
    if suffix_of(path.name) in TABLE_SUFFIXES:
        tables = {arguments.train_split: (path, arguments.root or path.parent)}
        return read_tables(tables, arguments)
    if suffix_of(path.name) in AUDIO_SUFFIXES:
        raise ValueError(
            f"{path} is one sound, not a data set; give a folder with a folder of files for each "
            f"label, such as my_sounds/bark/a.wav, or a table"
        )
    if suffix_of(path.name) != ".parquet":
        raise ValueError(
            f"{path} is not a data set; give one of *{', *'.join(TABLE_SUFFIXES)}, *.parquet"
        )
    files = {arguments.train_split: str(path)}
    return with_datasets(arguments, None, "parquet", data_files=files, cache_dir=cache_of(path))


def read_directory(folder: Path, arguments: DataArguments) -> LocalData | Source:
    """Tables of splits, a released data set, files that `datasets` reads, or folders of labels."""
    if arguments.data_config is None:
        for release in RELEASES:
            tables = {
                split: (folder / table, folder / audio)
                for split, (table, audio) in release.items()
                if (folder / table).is_file() and (folder / audio).is_dir()
            }
            if "train" in tables:
                return read_tables(tables, arguments)
        root = arguments.root or folder
        if tables := {split: (path, root) for split, path in split_tables(folder).items()}:
            return read_tables(tables, arguments)
    listing = audio_files(folder)
    if is_stored_data(folder, listing):
        return with_datasets(arguments, arguments.data_config, cache_dir=cache_of(folder))
    local = read_folder(folder, listing)
    if (path := class_list(arguments)) is not None and path.parent == folder:
        local.skipped[:] = [
            entry._replace(reason="read as the class list") if entry.file == path.name else entry
            for entry in local.skipped
        ]
    return local


def split_tables(folder: Path) -> dict[str, Path]:
    """Split -> its table: train.csv and the like, or metadata.csv as `datasets` has it."""
    tables: dict[str, Path] = {}
    for split in SPLITS:
        paths = [folder / f"{split}{suffix}" for suffix in TABLE_SUFFIXES]
        there = [path for path in paths if path.is_file()]
        if len(there) > 1:
            raise ValueError(
                f"{folder} has two tables of the split {split!r}, {there[0].name} and "
                f"{there[1].name}; remove or rename one of them"
            )
        if there:
            tables[split] = there[0]
    if "train" in tables:
        return tables
    for suffix in TABLE_SUFFIXES:
        path = folder / f"metadata{suffix}"
        # A table of this name without that column does not describe the data set.
        if path.is_file() and {"file_name"} < set(read_columns(path)):
            return {"train": path}
    return {}


def is_stored_data(folder: Path, listing: Listing) -> bool:
    """Whether only `datasets` can read a directory: it has its files and no folders of audio."""
    if any("/" in name for name in listing.files):
        return False
    card = folder / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace"):
        return True
    return any(suffix_of(name) in STORED_DATA for name, _ in listing.skipped)


def read_tables(tables: dict[str, tuple[Path, Path]], arguments: DataArguments) -> LocalData:
    """One table for each split, or one with a column `split`.

    Args:
        tables: Split -> its table and the folder of its files.
    """
    path = class_list(arguments)
    known = {key for label in read_label_file(path) for key in label} if path else set()
    whole = LocalData({}, [], [], [])
    for split, (table, root) in tables.items():
        own = replace(arguments, train_split=split)
        read = read_table(table, root, own, known)
        whole.skipped.extend(read.skipped)
        whole.missing.extend(read.missing)
        whole.warnings.extend(read.warnings)
        for name, clips in read.splits.items():
            # A column `split` may put rows of one table into the split of another.
            if name in whole.splits:
                whole.splits[name] = joined(whole.splits[name], clips, table)
            else:
                whole.splits[name] = clips
    return whole


def joined(clips: Dataset, more: Dataset, table: Path) -> Dataset:
    """The rows of two tables, which must have the same columns."""
    if clips.features != more.features:
        raise ValueError(
            f"{table} has rows of a split that another table has too, with other columns or types "
            f"({list(more.features)} and {list(clips.features)}); give both tables the same columns"
        )
    return concatenate_datasets([clips, more])


def with_datasets(
    arguments: DataArguments, config: str | None, kind: str | None = None, **options: Any
) -> Source:
    """Loads a data set with `datasets`.

    Args:
        config: Configuration of the data set.
        kind: Format of the files; by default DATA is the name of a data set.
    Raises:
        ValueError: The data set is damaged, or of a kind that `datasets` does not know.
    """
    try:
        return load_dataset(
            kind or arguments.data, config, streaming=arguments.streaming, **options
        )
    except DatasetsError as error:
        cause = error.__cause__ or error
        raise ValueError(f"{arguments.data} cannot be read: {one_line(cause)}") from error


def cache_of(source: Path) -> str:
    """A cache directory for the present content of a directory or file.

    The cache of `datasets` depends only on the directory's last name: another `data/`, or the same
    one with new content, would silently give the old clips.
    """
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    states = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if path.is_file()
    ]
    digest = hashlib.blake2b(json.dumps(states).encode(), digest_size=8).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"local-{digest}")


__all__ = ["Source", "cache_of", "read_source"]
