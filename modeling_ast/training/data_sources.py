"""Where the clips and labels of a fine-tuning come from; the audio itself is not decoded here.

DATA is one of
- a data set on the Hub, such as agkphysics/AudioSet, or a directory of its parquet files;
- a directory with one folder of audio files per label, which may lie below train/ and test/;
- a CSV, JSON lines or parquet file with a column of audio or of paths (`--audio-column`), or a
  directory with train.csv and test.csv. Paths start from where the file is.

A label column that holds lists has several labels to a clip; any other has exactly one, a name or a
class index. Several names in one cell are separated by `--label-separator`. What is held out is a
split, a fold (`--eval-fold`) or a share drawn at random (`--eval-share`).

Data is memory-mapped, from a copy that `datasets` keeps on disk. With `--streaming` the clips to
train on are read as they come and never stored; those held out are stored, so that each is counted
once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from datasets import (
    Audio,
    ClassLabel,
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

from ..audio import AUDIO_SUFFIXES
from ..errors import one_line
from ..labels import Label, read_label_file
from .clips import FOLDER_FEATURES, undecoded

CLASS_LIST = "class_labels_indices.csv"
LABEL_COLUMNS = ("labels", "label", "category", "target")
LOSSES = ("auto", "bce", "cross_entropy")
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
STORED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}
# The split at random is the same in every run, so that runs can be compared and resumed.
SPLIT_SEED = 0


@dataclass
class DataArguments:
    """Which data set, its columns, and what is held out."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "name on the Hub, directory, or CSV, JSON or parquet file",
            "aliases": ["--dataset"],
        },
    )
    data_config: str | None = field(default=None, metadata={"help": "e.g. balanced"})
    train_split: str = field(default="train", metadata={"help": "split to train on; or a+b"})
    eval_split: str = field(default="test", metadata={"help": "held-out split"})
    fold_column: str = field(default="fold", metadata={"help": "column with the number of a fold"})
    eval_fold: int | None = field(
        default=None, metadata={"help": "hold this fold of the training split out, not a split"}
    )
    eval_share: float | None = field(
        default=None, metadata={"help": "hold this share of it out at random, not a split"}
    )
    audio_column: str = field(default="audio", metadata={"help": "column of audio or of paths"})
    label_column: str | None = field(
        default=None, metadata={"help": f"by default the first of {', '.join(LABEL_COLUMNS)}"}
    )
    label_separator: str | None = field(
        default=None, metadata={"help": "separates several names in one cell, e.g. ';'"}
    )
    label_csv: str | None = field(
        default=None,
        metadata={"help": f"index,mid,display_name; by default DATA's {CLASS_LIST}, or the data"},
    )
    loss: str = field(
        default="auto",
        metadata={
            "help": "bce or cross_entropy; auto: cross_entropy where a clip has exactly one label",
            "choices": LOSSES,
        },
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "stop when more clips than this cannot be decoded"}
    )
    streaming: bool = field(
        default=False, metadata={"help": "read the clips to train on as they come, without a copy"}
    )
    train_clips: int | None = field(
        default=None, metadata={"help": "clips in an epoch of a stream, whose length is unknown"}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "clips of a stream that each next one is drawn from"}
    )

    def __post_init__(self):
        # A recipe's values do not pass argparse's check of the choices.
        if self.loss not in LOSSES:
            raise ValueError(f"--loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")

    @property
    def root(self) -> Path | None:
        """The directory that relative paths start from; None where the data has no place here."""
        path = Path(self.data)
        return path.parent if path.is_file() else path if path.is_dir() else None


Source = DatasetDict | IterableDatasetDict
Clips = Dataset | IterableDataset


def load_data(arguments: DataArguments) -> tuple[Clips, Dataset]:
    """The clips to train on and those held out; the audio is not decoded.

    Args:
        arguments: With `streaming` the clips to train on are a stream.
    Raises:
        OSError, ValueError: There is no such data set, split, fold or column.
    """
    data = read_source(arguments)
    train, held_out = (part_of(data, arguments, held_out=part) for part in (False, True))
    return train, stored(held_out, arguments) if arguments.streaming else held_out


def load_part(arguments: DataArguments, held_out: bool) -> Clips:
    """The clips held out, or those to train on; the data need not have the other part.

    Raises:
        OSError, ValueError: As `load_data`.
    """
    return part_of(read_source(arguments), arguments, held_out)


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
        names.append(cache_of(Path(arguments.data)))
    # Without it `datasets` would not recognise the stream in another process.
    fingerprint = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()
    return Dataset.from_generator(
        stream.__iter__, features=Features(kinds), fingerprint=fingerprint
    )


def part_of(data: Source, arguments: DataArguments, held_out: bool) -> Clips:
    """What is held out of a data set, or what is not."""
    if not isinstance(data, Source):
        raise ValueError(f"{arguments.data} has no splits")
    if arguments.eval_fold is None and arguments.eval_share is None:
        part = split_of(
            data, arguments.eval_split if held_out else arguments.train_split, arguments
        )
    else:
        whole = split_of(data, arguments.train_split, arguments)
        part = divide(whole, arguments)[held_out]
    return undecoded(separated(part, arguments), arguments.audio_column)


def read_source(arguments: DataArguments) -> Source:
    """The data set with all its splits.

    Raises:
        OSError, ValueError: It is nowhere to be found, a file of another kind, or damaged.
    """
    try:
        return _load_source(arguments)
    except DatasetsError as error:
        cause = error.__cause__ or error
        raise ValueError(f"{arguments.data} cannot be read: {one_line(cause)}") from error


def _load_source(arguments: DataArguments) -> Source:
    path, shared = Path(arguments.data), {"streaming": arguments.streaming}
    if path.is_file():
        if path.suffix not in READERS:
            raise ValueError(f"{path} is no data set; give one of *{', *'.join(READERS)}")
        options = {"data_files": {arguments.train_split: str(path)}, "cache_dir": cache_of(path)}
        options |= shared
        if path.suffix == ".tsv":
            options["sep"] = "\t"
        return load_dataset(READERS[path.suffix], **options)
    if not path.is_dir():
        try:
            return load_dataset(arguments.data, arguments.data_config, **shared)
        except OSError as error:
            raise OSError(
                f"{arguments.data!r} is no file or directory here, and as a data set of the Hub it "
                f"cannot be loaded ({one_line(error)}); give another --data"
            ) from error
    shared["cache_dir"] = cache_of(path)
    if holds_audio_files_only(path):
        # Without a look at the audio, which datasets 5 would decode with torchcodec.
        options = {"features": FOLDER_FEATURES, **shared}
        return load_dataset("audiofolder", data_dir=str(path), **options)
    return load_dataset(arguments.data, arguments.data_config, **shared)


def holds_audio_files_only(folder: Path) -> bool:
    """Whether a directory is one of audio files, without a table that describes them."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.name != CLASS_LIST}
    return bool(suffixes & AUDIO_SUFFIXES) and not suffixes & set(READERS)


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
    if arguments.streaming:
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


def is_in_fold(row: dict, name: str, fold: int, held_out: bool) -> bool:
    """Whether a row is of the fold, or else of the others."""
    return (row[name] == fold) == held_out


def separated(data: Clips, arguments: DataArguments) -> Clips:
    """Cells of several names become lists."""
    if arguments.label_separator is None:
        return data
    name = label_column(arguments, data)
    separate = partial(names_of, separator=arguments.label_separator)
    features = Features({**data.features, name: List(Value("string"))})
    if arguments.streaming:
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


def check_column(data: Clips, name: str, flag: str) -> str:
    """The name of a column that the data has."""
    if name not in data.features:
        raise ValueError(
            f"the data has no column {name!r}; give {flag} one of {sorted(data.features)}"
        )
    return name


def column(data: Dataset, name: str, flag: str) -> list:
    """All values of a column."""
    return data.select_columns(check_column(data, name, flag))[:][name]


def label_column(arguments: DataArguments, data: Clips) -> str:
    """The column of labels that was named, or the first usual one."""
    if arguments.label_column is None:
        usual = [name for name in LABEL_COLUMNS if name in data.features]
        if not usual:
            raise ValueError(
                f"the data has none of the columns {', '.join(LABEL_COLUMNS)}; give --label-column "
                f"one of {sorted(data.features)}"
            )
        return usual[0]
    return check_column(data, arguments.label_column, "--label-column")


def is_exclusive(arguments: DataArguments, data: Clips) -> bool:
    """Whether a clip has exactly one label."""
    return not hasattr(data.features[label_column(arguments, data)], "feature")


def read_classes(arguments: DataArguments, *splits: Clips) -> list[Label]:
    """The classes, in the order of their indices.

    Args:
        arguments: Name a class list, or data that has one, or whose labels are all looked at.
        splits: The clips whose labels count where there is no class list.
    Raises:
        ValueError: The class list cannot be read, the labels are neither names nor indices, or a
            stream has no class list.
    """
    path = Path(arguments.label_csv or Path(arguments.data) / CLASS_LIST)
    if arguments.label_csv or path.is_file():
        return read_label_file(path)
    name = label_column(arguments, splits[0])
    kind = splits[0].features[name]
    kind = getattr(kind, "feature", kind)
    if isinstance(kind, ClassLabel):
        return [Label(label, label) for label in kind.names]
    if arguments.streaming:
        raise ValueError(
            "the classes of a stream are not known before its end; list them in a file with the "
            "columns index,mid,display_name and give it as --label-csv"
        )
    if name == "labels" and "human_labels" in splits[0].features:
        columns = [split.select_columns(["labels", "human_labels"]) for split in splits]
        rows = (row for column in columns for row in column)
        pairs = {pair for row in rows for pair in zip(row["labels"], row["human_labels"])}
        return [Label(mid, label) for mid, label in sorted(pairs)]
    return classes_of([cell for split in splits for cell in column(split, name, "")], name)


def classes_of(cells: list, name: str) -> list[Label]:
    """The classes in a column of labels: names in alphabetical order, or all indices from 0."""
    labels = {label for cell in cells for label in (cell if isinstance(cell, list) else [cell])}
    if labels and all(isinstance(label, str) for label in labels):
        return [Label(label, label) for label in sorted(labels)]
    if labels and all(isinstance(label, int) and label >= 0 for label in labels):
        return [Label(str(index), str(index)) for index in range(max(labels) + 1)]
    some = sorted(map(repr, labels))[:3]
    raise ValueError(
        f"column {name!r} holds {', '.join(some) or 'no labels'}; labels must all be names, or all "
        f"class indices from 0, so name the right one with --label-column"
    )


__all__ = [
    "CLASS_LIST",
    "Clips",
    "DataArguments",
    "is_exclusive",
    "label_column",
    "load_data",
    "load_part",
    "read_classes",
]
