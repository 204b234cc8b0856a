"""The classes of a data set, from a class list or from the labels of its clips, and their check."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value

from ..labels import Label, read_label_file
from .data_arguments import LABEL_COLUMNS, DataArguments
from .data_report import DataReport

# The class lists of AudioSet, and of FSD50K: lines like 0,Accelerating,/m/07q2z82, without header.
CLASS_LIST = "class_labels_indices.csv"
VOCABULARIES = ("vocabulary.csv", "FSD50K.ground_truth/vocabulary.csv")
VOCABULARY_LINE = re.compile(r"0,[^,]+,/\w+/\w+\s*")
# With more classes a column of numbers holds no class indices, but names such as catalogue numbers.
MOST_CLASSES = 100_000
# Number of labels that a message names.
NAMED = 5
# The score of a class with fewer held-out clips than this is unreliable.
FEW_CLIPS = 5

Clips: TypeAlias = Dataset | IterableDataset


def check_column(data: Clips, name: str, flag: str) -> str:
    """Returns the name of a column after checking that the data has this column."""
    if name not in data.features:
        raise ValueError(
            f"the data has no column {name!r}; give {flag} one of {sorted(data.features)}"
        )
    return name


def column(data: Dataset, name: str, flag: str) -> list:
    """All values of a column."""
    return data.select_columns(check_column(data, name, flag))[:][name]


def label_column(arguments: DataArguments, data: Clips) -> str:
    """The label column that the arguments name, or the first column with a usual name."""
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


def class_list(arguments: DataArguments) -> Path | None:
    """The class list: the one that was given, or one beside the data or its files."""
    if arguments.label_csv:
        return Path(arguments.label_csv)
    folders = [folder for folder in (arguments.folder, arguments.root) if folder is not None]
    for folder in folders:
        if (folder / CLASS_LIST).is_file():
            return folder / CLASS_LIST
        for name in VOCABULARIES:
            if (folder / name).is_file() and _is_vocabulary(folder / name):
                return folder / name
    return None


def _is_vocabulary(path: Path) -> bool:
    """Whether a file is FSD50K's class list: vocabulary.csv is a common name."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return VOCABULARY_LINE.fullmatch(file.readline(1000)) is not None


def read_classes(arguments: DataArguments, *splits: Clips) -> list[Label]:
    """The classes, in the order of their indices.

    Args:
        arguments: They name a class list, or the data, which may have a class list.
        splits: The clips; if there is no class list, their labels are the classes.
    Raises:
        ValueError: The class list cannot be read, the labels are neither names nor indices, or a
            stream has no class list.
    """
    path = class_list(arguments)
    if path is not None:
        return read_label_file(path)
    name = label_column(arguments, splits[0])
    kind = splits[0].features[name]
    kind = getattr(kind, "feature", kind)
    if isinstance(kind, ClassLabel):
        return [Label(label, label) for label in kind.names]
    if arguments.streaming:
        raise ValueError(
            "the classes of a stream are unknown until its end; list them in a file with the "
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
    labels = [label for cell in cells for label in (cell if isinstance(cell, list) else [cell])]
    if labels and all(isinstance(label, str) for label in labels):
        numbers = all(label.isdecimal() for label in labels)
        return [Label(label, label) for label in sorted(set(labels), key=int if numbers else str)]
    indices = range(MOST_CLASSES)
    if labels and all(type(label) is int and label in indices for label in labels):
        return [Label(str(index), str(index)) for index in range(max(labels) + 1)]
    some = sorted({repr(label) for label in labels})[:3]
    raise ValueError(
        f"column {name!r} holds {', '.join(some) or 'no labels'}; labels must all be names, or all "
        f"class indices from 0 to at most {MOST_CLASSES - 1}; give the right column with "
        f"--label-column"
    )


def label_names(clips: Dataset, name: str) -> list[list[str]]:
    """The labels of each clip as strings."""
    kind = clips.features[name]
    kind = getattr(kind, "feature", kind)
    rows = [labels_in(cell) for cell in column(clips, name, "--label-column")]
    if not isinstance(kind, ClassLabel):
        return [[str(label) for label in row] for row in rows]
    return [[str(label) if label < 0 else kind.int2str(label) for label in row] for row in rows]


def labels_in(cell: Any) -> list[Any]:
    """The labels in a cell; none in an empty one."""
    return cell if isinstance(cell, list) else [] if cell in (None, "") else [cell]


def name_numbers(
    splits: dict[str, Dataset], arguments: DataArguments
) -> tuple[dict[str, Dataset], list[str]]:
    """Turns labels that are numbers counted from 1 into names.

    Returns:
        The splits, with names where there were such numbers, and then a warning.
    Raises:
        ValueError: There is a class list, and the numbers do not fit it.
    """
    given = {split: label_column(arguments, clips) for split, clips in splits.items()}
    numbers: set[int] = set()
    for split, clips in splits.items():
        kind = clips.features[given[split]]
        kind = getattr(kind, "feature", kind)
        if not isinstance(kind, Value) or not kind.dtype.startswith(("int", "uint")):
            return splits, []
        for cell in column(clips, given[split], "--label-column"):
            numbers.update(label for label in labels_in(cell) if label is not None)
    if not numbers or min(numbers) != 1:
        return splits, []
    path = class_list(arguments)
    if path is not None:
        count = len(read_label_file(path))
        if max(numbers) < count:
            return splits, []
        raise ValueError(
            f"the column {next(iter(given.values()))!r} holds the numbers 1 to {max(numbers)}, but "
            f"the {count} labels of {path} are counted from 0; subtract 1 in the column"
        )
    named = {split: as_names(clips, given[split]) for split, clips in splits.items()}
    warning = (
        f"the labels are counted from 1 (1 to {max(numbers)}), not from 0; they are used as the "
        f"names of {len(numbers)} classes"
    )
    return named, [warning]


def as_names(clips: Dataset, name: str) -> Dataset:
    """The data set with the numbers of a column as strings."""
    cells = column(clips, name, "--label-column")
    several = hasattr(clips.features[name], "feature")
    names = [[str(label) for label in cell] if several else str(cell) for cell in cells]
    kind = List(Value("string")) if several else Value("string")
    features = Features({name: kind})
    return clips.remove_columns(name).add_column(name, names, feature=features[name])


def check_labels(
    report: DataReport, classes: Sequence[Label], train: str | None, held_out: str | None
) -> None:
    """Compares the labels that were counted with the classes.

    Args:
        report: The labels in it are renamed to their classes, and warnings are added.
        classes: From `read_classes`.
        train, held_out: The names of these splits in the report; None if a split is not used or not
            counted.
    Raises:
        ValueError: A label is no class, or all clips to train on have the same one label.
    """
    keys = {key for label in classes for key in label}
    indices = {str(index) for index in range(len(classes))}
    unknown = [label for label in report.labels if label not in keys and label not in indices]
    if unknown:
        raise ValueError(
            f"{some(unknown)} {'is' if len(unknown) == 1 else 'are'} among the labels of the clips "
            f"but not among the {len(classes)} classes; extend the class list, or correct the table"
        )
    report.rename(names_of_labels(report, classes))
    found = {name: labels_of_split(report, name) for name in (train, held_out) if name}
    if train and len(found[train]) == 1:
        (only,) = found[train]
        if report.labels[only][train] == report.used[train]:
            raise ValueError(
                f"all {report.used[train]} clips to train on have the same label {only!r}, so that "
                f"there is nothing to learn; give clips of at least two classes"
            )
    report.warnings += differ_by_case(report.labels)
    names = [label.name for label in classes]
    if train and held_out:
        for here, there, what in (
            (train, held_out, "to train on"),
            (held_out, train, "that is held out"),
        ):
            lacking = [name for name in names if name in found[there] and name not in found[here]]
            if lacking:
                report.warnings.append(f"no clip {what} has the label {some(lacking)}")
    if held_out and (few := few_clips(report, held_out)):
        report.warnings.append(few)
    if train:
        unused = [name for name in names if not any(name in labels for labels in found.values())]
        if unused:
            report.warnings.append(
                f"no clip for {len(unused)} of the {len(classes)} classes: {some(unused)}"
            )


def names_of_labels(report: DataReport, classes: Sequence[Label]) -> dict[str, str]:
    """Label as it is in the data -> name of its class."""
    keys = {key: label.name for label in classes for key in label}
    numbers = {str(index): label.name for index, label in enumerate(classes)}
    # A number is a class index only if no class has it as its name.
    return numbers | keys


def labels_of_split(report: DataReport, split: str) -> set[str]:
    """The labels of the clips of a split."""
    return {label for label, counts in report.labels.items() if counts.get(split)}


def few_clips(report: DataReport, held_out: str) -> str | None:
    """A warning if classes have very few held-out clips."""
    counts = {label: own.get(held_out, 0) for label, own in report.labels.items()}
    few = sorted(label for label, count in counts.items() if 0 < count < FEW_CLIPS)
    if not few:
        return None
    return (
        f"fewer than {FEW_CLIPS} held-out clips for {len(few)} of the {len(counts)} classes, which "
        f"makes these scores unreliable: {some(few)}"
    )


def differ_by_case(labels: Iterable[str]) -> list[str]:
    """A warning for each pair of labels that look the same."""
    spellings: dict[str, list[str]] = {}
    for label in labels:
        plain = unicodedata.normalize("NFKC", label).casefold()
        plain = " ".join(plain.replace("_", " ").split())
        spellings.setdefault(plain, []).append(label)
    return [
        f"the labels {' and '.join(map(repr, same))} differ only in case, spaces or the encoding "
        f"of accents, but count as {len(same)} classes; spell them alike if they mean one class"
        for same in spellings.values()
        if len(same) > 1
    ]


def some(names: Sequence[str]) -> str:
    """A few of the names, for a message."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


__all__ = [
    "CLASS_LIST",
    "Clips",
    "check_column",
    "check_labels",
    "class_list",
    "column",
    "is_exclusive",
    "label_column",
    "label_names",
    "labels_in",
    "name_numbers",
    "read_classes",
    "some",
]
