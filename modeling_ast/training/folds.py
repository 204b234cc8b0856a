"""Cross-validation: a fine-tuning for each fold, then the mean and deviation of its scores.

`--folds k` trains k times; each run leaves out one fold and is then evaluated on it. Each run has a
directory of its own, OUT/fold_1 and so on; OUT/folds.json has the metrics of each run, their mean
and their standard deviation. A finished fold is not run again. Cross-validation does not give a
final model; train one on all clips afterwards.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import DatasetDict

from ..outputs import leaving_no_empty_folder, one_run_at_a_time
from ..strict_json import to_json
from .arguments import Arguments
from .clips import ClipReader
from .data_arguments import DataArguments
from .data_report import LocalData
from .data_sources import clip_names
from .finetuning import finetune
from .parts import chosen_splits, fold_numbers, prepared, split_of
from .run_record import deciding_arguments, naming_unwritable, recorded
from .sources import read_source
from .trainer import output_folder

FOLDS_FILE = "folds.json"
# Ends of the names of metrics that say nothing about the model.
NO_SCORES = ("runtime", "samples_per_second", "steps_per_second", "epoch")


class CrossValidation(NamedTuple):
    """The result of `cross_validate`, which is also the content of folds.json."""

    metric: str  # the main metric of the runs, "mAP" or "accuracy"
    division: str  # which clips are in which fold, as a hash
    results: dict[str, dict[str, float | None]]  # fold -> metrics; None: undefined
    mean: dict[str, float | None]
    std: dict[str, float | None]  # of a sample: the sum of squares is divided by their number - 1


def is_cross_validation(data: DataArguments) -> bool:
    """Whether each fold is to be held out once, instead of one given fold."""
    return data.folds is not None and data.eval_fold is None


def cross_validate(
    arguments: Arguments,
    announce: Callable[[Iterable[str]], None] = lambda lines: None,
) -> CrossValidation:
    """Fine-tunes once for each fold.

    With several processes, each process calls this function; the first one writes the files.

    Args:
        arguments: With `data.folds`; its output directory gets a directory for each fold.
        announce: Called with lines for the user; see `finetuning.train`.
    Returns:
        The results; the first process also writes them to folds.json.
    Raises:
        OSError, ValueError: As `finetune`; or the directory holds other folds.
    """
    training = arguments.training
    if training.push_to_hub:
        raise ValueError(
            "--push-to-hub is for one model, and --folds trains several; train one on all clips "
            "and push that"
        )
    if training.resume_from_checkpoint:
        raise ValueError(
            "--resume-from-checkpoint is for one run; leave it out: each fold resumes from its own "
            "newest undamaged checkpoint"
        )
    numbers, division = read_folds(arguments.data)
    folder = output_folder(training)
    first = training.process_index == 0
    lock = one_run_at_a_time if first else nullcontext
    record = recorded(folder, deciding_arguments(arguments), first)
    with leaving_no_empty_folder(folder), lock(folder), naming_unwritable(folder), record:
        done = read_results(folder, division)
        for place, number in enumerate(numbers, 1):
            if done and str(number) in done.results:
                announce([f"fold {number} is finished ({place} of {len(numbers)})"])
                continue
            announce([f"fold {number} is held out ({place} of {len(numbers)})"])
            outcome = finetune(of_fold(arguments, number), announce)
            results = (done.results if done else {}) | {str(number): scores(outcome.metrics)}
            done = CrossValidation(outcome.metric, division, results, *summary(results.values()))
            if first:
                write_results(folder, done)
            # Frees the GPU memory of this fold's model before the next one is loaded.
            del outcome
            gc.collect()
            torch.cuda.empty_cache()
    assert done is not None  # there are at least two folds
    return done


def read_folds(arguments: DataArguments) -> tuple[list[int], str]:
    """The numbers of the folds, and a hash of which clips are in which.

    Raises:
        OSError, ValueError: The data cannot be read or divided.
    """
    if arguments.streaming:
        raise ValueError("--folds must divide all clips first; train without --streaming")
    source = read_source(arguments)
    splits = DatasetDict(source.splits) if isinstance(source, LocalData) else source
    # An eval_fold must be given here; any will do, because all folds are wanted.
    chosen, _ = chosen_splits(splits, replace(arguments, eval_fold=1))
    whole = prepared(split_of(splits, chosen.train_split, chosen), chosen)
    numbers = fold_numbers(whole, chosen)
    if not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"the column {chosen.fold_column!r} holds {numbers.tolist()[0]!r}; folds must be whole "
            f"numbers, so give another --fold-column"
        )
    reader = ClipReader(audio_column=chosen.audio_column)
    names = [os.path.basename(name) for name in clip_names(whole, reader)]
    digest = hashlib.blake2b(to_json([names, numbers.tolist()]).encode(), digest_size=8)
    return sorted(set(numbers.tolist())), digest.hexdigest()


def of_fold(arguments: Arguments, number: int) -> Arguments:
    """A copy of the arguments for the run of one fold, because a run changes its arguments."""
    own = copy.copy(arguments)
    for entry in fields(arguments):
        setattr(own, entry.name, copy.copy(getattr(arguments, entry.name)))
    own.data = replace(arguments.data, eval_fold=number)
    own.training.output_dir = str(output_folder(arguments.training) / f"fold_{number}")
    return own


def scores(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a run that describe its model; None for undefined ones."""
    return {
        name: value if math.isfinite(value) else None
        for name, value in metrics.items()
        if not name.endswith(NO_SCORES) and isinstance(value, int | float)
    }


def summary(
    results: Iterable[Mapping[str, float | None]],
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and standard deviation of each metric, over the folds where it is defined."""
    values: dict[str, list[float]] = {}
    for metrics in results:
        for name, value in metrics.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    mean = {name: statistics.fmean(own) if own else None for name, own in values.items()}
    std = {name: statistics.stdev(own) if len(own) > 1 else None for name, own in values.items()}
    return mean, std


def read_results(folder: Path, division: str) -> CrossValidation | None:
    """The results of the folds that are finished; None if there are none.

    Raises:
        ValueError: The results are of folds with other clips, or the file has another format.
    """
    file = folder / FOLDS_FILE
    if not file.is_file():
        return None
    try:
        found = CrossValidation(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}); move it away") from error
    if found.division != division:
        raise ValueError(
            f"{folder} holds results of folds with other clips than now; give another --output-dir"
        )
    return found


def write_results(folder: Path, results: CrossValidation) -> None:
    """Writes folds.json in one step, so that it is never half written."""
    new = folder / f"{FOLDS_FILE}.new"
    new.write_text(to_json(results._asdict()) + "\n", encoding="utf-8")
    new.replace(folder / FOLDS_FILE)


__all__ = ["FOLDS_FILE", "CrossValidation", "cross_validate", "is_cross_validation", "read_folds"]
