"""Which weights a run ends with: of its last epoch, of its best one, or the average of some.

Clips of the training set that were set aside decide it, the validation clips; those that are held
out for the final judgement never do. "Best" is Trainer's own notion of it: the checkpoint at which
the metric of the validation clips was highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from torch import nn
from transformers.trainer_utils import SaveStrategy

from ..pretrained import load_model
from .arguments import Arguments, SamplingArguments
from .cheap_tuning import is_adapted
from .small_data import GIVEN, Choice
from .trainer import ASTTrainer, output_folder

VALIDATION = "validation"
# Of scores that a few clips cannot tell apart the first is taken. An average swings least from clip
# to clip; the best of many evaluations is the likeliest to be so by chance.
ORDER = ("average", "last", "best")
REFUSED = (
    "{flag} would let the held-out clips choose the weights that are then judged on them; set some "
    "of the clips to train on aside with --validation-share, e.g. 0.15"
)


class Weights(NamedTuple):
    """Weights that a run could end with."""

    name: str  # one of ORDER
    place: str  # "step 40", say
    folder: Path | None  # where they are saved; None: in the trainer


def prepare_choice(arguments: Arguments, metric: str, has_validation: bool) -> None:
    """Has Trainer note its best checkpoint, by the validation clips.

    Args:
        arguments: Are changed: `load_best_model_at_end` becomes `keep_weights`, which this file
            does, since Trainer's would know no average.
        metric: That the run is judged by.
        has_validation: Whether clips of the training set decide.
    Raises:
        ValueError: The held-out clips would decide.
    """
    training = arguments.training
    if training.load_best_model_at_end:
        arguments.change("load_best_model_at_end", False)
        arguments.change("keep_weights", "best")
    if has_validation:
        training.metric_for_best_model = f"eval_{VALIDATION}_{metric}"
        training.greater_is_better = True
        return
    training.metric_for_best_model = None
    if arguments.auto.keep_weights == "best":
        raise ValueError(REFUSED.format(flag="--keep-weights best (or --load-best-model-at-end)"))
    if training.save_strategy == SaveStrategy.BEST:
        raise ValueError(REFUSED.format(flag="--save-strategy best"))


@contextmanager
def judged_by(trainer: ASTTrainer, validation: Dataset | None) -> Iterator[None]:
    """Evaluations in between are of the validation clips, where there are some.

    Their metrics are named `eval_validation_*` in the log.
    """
    held_out = trainer.eval_dataset
    if validation is not None:
        trainer.eval_dataset = {VALIDATION: validation}
    try:
        yield
    finally:
        trainer.eval_dataset = held_out


def all_weights(trainer: ASTTrainer, arguments: SamplingArguments) -> list[Weights]:
    """What the run could end with.

    Args:
        trainer: After the training.
        arguments: Say which weights were averaged, if any.
    """
    state = trainer.state
    found = [Weights("last", f"step {state.global_step}", None)]
    best = state.best_model_checkpoint
    if best is not None and Path(best).is_dir() and state.best_global_step != state.global_step:
        found.append(Weights("best", f"step {state.best_global_step}", Path(best)))
    if arguments.average_from is not None:
        last = arguments.average_to or math.ceil(state.epoch or 0)
        place = f"epochs {arguments.average_from} to {last}"
        found.append(Weights("average", place, output_folder(trainer.args) / "average"))
    return found


@contextmanager
def using(trainer: ASTTrainer, weights: Weights) -> Iterator[None]:
    """The trainer evaluates, and saves, these weights."""
    if weights.folder is None:
        yield
        return
    trainer.accelerator.wait_for_everyone()
    if is_adapted(trainer.model):
        adapted: Any = trainer.model
        with adapted.holding(weights.folder):
            yield
        return
    trained, wrapped = trainer.model, trainer.model_wrapped
    loaded = load_model(weights.folder)
    # transformers wraps `to` without its types.
    module: nn.Module = loaded
    module.to(trainer.args.device)
    trainer.model = trainer.model_wrapped = loaded
    try:
        yield
    finally:
        trainer.model, trainer.model_wrapped = trained, wrapped


def validation_scores(
    trainer: ASTTrainer, candidates: list[Weights], validation: Dataset, metric: str
) -> dict[str, float]:
    """The metric of the validation clips for each of the weights, by their name."""
    scores = {}
    for weights in candidates:
        with using(trainer, weights):
            prefix = f"{VALIDATION}_{weights.name}"
            judged = trainer.evaluate(validation, metric_key_prefix=prefix)
        scores[weights.name] = judged[f"{prefix}_{metric}"]
    return scores


def choose_weights(
    arguments: Arguments,
    candidates: list[Weights],
    scores: Mapping[str, float],
    metric: str,
    num_clips: int,
) -> tuple[Weights, Choice]:
    """The weights that the run ends with, and why.

    Args:
        candidates: From `all_weights`.
        scores: From `validation_scores`; empty without validation clips.
        metric: Of the scores.
        num_clips: Validation clips.
    """
    by_name = {weights.name: weights for weights in candidates}
    asked = arguments.auto.keep_weights
    if asked in by_name:
        return by_name[asked], Choice("keep_weights", asked, GIVEN)
    if asked != "auto":
        # The last epoch is the best one too.
        return by_name["last"], Choice("keep_weights", "last", f"which is also the {asked} one")
    if len(candidates) == 1:
        return candidates[0], Choice("keep_weights", "last", "the run has no others")
    if not scores:
        reason = "no validation clips to choose by"
        # Of a run that chooses itself: an average swings least.
        name = "average" if arguments.auto.auto and "average" in by_name else "last"
        return by_name[name], Choice("keep_weights", name, reason)
    name = within_chance(scores, num_clips)
    told = ", ".join(f"{name} ({by_name[name].place}) {scores[name]:.4f}" for name in scores)
    reason = f"{metric} of the {num_clips} validation clips: {told}; the first within chance"
    return by_name[name], Choice("keep_weights", name, reason)


def within_chance(scores: Mapping[str, float], num_clips: int) -> str:
    """The first of `ORDER` whose score is at most a standard error below the highest one.

    Args:
        scores: From 0 to 1, shares of the clips; NaN, an undefined one, is never taken.
        num_clips: That they are shares of.
    Source: Breiman et al. 1984, section 3.4.3 (the 1 SE rule).
    """
    known = {name: scores[name] for name in ORDER if scores.get(name, math.nan) >= 0}
    if not known:
        return "last"
    highest = max(known.values())
    lowest = highest - math.sqrt(highest * (1 - highest) / num_clips)
    return next(name for name, score in known.items() if score >= lowest)


__all__ = [
    "VALIDATION",
    "Weights",
    "all_weights",
    "choose_weights",
    "judged_by",
    "prepare_choice",
    "using",
    "validation_scores",
    "within_chance",
]
