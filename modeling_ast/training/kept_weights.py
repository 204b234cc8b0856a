"""Chooses the weights that a run ends with: of its last epoch, of its best one, or an average.

The validation clips decide, which are set aside from the training set; the clips that are held out
for the final evaluation never do. "Best" has the meaning that it has in Trainer: the checkpoint
with the highest metric on the validation clips.
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
from .choices import GIVEN, Choice
from .trainer import ASTTrainer, output_folder

VALIDATION = "validation"
# Among scores that do not differ significantly, the first of these is taken. An average varies
# least; the best of many evaluations is the most likely to be the best only by chance.
ORDER = ("average", "last", "best")
# Scores differ significantly if they differ by more than this many standard errors. With one, the
# best evaluation was too often taken by chance: see docs/what_we_measured.md.
STANDARD_ERRORS = 2
REFUSED = (
    "{flag} would choose the weights by the held-out clips, which are only for the final scores; "
    "set some of the training clips aside with --validation-share, e.g. 0.15"
)


class Weights(NamedTuple):
    """Weights that a run could end with."""

    name: str  # one of ORDER
    place: str  # such as "step 40"
    folder: Path | None  # where they are saved; None: they are in the trainer


def prepare_choice(arguments: Arguments, metric: str, has_validation: bool) -> None:
    """Makes Trainer record its best checkpoint, by the metric on the validation clips.

    Args:
        arguments: Changed in place: `load_best_model_at_end` is replaced by `keep_weights`, which
            this file handles, because Trainer does not consider averages.
        metric: The main metric of the run.
        has_validation: Whether there are validation clips.
    Raises:
        ValueError: The held-out clips would have to decide.
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
    """Inside the context evaluations use the validation clips, if there are any.

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
    """All weights that the run could end with.

    Args:
        trainer: After the training.
        arguments: They say which epochs were averaged, if any.
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
    """Inside the context the trainer evaluates and saves these weights."""
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
    # For mypy: transformers wraps `to` without its types.
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
        metric: The metric of the scores.
        num_clips: Number of validation clips.
    """
    by_name = {weights.name: weights for weights in candidates}
    asked = arguments.auto.keep_weights
    if asked in by_name:
        return by_name[asked], Choice("keep_weights", asked, GIVEN)
    if asked != "auto":
        # There are no separate weights of this name, because they are those of the last epoch.
        return by_name["last"], Choice("keep_weights", "last", f"which is also the {asked} one")
    if len(candidates) == 1:
        return candidates[0], Choice("keep_weights", "last", "the run has no others")
    if not scores:
        reason = "no validation clips were set aside, which could choose the weights"
        # With --auto the run may choose itself, and an average varies least.
        name = "average" if arguments.auto.auto and "average" in by_name else "last"
        return by_name[name], Choice("keep_weights", name, reason)
    name = within_chance(scores, num_clips)
    listed = ", ".join(f"{name} ({by_name[name].place}) {scores[name]:.4f}" for name in scores)
    reason = f"{metric} on the {num_clips} validation clips: {listed}"
    if scores[name] < max(scores.values()):
        reason += (
            f"; the difference to the highest is within {STANDARD_ERRORS} standard errors, so it "
            f"may be chance, and {name} is the safer choice"
        )
    return by_name[name], Choice("keep_weights", name, reason)


def within_chance(scores: Mapping[str, float], num_clips: int) -> str:
    """The first of `ORDER` whose score is at most `STANDARD_ERRORS` errors below the highest.

    The standard error is that of the highest score with two successes and two failures added:
    without them it would be 0 for a score of 1, as if a few clips could prove that.

    Args:
        scores: Shares of the clips, from 0 to 1; an undefined score (NaN) is never taken.
        num_clips: Number of clips that the scores are shares of.
    Source: Breiman et al. 1984, section 3.4.3 (the rule, with one standard error); Agresti and
        Coull 1998 (the added successes and failures).
    """
    known = {name: scores[name] for name in ORDER if scores.get(name, math.nan) >= 0}
    if not known:
        return "last"
    highest = max(known.values())
    adjusted = (highest * num_clips + 2) / (num_clips + 4)
    error = math.sqrt(adjusted * (1 - adjusted) / (num_clips + 4))
    lowest = highest - STANDARD_ERRORS * error
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
