"""The held-out clips: their labels, their classes, and the metrics of a model's scores on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset

from ..configuration_ast import ASTConfig
from ..labels import Label, distinct_names
from .batches import LabelEncoder
from .classes import check_labels, is_exclusive, label_column, read_classes
from .clips import ClipReader, undecoded
from .data_arguments import DataArguments
from .data_sources import Loaded, load
from .grouping import groups_of
from .metrics import accuracy, tagging_metrics


class HeldOut(NamedTuple):
    """The held-out clips, with their labels."""

    clips: Dataset
    reader: ClipReader
    classes: Sequence[Label]
    targets: np.ndarray  # (clips, C), zeros and ones
    exclusive: bool  # whether a clip has exactly one label
    groups: Sequence[str] | None = None  # group of each clip, with --group-by

    def select(self, indices: Sequence[int]) -> HeldOut:
        """Some of the clips."""
        clips, targets = self.clips.select(indices), self.targets[np.asarray(indices, int)]
        groups = None if self.groups is None else [self.groups[index] for index in indices]
        return self._replace(clips=clips, targets=targets, groups=groups)


def read_held_out(data: DataArguments) -> HeldOut:
    """The held-out clips with their labels; no audio is read.

    Raises:
        OSError, ValueError: The data cannot be read.
    """
    return load_held_out(data)[0]


def load_held_out(data: DataArguments) -> tuple[HeldOut, Loaded]:
    """The held-out clips with their labels, and the report on each file; no audio is read.

    Raises:
        OSError, ValueError: The data cannot be read.
    """
    loaded = load(data, train=False)
    clips = loaded.held_out
    classes = read_classes(data, clips)
    check_labels(loaded.report, classes, None, loaded.held_out_name)
    reader = ClipReader(audio_column=data.audio_column, root=data.root)
    held_out = held_out_clips(
        clips,
        reader,
        classes,
        label_column(data, clips),
        is_exclusive(data, clips),
        groups_of(clips, data),
    )
    return held_out, loaded


def held_out_clips(
    clips: Dataset,
    reader: ClipReader,
    classes: Sequence[Label],
    column: str,
    exclusive: bool,
    groups: Sequence[str] | None = None,
) -> HeldOut:
    """The clips of a data set with their labels; no audio is read.

    Args:
        clips: Rows with undecoded audio.
        reader: Finds the clip of a row.
        classes: In the order of the columns of scores.
        column: The label column.
        exclusive: Whether a clip has exactly one label.
        groups: Group of each clip, from `grouping.groups_of`.
    Raises:
        ValueError: A label is not one of the classes.
    """
    label2id = {key: index for index, label in enumerate(classes) for key in label}
    encode = LabelEncoder(label2id, multi_label=True, num_labels=len(classes))
    targets = [encode(row[column]) for row in clips.select_columns(column)]
    return HeldOut(
        undecoded(clips, reader.audio_column),
        reader,
        classes,
        torch.stack(targets).numpy(),
        exclusive,
        groups,
    )


def columns_of(config: ASTConfig, classes: Sequence[Label]) -> list[int]:
    """The model's class index of each of the data's classes, matched by MID or by name.

    Raises:
        ValueError: The model lacks a class.
    """
    label2id = {name: index for index, name in enumerate(distinct_names(config.id2label))}
    found = [[label2id[key] for key in label if key in label2id] for label in classes]
    missing = [label.name for label, indices in zip(classes, found) if not indices]
    if missing:
        name = config.name_or_path or "the model"
        raise ValueError(
            f"{name} does not know {len(missing)} of the {len(classes)} classes, such as "
            f"{missing[:3]}; it knows {list(label2id)[:3]}, ...; give the label column as "
            f"--label-column, or a --label-csv with the model's names"
        )
    return [indices[0] for indices in found]


def judge(scores: np.ndarray, held_out: HeldOut) -> dict[str, float]:
    """The metrics of probabilities (clips, C)."""
    metrics = tagging_metrics(scores, held_out.targets)
    if held_out.exclusive:
        return {"accuracy": accuracy(scores, held_out.targets.argmax(1))} | metrics
    return metrics


__all__ = [
    "HeldOut",
    "columns_of",
    "held_out_clips",
    "judge",
    "load_held_out",
    "read_held_out",
]
