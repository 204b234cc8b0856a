"""Where the clips and labels of a fine-tuning come from; the audio itself is not decoded here.

DATA is one of
- a directory with one folder of audio files per label, which may lie below train/, validation/ and
  test/ (`folders.py`);
- a CSV, TSV, JSON or JSON lines file with a column of paths (`--audio-column`), which start from
  where the file is, or from `--audio-root`; or a directory with train.csv and test.csv, or with a
  metadata.csv; or ESC-50's or FSD50K's directory as it is released (`tables.py`);
- a data set on the Hub, such as agkphysics/AudioSet, or a directory of its parquet files, or such a
  file, through `datasets`.

A label column that holds lists has several labels to a clip; any other has exactly one, a name or a
class index. Several names in one cell are separated by `--label-separator`. What is held out is a
split (test, or validation where there is no test), a fold (`--eval-fold`) or, where there is no
such split, a share drawn at random (`--eval-share`).

Data of `datasets` is memory-mapped, from a copy that it keeps on disk. With `--streaming` the clips
to train on are read as they come and never stored; those held out are stored, so that each is
counted once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
from datasets import (
    Audio,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
)
from datasets.exceptions import DatasetsError

from ..audio_files import Listing, Skipped, audio_files, suffix_of
from ..errors import one_line
from ..labels import read_label_file
from .classes import (
    Clips,
    check_column,
    class_list,
    column,
    is_exclusive,
    label_column,
    label_names,
    name_numbers,
    read_classes,
)
from .clips import ClipReader, undecoded
from .data_arguments import DataArguments
from .data_report import DataReport, LocalData
from .folders import SPLITS, read_folder
from .tables import TABLE_SUFFIXES, read_columns, read_table

STORED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}
# Files of a directory that only `datasets` reads.
STORED_DATA = frozenset({".parquet", ".arrow", ".tar", ".zip", ".gz"})
# The split at random is the same in every run, so that runs can be compared and resumed.
SPLIT_SEED = 0
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


class Loaded(NamedTuple):
    """A data set, divided, with what became of each of its files."""

    train: Clips | None
    held_out: Dataset | None
    report: DataReport
    # The names of the two in the report; None where one is not there or not counted.
    train_name: str | None
    held_out_name: str | None

    def skip_bad_clips(
        self, bad: Mapping[str, str], reader: ClipReader, arguments: DataArguments
    ) -> None:
        """Moves the clips that could not be decoded to the report's skipped ones.

        Args:
            bad: Name -> reason, as `BadClips.read` gives it.
            reader: Names the clips.
        """
        parts = ((self.train_name, self.train), (self.held_out_name, self.held_out))
        for name, clips in parts:
            if bad and name is not None and isinstance(clips, Dataset):
                labels = label_names(clips, label_column(arguments, clips))
                self.report.skip_bad(name, clip_names(clips, reader), labels, bad)


def load_data(arguments: DataArguments) -> tuple[Clips, Dataset]:
    """The clips to train on and those held out; the audio is not decoded.

    Args:
        arguments: With `streaming` the clips to train on are a stream.
    Raises:
        OSError, ValueError: There is no such data set, split, fold or column.
    """
    loaded = load(arguments)
    return loaded.train, loaded.held_out


def load_part(arguments: DataArguments, held_out: bool) -> Clips:
    """The clips held out, or those to train on; the data need not have the other part.

    Raises:
        OSError, ValueError: As `load_data`.
    """
    loaded = load(arguments, train=not held_out, held_out=held_out)
    return loaded.held_out if held_out else loaded.train


def load(arguments: DataArguments, train: bool = True, held_out: bool = True) -> Loaded:
    """The clips to train on, those held out, and what became of each file.

    Args:
        arguments: With `streaming` the clips to train on are a stream.
        train, held_out: Whether this part is wanted: the data need not have the other one, which is
            only counted.
    Raises:
        OSError, ValueError: There is no such data set, split, fold or column, or no clip.
    """
    source = read_source(arguments)
    local = source if isinstance(source, LocalData) else None
    splits = DatasetDict(local.splits) if local else source
    if not isinstance(splits, Source):
        raise ValueError(f"{arguments.data} has no splits")
    report = DataReport(str(arguments.data))
    if local:
        report.skipped += local.skipped
        report.missing += local.missing
        report.warnings += local.warnings
    arguments, warnings = chosen_split(splits, arguments, is_local=local is not None)
    report.warnings += warnings
    wanted = {"train": train, "held out": held_out}
    parts: dict[str, Clips] = {}
    for name, is_wanted in wanted.items():
        # Of data that is not ours, to count what is not wanted could take hours.
        if is_wanted or (local and names_differ(arguments)):
            try:
                parts[name] = part_of(splits, arguments, held_out=name == "held out")
            except ValueError:
                if is_wanted:
                    raise
    parts, warnings = with_named_numbers(parts, arguments)
    report.warnings += warnings
    if arguments.streaming and not local:
        parts = {name: streamed(name, clips, arguments) for name, clips in parts.items()}
    names = count_parts(report, parts, arguments)
    if local:
        used = set(arguments.train_split.split("+"))
        if not is_drawn(arguments):
            used |= set(arguments.eval_split.split("+"))
        report.skipped += [
            entry._replace(file=report.short(entry.file))
            for entry in unused_splits(splits, used, arguments)
        ]
    parts = {name: clips for name, clips in parts.items() if wanted[name]}
    if arguments.streaming and local:
        parts = {name: streamed(name, clips, arguments) for name, clips in parts.items()}
    return Loaded(
        parts.get("train"),
        parts.get("held out"),
        report,
        names.get("train") if train else None,
        names.get("held out") if held_out else None,
    )


def chosen_split(
    splits: Source, arguments: DataArguments, is_local: bool
) -> tuple[DataArguments, list[str]]:
    """The arguments with the split that is judged: validation where there is no test.

    Of local data a held-out split wins over a share at random, which a recipe may have asked for.

    Returns:
        The arguments, and a warning where both a split and a share could be held out.
    """
    there = arguments.eval_split in splits
    if not there and arguments.eval_split == "test" and "validation" in splits:
        arguments, there = replace(arguments, eval_split="validation"), True
    same = arguments.eval_split in arguments.train_split.split("+")
    if arguments.eval_share is None or not there or same:
        return arguments, []
    name, share = arguments.eval_split, arguments.eval_share
    if not is_local:
        return arguments, [
            f"--eval-share {share} holds a part of {arguments.train_split!r} out, although "
            f"{arguments.data} has the split {name!r}; leave it out to be judged on that"
        ]
    return replace(arguments, eval_share=None), [
        f"{arguments.data} has the split {name!r}, which is held out; --eval-share {share} is not "
        f"used"
    ]


def is_drawn(arguments: DataArguments) -> bool:
    """Whether a part of the training split is held out."""
    return arguments.eval_share is not None or arguments.eval_fold is not None


def names_differ(arguments: DataArguments) -> bool:
    """Whether the clips to train on and those held out are different ones."""
    return is_drawn(arguments) or arguments.train_split != arguments.eval_split


def with_named_numbers(
    parts: dict[str, Clips], arguments: DataArguments
) -> tuple[dict[str, Clips], list[str]]:
    """`name_numbers` for parts that are no streams and have a column of labels."""
    try:
        is_stored = all(isinstance(clips, Dataset) for clips in parts.values())
        named = [label_column(arguments, clips) for clips in parts.values()]
    except ValueError:
        # The column is asked for, and its mistake raised, where the labels are needed.
        return parts, []
    return name_numbers(parts, arguments) if is_stored and named else (parts, [])


def count_parts(
    report: DataReport, parts: dict[str, Clips], arguments: DataArguments
) -> dict[str, str]:
    """Counts the clips and labels of each part but streams.

    Returns:
        Part -> the name that the report has for it, of those that were counted.
    """
    held_out = "test" if is_drawn(arguments) else arguments.eval_split
    names = {"train": arguments.train_split, "held out": held_out}
    if names["train"] == names["held out"] and len(parts) == 2:
        names["held out"] += " (held out)"
    counted = {}
    for part, clips in parts.items():
        if isinstance(clips, IterableDataset):
            report.used[names[part]] = None
            continue
        counted[part] = names[part]
        try:
            labels = label_names(clips, label_column(arguments, clips))
        except ValueError:
            labels = None
        report.count(names[part], labels, len(clips))
    return counted


def unused_splits(splits: Source, used: set[str], arguments: DataArguments) -> list[Skipped]:
    """The clips of splits that are neither trained on nor held out."""
    reason = "in the split {!r}, which is neither trained on nor held out"
    return [
        Skipped(file if isinstance(file, str) else file["path"], reason.format(name))
        for name in splits
        if name not in used
        for file in column(splits[name], arguments.audio_column, "--audio-column")
    ]


def streamed(name: str, clips: Clips, arguments: DataArguments) -> Clips:
    """The clips to train on as a stream; those held out stored."""
    if isinstance(clips, Dataset):
        return clips if name == "held out" else clips.to_iterable_dataset()
    return stored(clips, arguments) if name == "held out" else clips


def stored(stream: IterableDataset, arguments: DataArguments) -> Dataset:
    """A stream's clips in the cache of `datasets`, where another run finds them."""
    # A column of type Audio could only be written with torchcodec.
    kinds = {
        name: dict(STORED_AUDIO) if isinstance(kind, Audio) else kind
        for name, kind in stream.features.items()
    }
    chosen = ("data", "data_config", "eval_split", "fold_column", "eval_fold", "label_separator")
    names = [str(getattr(arguments, name)) for name in chosen]
    if arguments.root is not None:
        names.append(cache_of(Path(str(arguments.data))))
    # Without it `datasets` would not recognise the stream in another process.
    fingerprint = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()
    return Dataset.from_generator(
        stream.__iter__, features=Features(kinds), fingerprint=fingerprint
    )


def part_of(data: Source, arguments: DataArguments, held_out: bool) -> Clips:
    """What is held out of a data set, or what is not."""
    if arguments.eval_fold is None and arguments.eval_share is None:
        part = split_of(
            data, arguments.eval_split if held_out else arguments.train_split, arguments
        )
    else:
        whole = split_of(data, arguments.train_split, arguments)
        part = divide(whole, arguments)[held_out]
    return undecoded(separated(part, arguments), arguments.audio_column)


def read_source(arguments: DataArguments) -> LocalData | Source:
    """The data set with all its splits; a folder or table of ours with what it leaves out.

    Raises:
        OSError, ValueError: It is nowhere to be found, a file of another kind, or damaged.
    """
    path = Path(str(arguments.data))
    if arguments.audio_root is not None and not Path(arguments.audio_root).is_dir():
        raise ValueError(f"--audio-root is {arguments.audio_root!r}, which is no folder here")
    if path.is_file():
        return read_file(path, arguments)
    if path.is_dir():
        return read_directory(path, arguments)
    try:
        return with_datasets(arguments, arguments.data_config)
    except OSError as error:
        raise OSError(
            f"{arguments.data!r} is no file or directory here, and as a data set of the Hub it "
            f"cannot be loaded ({one_line(error)}); give another --data"
        ) from error


def read_file(path: Path, arguments: DataArguments) -> LocalData | Source:
    """A table, or a file that `datasets` reads."""
    if suffix_of(path.name) in TABLE_SUFFIXES:
        tables = {arguments.train_split: (path, arguments.root or path.parent)}
        return read_tables(tables, arguments)
    if suffix_of(path.name) != ".parquet":
        raise ValueError(
            f"{path} is no data set; give one of *{', *'.join(TABLE_SUFFIXES)}, *.parquet"
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
    tables = {
        split: folder / f"{split}{suffix}"
        for suffix in TABLE_SUFFIXES
        for split in SPLITS
        if (folder / f"{split}{suffix}").is_file()
    }
    if "train" in tables:
        return tables
    for suffix in TABLE_SUFFIXES:
        path = folder / f"metadata{suffix}"
        # Any other table of that name is a stray one.
        if path.is_file() and {"file_name"} < set(read_columns(path)):
            return {"train": path}
    return {}


def is_stored_data(folder: Path, listing: Listing) -> bool:
    """Whether only `datasets` reads a directory: it has its files and no folders of audio."""
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
        whole.splits.update(read.splits)
    return whole


def with_datasets(
    arguments: DataArguments, config: str | None, kind: str | None = None, **options: Any
) -> Source:
    """What `datasets` loads.

    Args:
        config: Of the data set.
        kind: Of files; by default the data set itself is named.
    Raises:
        ValueError: It is damaged, or of no kind that `datasets` knows.
    """
    try:
        return load_dataset(
            kind or arguments.data, config, streaming=arguments.streaming, **options
        )
    except DatasetsError as error:
        cause = error.__cause__ or error
        raise ValueError(f"{arguments.data} cannot be read: {one_line(cause)}") from error


def clip_names(clips: Dataset, reader: ClipReader) -> Iterable[str]:
    """The names of all clips; the audio of those that have a path is not read for it."""
    flat = clips.flatten()
    column = f"{reader.audio_column}.path"
    if reader.id_column is not None or column not in flat.column_names:
        return (reader.name(row) for row in clips)
    paths = flat.select_columns(column)[:][column]
    return (path or reader.name(clips[index]) for index, path in enumerate(paths))


def cache_of(source: Path) -> str:
    """A cache for the directory or file as it is now.

    The one of `datasets` goes by the directory's last name alone: another `data/`, or this one
    written anew, would silently give the old clips.
    """
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    states = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if path.is_file()
    ]
    digest = hashlib.blake2b(json.dumps(states).encode(), digest_size=8).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"local-{digest}")


def split_of(data: Source, names: str, arguments: DataArguments) -> Clips:
    """One split by its name, or several one after the other: "bal_train+unbal_train"."""
    for name in names.split("+"):
        if name not in data:
            raise ValueError(
                f"{arguments.data} has the splits {sorted(data)} but not {name!r}; name them with "
                f"--train-split and --eval-split, or give --eval-share or --eval-fold"
            )
    return concatenate_datasets([with_features(data[name]) for name in names.split("+")])


def with_features(data: Clips) -> Clips:
    """A stream of CSV or JSON lines knows its columns from its first row only."""
    if data.features is not None:
        return data
    return data.cast(Dataset.from_list([next(iter(data))]).features)


def divide(data: Clips, arguments: DataArguments) -> tuple[Clips, Clips]:
    """One split -> the clips to train on and those held out."""
    if arguments.eval_fold is not None and arguments.eval_share is not None:
        raise ValueError("--eval-fold and --eval-share both say what is held out; give one of them")
    if arguments.eval_share is not None:
        if not 0 < arguments.eval_share < 1:
            raise ValueError(
                f"--eval-share is {arguments.eval_share}; it must be between 0 and 1, e.g. 0.2"
            )
        if arguments.streaming:
            raise ValueError(
                "--eval-share draws from the whole data; with --streaming hold out a split or fold"
            )
        parts = data.train_test_split(test_size=arguments.eval_share, seed=SPLIT_SEED)
        return parts["train"], parts["test"]
    if isinstance(data, IterableDataset):
        name = check_column(data, arguments.fold_column, "--fold-column")
        return tuple(
            data.filter(partial(is_in_fold, name=name, fold=arguments.eval_fold, held_out=part))
            for part in (False, True)
        )
    folds = np.array(column(data, arguments.fold_column, "--fold-column"))
    is_held_out = folds == arguments.eval_fold
    if is_held_out.all() or not is_held_out.any():
        raise ValueError(
            f"--eval-fold is {arguments.eval_fold} but the column {arguments.fold_column!r} has "
            f"the folds {sorted(set(folds.tolist()))}; give one of them"
        )
    return data.select(np.flatnonzero(~is_held_out)), data.select(np.flatnonzero(is_held_out))


def is_in_fold(row: dict, name: str, fold: int | None, held_out: bool) -> bool:
    """Whether a row is of the fold, or else of the others."""
    return (row[name] == fold) == held_out


def separated(data: Clips, arguments: DataArguments) -> Clips:
    """Cells of several names become lists."""
    if arguments.label_separator is None:
        return data
    name = label_column(arguments, data)
    separate = partial(names_of, separator=arguments.label_separator)
    features = Features({**data.features, name: List(Value("string"))})
    if isinstance(data, IterableDataset):
        return data.map(lambda row: {name: separate(row[name])}, features=features)
    lists = [separate(cell) for cell in column(data, name, "--label-column")]
    return data.remove_columns(name).add_column(name, lists, feature=features[name])


def names_of(cell: object, separator: str) -> list[str]:
    """The names in a cell; an empty one has none."""
    return (
        []
        if cell is None
        else [part.strip() for part in str(cell).split(separator) if part.strip()]
    )


__all__ = [
    "Clips",
    "DataArguments",
    "Loaded",
    "is_exclusive",
    "label_column",
    "load",
    "load_data",
    "load_part",
    "read_classes",
]
