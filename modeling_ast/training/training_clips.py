"""Which clips a model was trained on, as the run.json in its folder says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from ..errors import one_line
from .arguments import RUN_FILE
from .clips import ClipReader, undecoded
from .data_arguments import DataArguments
from .data_sources import load_part
from .held_out import HeldOut

logger = logging.get_logger(__name__)
# A flag that says which clips are held out -> the run's arguments that it replaces.
REPLACES = {
    "eval_split": ("eval_share", "eval_fold", "folds"),
    "eval_share": ("eval_fold", "folds"),
    "eval_fold": ("eval_share",),
    "folds": ("eval_share",),
}


def data_of_run(model: str | Path) -> dict[str, Any]:
    """The `DataArguments` of the fine-tuning that wrote a model's folder; empty without run.json.

    Raises:
        ValueError: Its run.json does not hold the arguments of a run.
    """
    file = Path(model) / RUN_FILE
    if not file.is_file():
        return {}
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        known = {row.name for row in fields(DataArguments)}
        return {name: value for name, value in run.items() if name in known}
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{file} does not hold the arguments of a run ({one_line(error)}); restore or remove it"
        ) from error


def defaults_of_run(
    model: str | Path, data: str | None, given: Collection[str] = ()
) -> dict[str, Any]:
    """Defaults for the data arguments that are not given, which lead to the run's held-out clips.

    Args:
        data: The data that the user gave; if it is not the run's, there are no defaults.
        given: The names of all flags that the user gave.
    """
    # Held-out clips are never streamed.
    unused = {"streaming", *(name for flag in given for name in REPLACES.get(flag, ()))}
    run = {name: value for name, value in data_of_run(model).items() if name not in unused}
    if data is None or data == run.get("data"):
        return run
    is_same = run.get("data") is not None and os.path.realpath(data) == os.path.realpath(
        run["data"]
    )
    return {**run, "data": data} if is_same else {}


def count_training_clips(model: str, held_out: HeldOut) -> int:
    """How many of the held-out clips the model was trained on, as far as its run.json says.

    It says so if finetune wrote the folder and its data still exists. Two clips are the same if
    they have the same path or, stored inside a data set, the same name and length.
    """
    run = data_of_run(model)
    if not run:
        logger.info(f"{model} has no {RUN_FILE}: its training clips are unknown")
        return 0
    arguments = DataArguments(**run)
    if arguments.streaming or arguments.root is None:
        logger.warning(
            f"{model} was trained on {arguments.data}, which is not read again: make sure that no "
            f"clip here is one of its training clips"
        )
        return 0
    try:
        trained = load_part(arguments, held_out=False)
        reader = ClipReader(audio_column=arguments.audio_column, root=arguments.root)
        seen = set(identities(trained, reader))
    except (OSError, ValueError) as error:
        logger.warning(f"the training clips of {model} cannot be read ({one_line(error)})")
        return 0
    return sum(identity in seen for identity in identities(held_out.clips, held_out.reader))


def refuse_training_clips(model: str, held_out: HeldOut) -> None:
    """Refuses clips that the model was trained on; see `count_training_clips`.

    Raises:
        ValueError: There are such clips.
    """
    again = count_training_clips(model, held_out)
    if again:
        arguments = DataArguments(**data_of_run(model))
        raise ValueError(
            f"{again} of the {len(held_out.clips)} clips are among those that {model} was trained "
            f"on ({RUN_FILE}), where its scores are too confident; give other clips, such as "
            f"--eval-split {arguments.eval_split}"
        )


def identities(clips: Dataset, reader: ClipReader) -> Iterator[tuple[str, int]]:
    """A key for each clip that tells it from others, without decoding it."""
    for row in undecoded(clips, reader.audio_column).select_columns(reader.audio_column):
        clip = reader.clip(row)
        if isinstance(clip, str | os.PathLike):
            yield os.path.abspath(clip), 0
        elif isinstance(clip, Mapping) and clip.get("bytes") is not None:
            content = clip["bytes"]
            yield clip.get("path") or hashlib.blake2b(content).hexdigest(), len(content)
        else:
            yield reader.name(row), 0


def fingerprint(held_out: HeldOut) -> str:
    """A hash of the clips and their labels, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for identity, target in zip(identities(held_out.clips, held_out.reader), held_out.targets):
        digest.update(repr((identity, np.flatnonzero(target).tolist())).encode())
    return digest.hexdigest()


__all__ = [
    "count_training_clips",
    "data_of_run",
    "defaults_of_run",
    "fingerprint",
    "refuse_training_clips",
]
