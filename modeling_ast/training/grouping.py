"""Which clips belong together: those of one speaker, kit, place or recording (`--group-by`).

Clips of a group are alike in more than their label. A model that was trained on one of them knows
the others in part, and a score from these flatters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePath

from datasets import Dataset

from .classes import column, label_column, some
from .data_arguments import DataArguments


def groups_of(clips: Dataset, arguments: DataArguments) -> list[str] | None:
    """The group of each clip; None if they are in no groups.

    Args:
        clips: Rows with undecoded audio.
        arguments: `group_by` is a column, or else a pattern that is searched in the path of each
            file from the data's folder, with slashes; what its groups match is the clip's group.
    Raises:
        ValueError: It is neither, or says nothing about some of the clips.
    """
    wanted = arguments.group_by
    if wanted is None:
        return None
    names = paths_of(clips, arguments)
    if wanted == arguments.audio_column and all(names):
        return names  # several rows may be of one file
    if wanted in clips.features:
        return by_column(clips, arguments, names)
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise ValueError(
            f"--group-by is {wanted!r}, which is no column of the data (it has "
            f"{sorted(clips.features)}) and no regular expression ({error}); give one of the two"
        ) from error
    if not pattern.groups:
        raise ValueError(
            f"--group-by is {wanted!r}, which is no column of the data (it has "
            f"{sorted(clips.features)}) and, as a pattern, has no group in parentheses; give a "
            f"column, or a pattern such as '([^/_]+)_[^/]*$' for bark/SPEAKER_3.wav"
        )
    if not all(names):
        raise ValueError(
            f"--group-by is the pattern {wanted!r}, but {names.count('')} of the {len(names)} "
            f"clips have no file name; give one of the columns {sorted(clips.features)}"
        )
    found = [pattern.search(name) for name in names]
    parts = [[part for part in match.groups() if part] if match else [] for match in found]
    if unmatched := [name for name, own in zip(names, parts) if not own]:
        raise ValueError(
            f"the pattern --group-by {wanted!r} finds no group in {len(unmatched)} of the "
            f"{len(names)} paths: {some(unmatched)}; give one that finds it in each path, or a "
            f"column"
        )
    return ["/".join(own) for own in parts]


def by_column(clips: Dataset, arguments: DataArguments, names: list[str]) -> list[str]:
    """The groups that a column names."""
    wanted = arguments.group_by
    assert wanted is not None  # there are groups
    if wanted in clips.features and wanted == label_column(arguments, clips):
        raise ValueError(
            f"--group-by is the column of labels, {wanted!r}: no label could be both trained on "
            f"and held out; give the column of speakers, kits or places"
        )
    cells = column(clips, wanted, "--group-by")
    if not all(isinstance(cell, str | int | float | None) for cell in cells):
        raise ValueError(
            f"--group-by is the column {wanted!r}, which holds {type(cells[0]).__name__} and not "
            f"one name for each clip; give another one"
        )
    empty = [
        name or f"row {index}"
        for index, (name, cell) in enumerate(zip(names, cells))
        if cell is None or cell == "" or cell != cell
    ]
    if empty:
        raise ValueError(
            f"the column --group-by {wanted!r} is empty for {len(empty)} of the {len(cells)} "
            f"clips: {some(empty)}; fill it in, with a name of its own for each unknown one"
        )
    return [str(cell) for cell in cells]


def paths_of(clips: Dataset, arguments: DataArguments) -> list[str]:
    """The path of each clip from the data's folder, with slashes; empty where it has none."""
    flat = clips.flatten()
    stored = f"{arguments.audio_column}.path"
    name = stored if stored in flat.column_names else arguments.audio_column
    if name not in flat.column_names:
        return [""] * len(clips)
    root = "" if arguments.root is None else os.path.join(os.path.abspath(arguments.root), "")
    paths = flat.select_columns(name)[:][name]
    return [
        PurePath(path.removeprefix(root)).as_posix() if isinstance(path, str) and path else ""
        for path in paths
    ]


def count_groups(groups: Mapping[str, list[str]], wanted: str) -> dict[str, int]:
    """The number of groups in each part.

    Args:
        groups: Part -> the group of each of its clips.
        wanted: `--group-by`, for the message.
    Raises:
        ValueError: A group is in two parts.
    """
    parts = {part: set(own) for part, own in groups.items()}
    for number, (part, own) in enumerate(parts.items()):
        for other, others in list(parts.items())[:number]:
            if shared := sorted(own & others):
                raise ValueError(
                    f"{len(shared)} groups of --group-by {wanted!r} are both in {other!r} and in "
                    f"{part!r}: {some(shared)}; move each to one side, or leave --group-by out if "
                    f"this is meant"
                )
    return {part: len(own) for part, own in parts.items()}


__all__ = ["count_groups", "groups_of", "paths_of"]
