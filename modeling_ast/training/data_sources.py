"""Loads the clips of a fine-tuning and reports on each file; the audio is not decoded here.

`sources.py` describes what DATA may be, and `parts.py` which part of it is held out. If the label
column holds lists, a clip may have several labels; otherwise it has exactly one, a name or a class
index. Several names in one cell are separated by `--label-separator`.

`datasets` memory-maps the data from a copy on disk. With `--streaming` the clips to train on are
read as a stream and never stored; all other clips are stored, so that each is counted once.
"""

from __future__ import annotations

import hashlib
import json
import os
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
from .clips import ClipReader, name_of
from .data_arguments import DataArguments
from .data_report import DataReport, LocalData
from .grouping import count_groups, groups_of
from .parts import (
    HELD_OUT,
    TRAIN,
    VALIDATION,
    chosen_splits,
    far_off,
    free_validation_split,
    is_drawn,
    parts_of,
)
from .shared_beginnings import shared_beginnings
from .sources import Source, cache_of, read_source

STORED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}


class Loaded(NamedTuple):
    """The parts of a data set, with the report on each of its files."""

    train: Clips | None
    held_out: Dataset | None  # only for the final scores; it decides nothing
    report: DataReport
    # The names of the parts in the report; None if a part does not exist or is not counted.
    train_name: str | None
    held_out_name: str | None
    # Decides which epoch is best and when to stop; None if no clips were set aside.
    validation: Dataset | None = None
    validation_name: str | None = None
    # A split that could decide it, by its name; None if there is none.
    validation_split: str | None = None

    def fingerprint(self, arguments: DataArguments) -> str | None:
        """Tells other clips, labels or parts from these; None for a stream, which is not read.

        It is made of the labels and, where the clips are files, of their paths in the data's
        folder, so that a folder may be moved together with its runs.
        """
        root = "" if arguments.root is None else os.path.join(os.path.abspath(arguments.root), "")
        digest = hashlib.blake2b(digest_size=16)
        for clips in (self.train, self.validation, self.held_out):
            if isinstance(clips, IterableDataset):
                return None
            if clips is not None:
                labels = list(clips[label_column(arguments, clips)])
                paths = _paths(clips, arguments.audio_column) or ()
                paths = [path and path.removeprefix(root) for path in paths]
                spans = _spans(clips, arguments.audio_column)
                digest.update(json.dumps((labels, paths, *spans)).encode())
            digest.update(b"|")
        return digest.hexdigest()

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
    assert loaded.train is not None and loaded.held_out is not None  # both were requested
    return loaded.train, loaded.held_out


def load_part(arguments: DataArguments, held_out: bool) -> Clips:
    """The held-out clips, or those to train on; the data need not have the other part.

    Raises:
        OSError, ValueError: As `load_data`.
    """
    loaded = load(arguments, train=not held_out, held_out=held_out)
    part = loaded.held_out if held_out else loaded.train
    assert part is not None  # it was requested
    return part


def load(arguments: DataArguments, train: bool = True, held_out: bool = True) -> Loaded:
    """Loads the training, validation and held-out clips, and reports on each file.

    Args:
        arguments: With `streaming` the clips to train on are a stream.
        train, held_out: Whether to return this part. The data need not have the other part, which
            is only counted. Validation clips are returned with the training clips.
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
    # Counting an unused part of a data set on the Hub could take hours.
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
    elif wanted >= {TRAIN, HELD_OUT} and counted.keys() >= {TRAIN, HELD_OUT}:
        report.warnings += shared_beginnings(counted[TRAIN], counted[HELD_OUT], arguments)
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
        free_validation_split(splits, arguments),
    )


def with_named_numbers(
    parts: dict[str, Clips], arguments: DataArguments
) -> tuple[dict[str, Clips], list[str]]:
    """Calls `name_numbers` if all parts are stored (no streams) and have a label column."""
    try:
        is_stored = all(isinstance(clips, Dataset) for clips in parts.values())
        named = [label_column(arguments, clips) for clips in parts.values()]
    except ValueError:
        # A missing label column is an error only where the labels are needed.
        return parts, []
    return name_numbers(parts, arguments) if is_stored and named else (parts, [])


def names_of_parts(parts: Mapping[str, Clips], arguments: DataArguments) -> dict[str, str]:
    """Part -> its name in the report: the name of its split, or of its purpose."""
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
    """Counts the clips and labels of each part that is not a stream.

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
    """The clips of splits that are not used."""
    reason = "in the split {!r}, which is neither trained on nor held out"
    return [
        Skipped(file if isinstance(file, str) else file["path"], reason.format(name))
        for name in splits
        if name not in used
        for file in column(splits[name], arguments.audio_column, "--audio-column")
    ]


def streamed(part: str, clips: Clips, arguments: DataArguments) -> Clips:
    """Turns the training clips into a stream, and stores all other clips."""
    if isinstance(clips, Dataset):
        return clips.to_iterable_dataset() if part == TRAIN else clips
    return clips if part == TRAIN else stored(part, clips, arguments)


def stored(part: str, stream: IterableDataset, arguments: DataArguments) -> Dataset:
    """Stores a stream's clips in the cache of `datasets`, where later runs find them."""
    # A column of type Audio could only be written with torchcodec.
    kinds = {
        name: dict(STORED_AUDIO) if isinstance(kind, Audio) else kind
        for name, kind in stream.features.items()
    }
    chosen = ("data", "data_config", "eval_split", "fold_column", "eval_fold", "label_separator")
    names = [part, *(str(getattr(arguments, name)) for name in (*chosen, "validation_split"))]
    if arguments.root is not None:
        names.append(cache_of(Path(str(arguments.data))))
    # Without a fingerprint `datasets` would not recognise the stream in another process.
    fingerprint = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()
    return Dataset.from_generator(
        stream.__iter__, features=Features(kinds), fingerprint=fingerprint
    )


def clip_names(clips: Dataset, reader: ClipReader) -> Iterable[str]:
    """The names of all clips; a clip with a path is named without reading its audio."""
    paths = None if reader.id_column is not None else _paths(clips, reader.audio_column)
    if paths is None:
        return (reader.name(row) for row in clips)
    starts, ends = _spans(clips, reader.audio_column) or [[None] * len(paths)] * 2
    return (
        name_of(path, start, end) if path else reader.name(clips[index])
        for index, (path, start, end) in enumerate(zip(paths, starts, ends))
    )


def _paths(clips: Dataset, audio_column: str) -> list[str | None] | None:
    """The path of each clip, without reading its audio; None if the clips have no paths."""
    if getattr(clips.features.get(audio_column), "dtype", None) == "string":
        return list(clips[audio_column])
    return _field(clips, f"{audio_column}.path")


def _spans(clips: Dataset, audio_column: str) -> list[list[float | None]]:
    """The starts and the ends of the clips; empty if they are no segments of files."""
    starts, ends = (_field(clips, f"{audio_column}.{name}") for name in ("start", "end"))
    return [] if starts is None or ends is None else [starts, ends]


def _field(clips: Dataset, name: str) -> list | None:
    """The values of a field of a column, such as "audio.path"; None if there is no such field."""
    flat = clips.flatten()
    if name not in flat.column_names:
        return None
    # flatten() keeps the old names in the format, which must be the new ones.
    return list(flat.with_format(None).select_columns(name)[:][name])


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
