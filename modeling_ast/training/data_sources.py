"""The clips of a fine-tuning and what became of each file; the audio itself is not decoded here.

What DATA may be stands in `sources.py`, which part of it is held out in `parts.py`. A label
column that holds lists has several labels to a clip; any other has exactly one, a name or a class
index. Several names in one cell are separated by `--label-separator`.

Data of `datasets` is memory-mapped, from a copy that it keeps on disk. With `--streaming` the clips
to train on are read as they come and never stored; all others are stored, so that each is counted
once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from datasets import Audio, Dataset, DatasetDict, Features, IterableDataset, Value

from ..audio_files import Skipped
from .classes import (
    Clips,
    column,
    is_exclusive,
    label_column,
    label_names,
    name_numbers,
    read_classes,
)
from .clips import ClipReader
from .data_arguments import DataArguments
from .data_report import DataReport, LocalData
from .grouping import count_groups, groups_of
from .parts import (
    HELD_OUT,
    TRAIN,
    VALIDATION,
    chosen_splits,
    far_off,
    is_drawn,
    parts_of,
)
from .sources import Source, cache_of, read_source

STORED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}


class Loaded(NamedTuple):
    """A data set, divided, with what became of each of its files."""

    train: Clips | None
    held_out: Dataset | None  # is judged, and decides nothing
    report: DataReport
    # The names of the parts in the report; None where one is not there or not counted.
    train_name: str | None
    held_out_name: str | None
    # Decides which epoch is best and when to stop; None where nothing was set aside.
    validation: Dataset | None = None
    validation_name: str | None = None

    def skip_bad_clips(
        self, bad: Mapping[str, str], reader: ClipReader, arguments: DataArguments
    ) -> None:
        """Moves the clips that could not be decoded to the report's skipped ones.

        Args:
            bad: Name -> reason, as `BadClips.read` gives it.
            reader: Names the clips.
        """
        parts = (
            (self.train_name, self.train),
            (self.validation_name, self.validation),
            (self.held_out_name, self.held_out),
        )
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
    assert loaded.train is not None and loaded.held_out is not None  # both are wanted
    return loaded.train, loaded.held_out


def load_part(arguments: DataArguments, held_out: bool) -> Clips:
    """The clips held out, or those to train on; the data need not have the other part.

    Raises:
        OSError, ValueError: As `load_data`.
    """
    loaded = load(arguments, train=not held_out, held_out=held_out)
    part = loaded.held_out if held_out else loaded.train
    assert part is not None  # it is wanted
    return part


def load(arguments: DataArguments, train: bool = True, held_out: bool = True) -> Loaded:
    """The clips to train on, those that decide, those held out, and what became of each file.

    Args:
        arguments: With `streaming` the clips to train on are a stream.
        train, held_out: Whether this part is wanted: the data need not have the other one, which is
            only counted. Those that decide belong to those to train on.
    Raises:
        OSError, ValueError: There is no such data set, split, fold or column, or no clip.
    """
    source = read_source(arguments)
    local = source if isinstance(source, LocalData) else None
    splits = source if local is None else DatasetDict(local.splits)
    if not isinstance(splits, Source):
        raise ValueError(f"{arguments.data} has no splits")
    report = DataReport(str(arguments.data))
    if local:
        report.leave_out(local.skipped)
        report.missing += local.missing
        report.warnings += local.warnings
    arguments, warnings = chosen_splits(splits, arguments)
    report.warnings += warnings
    wanted = {part for part, is_wanted in ((TRAIN, train), (HELD_OUT, held_out)) if is_wanted}
    # Of data that is not ours, to count what is not wanted could take hours.
    parts = parts_of(splits, arguments, wanted, others=local is not None)
    parts, warnings = with_named_numbers(parts, arguments)
    report.warnings += warnings
    if arguments.streaming and not local:
        parts = {name: streamed(name, clips, arguments) for name, clips in parts.items()}
    names = names_of_parts(parts, arguments)
    counted = count_parts(report, parts, names, arguments)
    report.warnings += far_off(counted, arguments)
    if local:
        used = {*arguments.train_split.split("+"), arguments.validation_split}
        if not is_drawn(arguments):
            used.add(arguments.eval_split)
        report.skipped += [
            entry._replace(file=report.short(entry.file))
            for entry in unused_splits(splits, used, arguments)
        ]
    if arguments.streaming and local:
        parts = {name: streamed(name, clips, arguments) for name, clips in parts.items()}
    if train:
        wanted.add(VALIDATION)
    if arguments.group_by is not None:
        groups = {
            names[part]: groups_of(clips, arguments) or []
            for part, clips in counted.items()
            if part in wanted
        }
        report.groups = count_groups(groups, arguments.group_by)
    parts = {part: clips for part, clips in parts.items() if part in wanted}
    names = {part: names[part] for part in parts if part in counted}
    return Loaded(
        parts.get(TRAIN),
        parts.get(HELD_OUT),
        report,
        names.get(TRAIN),
        names.get(HELD_OUT),
        parts.get(VALIDATION),
        names.get(VALIDATION),
    )


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


def names_of_parts(parts: Mapping[str, Clips], arguments: DataArguments) -> dict[str, str]:
    """Part -> the name that the report has for it: its split's, or what it stands for."""
    names = {
        TRAIN: arguments.train_split,
        VALIDATION: arguments.validation_split or "validation",
        HELD_OUT: "test" if is_drawn(arguments) else arguments.eval_split,
    }
    for part in (VALIDATION, HELD_OUT):
        if names[part] in [names[other] for other in parts if other != part]:
            names[part] += f" ({part})"
    return names


def count_parts(
    report: DataReport,
    parts: Mapping[str, Clips],
    names: Mapping[str, str],
    arguments: DataArguments,
) -> dict[str, Dataset]:
    """Counts the clips and labels of each part but streams.

    Returns:
        The parts that were counted.
    """
    counted: dict[str, Dataset] = {}
    for part, clips in parts.items():
        if isinstance(clips, IterableDataset):
            report.used[names[part]] = None
            continue
        counted[part] = clips
        try:
            labels = label_names(clips, label_column(arguments, clips))
        except ValueError:
            labels = None
        report.count(names[part], labels, len(clips))
    return counted


def unused_splits(
    splits: Source, used: Iterable[str | None], arguments: DataArguments
) -> list[Skipped]:
    """The clips of splits that are used for nothing."""
    reason = "in the split {!r}, which is neither trained on nor held out"
    return [
        Skipped(file if isinstance(file, str) else file["path"], reason.format(name))
        for name in splits
        if name not in used
        for file in column(splits[name], arguments.audio_column, "--audio-column")
    ]


def streamed(part: str, clips: Clips, arguments: DataArguments) -> Clips:
    """The clips to train on as a stream; all others stored."""
    if isinstance(clips, Dataset):
        return clips.to_iterable_dataset() if part == TRAIN else clips
    return clips if part == TRAIN else stored(part, clips, arguments)


def stored(part: str, stream: IterableDataset, arguments: DataArguments) -> Dataset:
    """A stream's clips in the cache of `datasets`, where another run finds them."""
    # A column of type Audio could only be written with torchcodec.
    kinds = {
        name: dict(STORED_AUDIO) if isinstance(kind, Audio) else kind
        for name, kind in stream.features.items()
    }
    chosen = ("data", "data_config", "eval_split", "fold_column", "eval_fold", "label_separator")
    names = [part, *(str(getattr(arguments, name)) for name in (*chosen, "validation_split"))]
    if arguments.root is not None:
        names.append(cache_of(Path(str(arguments.data))))
    # Without it `datasets` would not recognise the stream in another process.
    fingerprint = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()
    return Dataset.from_generator(
        stream.__iter__, features=Features(kinds), fingerprint=fingerprint
    )


def clip_names(clips: Dataset, reader: ClipReader) -> Iterable[str]:
    """The names of all clips; the audio of those that have a path is not read for it."""
    flat = clips.flatten()
    column = f"{reader.audio_column}.path"
    if reader.id_column is not None or column not in flat.column_names:
        return (reader.name(row) for row in clips)
    paths = flat.select_columns(column)[:][column]
    return (path or reader.name(clips[index]) for index, path in enumerate(paths))


__all__ = [
    "Clips",
    "DataArguments",
    "Loaded",
    "clip_names",
    "is_exclusive",
    "label_column",
    "load",
    "load_data",
    "load_part",
    "read_classes",
]
