"""Which clips belong together: those of one speaker, instrument, place or recording (`--group-by`).

Clips of a group resemble each other in more than their label. If a model was trained on some of
them, its score on the others is too high.
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
    """The group of each clip; None without `group_by`.

    Args:
        clips: Rows with undecoded audio.
        arguments: `group_by` is a column, or a regular expression that is searched in the path of
            each file, relative to the data's folder and with slashes. The text that its groups
            match is the clip's group.
    Raises:
        ValueError: `group_by` is neither, or gives no group for some of the clips.
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
            f"--group-by is {wanted!r}, which is neither a column of the data (it has "
            f"{sorted(clips.features)}) nor a regular expression ({error}); give one of the two"
        ) from error
    if not pattern.groups:
        raise ValueError(
            f"--group-by is {wanted!r}, which is not a column of the data (it has "
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
            f"{len(names)} paths: {some(unmatched)}; give a pattern that finds one in each path, "
            f"or a column"
        )
    return ["/".join(own) for own in parts]


def by_column(clips: Dataset, arguments: DataArguments, names: list[str]) -> list[str]:
    """The groups that a column names."""
    wanted = arguments.group_by
    assert wanted is not None  # there are groups
    if wanted in clips.features and wanted == label_column(arguments, clips):
        raise ValueError(
            f"--group-by is the label column {wanted!r}, so that no label could be both trained on "
            f"and held out; give the column of speakers, instruments or places"
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
            f"clips: {some(empty)}; fill it in, with a separate name for each unknown group"
        )
    return [str(cell) for cell in cells]


def paths_of(clips: Dataset, arguments: DataArguments) -> list[str]:
    """The path of each clip relative to the data's folder, with slashes; empty if it has none."""
    # flatten() keeps the old names in the format, which must be the new ones.
    flat = clips.flatten().with_format(None)
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
                    f"{part!r}: {some(shared)}; move each to one part, or leave --group-by out if "
                    f"this is intended"
                )
    return {part: len(own) for part, own in parts.items()}


__all__ = ["count_groups", "groups_of", "paths_of"]
