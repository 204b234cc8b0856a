"""Which clips are trained on, which are for validation, and which are held out.

The held-out clips are the first of these that is given or exists:

1. a fold, `--eval-fold`: of the column `--fold-column` or, with `--folds`, one that is drawn;
2. the split `--eval-split`, by default test, or validation if there is no test;
3. a share of the clips, `--eval-share`.

Validation clips decide which epoch is best. They are the split `--validation-split` or, with
`--validation-share`, the split validation if it exists and is not held out, else this share of the
training clips. Held-out clips never decide.

Shares and drawn folds have the same share of each label (`dividing.py`), and no group is on both
sides (`grouping.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets

from .classes import Clips, check_column, column, label_column, label_names
from .clips import undecoded
from .data_arguments import DRAWN, DataArguments
from .dividing import deal_folds, hold_out
from .grouping import groups_of
from .sources import Source
from .tables import SPLIT_NAMES

TRAIN, VALIDATION, HELD_OUT = "train", "validation", "held out"
# A share is far from the wanted one if it differs by more than this part of it.
FAR_OFF = 0.5


def chosen_splits(
    splits: Collection[str], arguments: DataArguments
) -> tuple[DataArguments, list[str]]:
    """Settles how clips are held out, and how validation clips are set aside.

    Args:
        splits: The names of the splits that exist.
        arguments: As they were given.
    Returns:
        The arguments, with None for those that are not used, and a warning for each of these.
    Raises:
        ValueError: Two arguments contradict each other, or one is impossible.
    """
    check_shares(arguments)
    warnings = []
    others = [name for name in splits if name not in arguments.train_split.split("+")]
    eval_split = arguments.eval_split
    if eval_split not in splits and eval_split == DataArguments.eval_split:
        eval_split = like("test", others) or like("validation", others) or eval_split
    share, by_fold = arguments.eval_share, arguments.eval_fold is not None
    if eval_split in others and by_fold:
        warnings.append(
            f"{arguments.data} has the split {eval_split!r}, which is not used: a fold of "
            f"{arguments.train_split!r} is held out"
        )
    if share is not None and arguments.folds is not None:
        warnings.append(f"a fold is held out; --eval-share {share} is not used")
        share = None
    elif share is not None and eval_split in others and not by_fold:
        warnings.append(
            f"{arguments.data} has the split {eval_split!r}, which is held out; --eval-share "
            f"{share} is not used"
        )
        share = None
    chosen = replace(arguments, eval_split=eval_split, eval_share=share)
    free = _free_splits(splits, chosen)
    aside, validation = arguments.validation_split, arguments.validation_share
    if aside is None and validation is not None:
        aside = like("validation", free)
    if aside is not None and aside not in free:
        raise ValueError(
            f"--validation-split is {aside!r}; give one of the splits that are neither trained on "
            f"nor held out, {free}, or give --validation-share instead"
        )
    if aside is not None and validation is not None:
        warnings.append(
            f"{arguments.data} has the split {aside!r}, which decides which epoch is best; "
            f"--validation-share {validation} is not used"
        )
        validation = None
    return replace(chosen, validation_split=aside, validation_share=validation), warnings


def free_validation_split(splits: Collection[str], arguments: DataArguments) -> str | None:
    """A split for validation, by its name, that is neither trained on nor held out; or None.

    Args:
        splits: The names of the splits that exist.
        arguments: From `chosen_splits`.
    """
    return like("validation", _free_splits(splits, arguments))


def _free_splits(splits: Collection[str], arguments: DataArguments) -> list[str]:
    used = arguments.train_split.split("+")
    if not is_drawn(arguments):
        used.append(arguments.eval_split)
    return [name for name in splits if name not in used]


def like(kind: str, names: Collection[str]) -> str | None:
    """The first split with a usual name of this kind, or None."""
    return next((name for name in names if SPLIT_NAMES.get(name.lower()) == kind), None)


def check_shares(arguments: DataArguments) -> None:
    """Refuses shares and folds that are impossible.

    Raises:
        ValueError: One of them is impossible, or two contradict each other.
    """
    for name in ("eval_share", "validation_share"):
        flag, share = f"--{name.replace('_', '-')}", getattr(arguments, name)
        if share is not None and not 0 < share < 1:
            raise ValueError(f"{flag} is {share}; it must be between 0 and 1, e.g. 0.2")
        if share is not None and arguments.streaming:
            raise ValueError(
                f"{flag} draws from the whole data; with --streaming, hold out a split or a fold"
            )
    if arguments.streaming and arguments.group_by is not None:
        raise ValueError("--group-by must group all clips first; train without --streaming")
    if arguments.folds is not None and arguments.folds < 2:
        raise ValueError(f"--folds is {arguments.folds}; give at least 2")
    if arguments.folds is not None and arguments.eval_fold is None:
        raise ValueError(
            f"--folds {arguments.folds} is only the number of folds; give the one that is held out "
            f"as --eval-fold (only modeling-ast finetune can do without: it trains for each fold)"
        )
    if arguments.folds is None and None not in (arguments.eval_fold, arguments.eval_share):
        raise ValueError("--eval-fold and --eval-share both say what is held out; give one of them")


def is_drawn(arguments: DataArguments) -> bool:
    """Whether a part of the training split is held out."""
    return arguments.eval_share is not None or arguments.eval_fold is not None


def parts_of(
    data: Source, arguments: DataArguments, wanted: Collection[str], others: bool
) -> dict[str, Clips]:
    """The parts of a data set, by `TRAIN`, `VALIDATION` and `HELD_OUT`; the audio is not decoded.

    Args:
        data: With all its splits.
        arguments: From `chosen_splits`.
        wanted: The parts that must exist, of `TRAIN` and `HELD_OUT`.
        others: Whether the other parts are returned too, if they exist.
    Raises:
        ValueError: There is no such split, fold or column, or too few clips to divide.
    """
    parts: dict[str, Clips] = {}
    if is_drawn(arguments):
        whole = prepared(split_of(data, arguments.train_split, arguments), arguments)
        parts[TRAIN], parts[HELD_OUT] = divided(whole, arguments)
    else:
        for part, split in ((TRAIN, arguments.train_split), (HELD_OUT, arguments.eval_split)):
            if part in wanted or (others and arguments.train_split != arguments.eval_split):
                try:
                    parts[part] = prepared(split_of(data, split, arguments), arguments)
                except ValueError:
                    if part in wanted:
                        raise
    if TRAIN in parts and (others or TRAIN in wanted):
        if arguments.validation_split is not None:
            split = arguments.validation_split
            parts[VALIDATION] = prepared(split_of(data, split, arguments), arguments)
        elif arguments.validation_share is not None:
            clips, share = parts[TRAIN], arguments.validation_share
            parts[TRAIN], parts[VALIDATION] = with_share(clips, share, arguments)
    if TRAIN in wanted:
        wanted = {*wanted, VALIDATION}
    order = (TRAIN, VALIDATION, HELD_OUT)
    return {part: parts[part] for part in order if part in parts and (others or part in wanted)}


def split_of(data: Source, names: str, arguments: DataArguments) -> Clips:
    """One split by its name, or several one after the other: "bal_train+unbal_train"."""
    for name in names.split("+"):
        if name not in data:
            raise ValueError(
                f"{arguments.data} has the splits {sorted(data)} but not {name!r}; name those that "
                f"you want with --train-split and --eval-split (to evaluate with all clips: "
                f"--eval-split {min(data)}), or give --eval-share or --eval-fold"
            )
    return concatenate_datasets([with_features(data[name]) for name in names.split("+")])


def with_features(data: Clips) -> Clips:
    """Gives a stream of CSV or JSON lines its columns, which only its first row shows."""
    if data.features is not None:
        return data
    return data.cast(Dataset.from_list([next(iter(data))]).features)


def prepared(clips: Clips, arguments: DataArguments) -> Clips:
    """The clips with undecoded audio, and with a list for each cell of several labels."""
    return undecoded(separated(clips, arguments), arguments.audio_column)


def divided(clips: Clips, arguments: DataArguments) -> tuple[Clips, Clips]:
    """One split -> the clips to train on and those held out."""
    if arguments.eval_share is not None:
        return with_share(clips, arguments.eval_share, arguments)
    if isinstance(clips, IterableDataset):
        name = check_column(clips, arguments.fold_column, "--fold-column")
        parts = (
            clips.filter(partial(is_in_fold, name=name, fold=arguments.eval_fold, held_out=part))
            for part in (False, True)
        )
        return next(parts), next(parts)
    numbers = fold_numbers(clips, arguments)
    is_held_out = numbers == arguments.eval_fold
    if is_held_out.all() or not is_held_out.any():
        where = "the column {!r} has the folds" if uses_column(clips, arguments) else "there are"
        raise ValueError(
            f"--eval-fold is {arguments.eval_fold} but {where.format(arguments.fold_column)} "
            f"{sorted(set(numbers.tolist()))}; give one of them"
        )
    return selected(clips, is_held_out)


def with_share(clips: Clips, share: float, arguments: DataArguments) -> tuple[Clips, Clips]:
    """Clips -> those to train on, and the share that is set aside."""
    assert isinstance(clips, Dataset)  # `check_shares` refuses streams
    groups = groups_of(clips, arguments)
    try:
        is_held_out = hold_out(labels_to_divide(clips, arguments), share, groups)
    except ValueError as error:
        raise ValueError(f"{arguments.data}: {error}; give more clips or another split") from error
    return selected(clips, is_held_out)


def fold_numbers(clips: Dataset, arguments: DataArguments) -> np.ndarray:
    """The fold of each clip (clips,): from a column, or drawn.

    Raises:
        ValueError: There is no such column, it has another number of folds than `folds`, or there
            are fewer clips or groups than folds.
    """
    if uses_column(clips, arguments):
        numbers = np.array(fold_cells(clips, arguments.fold_column))
        count = len(set(numbers.tolist()))
        if arguments.folds not in (None, count):
            raise ValueError(
                f"--folds is {arguments.folds} but the column {arguments.fold_column!r} has the "
                f"{count} folds {sorted(set(numbers.tolist()))[:12]}; give --folds {count}, or "
                f"--fold-column {DRAWN} to draw {arguments.folds} others"
            )
        return numbers
    assert arguments.folds is not None  # otherwise a column is used
    try:
        return deal_folds(
            labels_to_divide(clips, arguments), arguments.folds, groups_of(clips, arguments)
        )
    except ValueError as error:
        raise ValueError(f"--folds is {arguments.folds}: {error}; give fewer folds") from error


def fold_cells(clips: Dataset, name: str) -> list[int | float | str]:
    """The folds in a column.

    Raises:
        ValueError: A row has none, or something else than a number or a name.
    """
    cells = column(clips, name, "--fold-column")
    for row, cell in enumerate(cells, 1):
        if cell == "" or not isinstance(cell, int | float | str):
            raise ValueError(
                f"the column {name!r} has {cell!r} as the fold of clip {row}; give each clip the "
                f"number or the name of a fold"
            )
    return cells


def uses_column(clips: Clips, arguments: DataArguments) -> bool:
    """Whether the folds are those of a column, and not drawn."""
    named = arguments.fold_column not in (DataArguments.fold_column, DRAWN)
    if arguments.folds is None or named:
        check_column(clips, arguments.fold_column, "--fold-column")
    return arguments.fold_column in clips.features


def labels_to_divide(clips: Dataset, arguments: DataArguments) -> list[list[str]]:
    """The labels of each clip; empty lists if the data has no label column.

    A run that needs labels refuses such data elsewhere.
    """
    try:
        return label_names(clips, label_column(arguments, clips))
    except ValueError:
        if arguments.label_column is not None:
            raise
        return [[]] * len(clips)


def selected(clips: Dataset, chosen: np.ndarray) -> tuple[Dataset, Dataset]:
    """The clips that are not chosen, and those that are."""
    return clips.select(np.flatnonzero(~chosen)), clips.select(np.flatnonzero(chosen))


def is_in_fold(row: dict, name: str, fold: int | None, held_out: bool) -> bool:
    """Whether a row is in the fold if `held_out`, else whether it is in another fold."""
    return (row[name] == fold) == held_out


def separated(data: Clips, arguments: DataArguments) -> Clips:
    """Splits label cells with several names into lists."""
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
    """The names in a cell; an empty cell has none."""
    return (
        []
        if cell is None
        else [part.strip() for part in str(cell).split(separator) if part.strip()]
    )


def far_off(parts: Mapping[str, Any], arguments: DataArguments) -> list[str]:
    """A warning for each share that differs much from the wanted one."""
    warnings = []
    for part, name, of in (
        (HELD_OUT, "eval_share", (TRAIN, VALIDATION, HELD_OUT)),
        (VALIDATION, "validation_share", (TRAIN, VALIDATION)),
    ):
        share = getattr(arguments, name)
        sizes = {other: len(parts[other]) for other in of if other in parts}
        if share is None or part not in sizes or TRAIN not in sizes:
            continue
        got = sizes[part] / sum(sizes.values())
        if abs(got - share) > FAR_OFF * share and abs(got - share) * sum(sizes.values()) > 2:
            why = (
                "groups are not divided"
                if arguments.group_by
                else "each rare label gives at least one clip"
            )
            warnings.append(
                f"--{name.replace('_', '-')} is {share} but {got:.2f} of the clips are in that "
                f"part, because {why}"
            )
    return warnings


__all__ = [
    "HELD_OUT",
    "TRAIN",
    "VALIDATION",
    "chosen_splits",
    "far_off",
    "fold_numbers",
    "is_drawn",
    "parts_of",
    "prepared",
    "split_of",
]
