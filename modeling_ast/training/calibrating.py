"""Labelled clips that the model was not trained on -> calibration.json.

First the scores become probabilities, by one temperature, or by Platt's slope and intercept for
each label. Then each label gets its best threshold: the one with the highest F1, or the lowest one
that reaches a wanted precision. A label with few clips gets the values that are fitted to all
labels together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..calibration import (
    LEAST_SCORE,
    METHODS,
    Calibration,
    LabelCalibration,
    logit,
    sigmoid,
)
from ..tagging import AudioTagger
from .clips import BadClips
from .data_arguments import DataArguments
from .evaluation import RunningArguments, load_tagger, probabilities
from .held_out import HeldOut, columns_of, read_held_out
from .metrics import threshold_metrics
from .training_clips import fingerprint, refuse_training_clips

# Draws with replacement in `steady_threshold`.
NUM_DRAWS = 50


@dataclass
class CalibrationArguments:
    """What is fitted."""

    method: str = field(
        default="temperature",
        metadata={
            "help": "temperature: one slope for all labels; platt: a slope and an intercept for "
            "each label, which needs more clips",
            "choices": METHODS,
        },
    )
    precision: float | None = field(
        default=None,
        metadata={
            "help": "precision that each label must reach; by default thresholds give the best F1"
        },
    )
    min_positives: int = field(
        default=10,
        metadata={"help": "a label with fewer clips gets the values fitted to all labels together"},
    )


class Fit(NamedTuple):
    """A calibration, and how well it does on the clips that it was fitted to."""

    calibration: Calibration
    before: dict[str, float]
    after: dict[str, float]


def fit_calibration(
    scores: np.ndarray,
    targets: np.ndarray,
    labels: list[str],
    options: CalibrationArguments,
    activation: str,
    padding: str,
    data: Mapping[str, str] | None = None,
) -> Fit:
    """Fits a calibration.

    Args:
        scores: (B, C), the scores that the model gives without a calibration.
        targets: (B, C), 1 where a clip has the label, else 0.
        labels: Names of the C labels.
        options: What is fitted.
        activation: The activation that made the scores, "sigmoid" or "softmax".
        padding: How the clips were padded.
        data: Where the clips come from; stored in the calibration.
    Raises:
        ValueError: The arguments are out of their range or do not fit the scores, or each label has
            too few clips.
    """
    _check(options, activation, scores, targets)
    positives = targets.sum(0).astype(int)  # (C,)
    fewer = np.minimum(positives, len(targets) - positives)  # clips with, or without each label
    few = fewer < options.min_positives
    if few.all():
        wanted, most = f"{options.min_positives} clips", positives.max()
        if most >= options.min_positives:
            wanted, most = f"{wanted} with it and as many without it", fewer.max()
        raise ValueError(
            f"no label has {wanted} (the most is {most} of {len(targets)} clips); give more "
            f"held-out clips, or a smaller --min-positives; a calibration from so few clips can "
            f"make scores worse"
        )
    slope = 1 / temperature(scores, targets, activation)
    slopes, intercepts = np.full(len(labels), slope), np.zeros(len(labels))
    if options.method == "platt":
        for index in np.flatnonzero(~few):
            slopes[index], intercepts[index] = platt(scores[:, index], targets[:, index])
    rows = [
        LabelCalibration(0.5, float(a), float(b), int(count), bool(is_few))
        for a, b, count, is_few in zip(slopes, intercepts, positives, few)
    ]
    criterion = "best F1" if options.precision is None else f"precision {options.precision:g}"
    unfinished = Calibration(
        dict(zip(labels, rows)),
        options.method,
        criterion,
        activation,
        padding,
        len(targets),
        dict(data or {}),
    )
    calibrated = unfinished.apply(scores)
    thresholds = np.full(len(labels), threshold(calibrated, targets, options.precision))
    choose = steady_threshold if options.precision is None else threshold
    for index in np.flatnonzero(~few):
        thresholds[index] = choose(calibrated[:, index], targets[:, index], options.precision)
    finished = {
        label: LabelCalibration(float(value), row.slope, row.intercept, row.positives, row.fallback)
        for label, row, value in zip(labels, rows, thresholds)
    }
    calibration = Calibration(**{**vars(unfinished), "labels": finished})
    halves = np.full(len(labels), 0.5)
    return Fit(
        calibration,
        threshold_metrics(scores, targets, halves),
        threshold_metrics(calibrated, targets, thresholds),
    )


def temperature(scores: np.ndarray, targets: np.ndarray, activation: str) -> float:
    """The T for which logits / T give the least cross entropy. Source: Guo et al. 2017."""
    from scipy.optimize import minimize_scalar

    if activation == "softmax":
        logs = np.log(np.maximum(scores, LEAST_SCORE))  # (B, C)

        def loss(log_t: float) -> float:
            scaled = logs * np.exp(-log_t)
            rest = np.logaddexp.reduce(scaled, axis=1)  # (B,)
            return float((rest - (scaled * targets).sum(1)).mean())
    else:
        logits = logit(scores)  # (B, C)

        def loss(log_t: float) -> float:
            scaled = logits * np.exp(-log_t)
            return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def platt(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope and intercept for the logits of one label: the logistic regression that fits best.

    Platt's targets, (n + 1) / (n + 2) and 1 / (n + 2), keep both finite where the scores separate
    the clips.
    """
    from scipy.optimize import minimize

    num_positive, num_negative = targets.sum(), (1 - targets).sum()
    high, low = (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2)
    wanted = np.where(targets == 1, high, low)  # (B,)
    x = np.stack([logit(scores), np.ones(len(scores))])  # (2, B)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = weights @ x  # (B,)
        gradient = x @ (sigmoid(z) - wanted) / len(z)
        return float((np.logaddexp(0, z) - wanted * z).mean()), gradient

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(slope), float(intercept)


def threshold(scores: np.ndarray, targets: np.ndarray, precision: float | None = None) -> float:
    """The threshold with the best F1, or the lowest one that reaches a precision.

    Args:
        scores, targets: Of one label (B,), or of several together, of any equal shape.
        precision: The precision to reach; if no threshold does, the one with the highest precision
            is returned.
    Returns:
        Halfway between the lowest accepted score and the next lower score; in (0, 1].
    """
    scores, targets = scores.ravel(), targets.ravel()
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(targets[order])
    counts = np.arange(1, len(ranked) + 1)
    # Equal scores are accepted together, so only the last of them can be the lowest accepted one.
    last = np.append(ranked[1:] < ranked[:-1], True)
    precisions = hits / counts
    if precision is None:
        quality = 2 * hits / (counts + targets.sum())
        best = int(np.flatnonzero(last)[np.argmax(quality[last])])
    else:
        reached = np.flatnonzero(last & (precisions >= precision))
        best = int(
            reached[-1] if len(reached) else np.flatnonzero(last)[np.argmax(precisions[last])]
        )
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    # If no float lies between the two scores, take the higher one.
    middle = (ranked[best] + below) / 2
    return float(min(max(middle if middle > below else ranked[best], LEAST_SCORE), 1.0))


def steady_threshold(
    scores: np.ndarray, targets: np.ndarray, precision: float | None = None
) -> float:
    """The mean, as logits, of the best thresholds of `NUM_DRAWS` draws of the clips (B,).

    The best threshold of a few dozen clips depends on two or three of them; the mean over draws
    with replacement gave a higher F1 on other clips with each of three seeds
    (docs/detection_measured.md).
    """
    rng = np.random.default_rng(0)
    logits: list[float] = []
    while len(logits) < NUM_DRAWS:
        drawn = rng.integers(0, len(scores), len(scores))
        if targets[drawn].any():
            logits.append(float(logit(threshold(scores[drawn], targets[drawn], precision))))
    return float(sigmoid(np.array(np.mean(logits))))


def calibrate(
    model: str, options: CalibrationArguments, running: RunningArguments, data: DataArguments
) -> Fit:
    """Fits the calibration of a model to the held-out clips of a data set.

    Args:
        model: Name on the Hub, or a directory.
        options: What is fitted.
        running: How the model is run.
        data: Its held-out part is used.
    Raises:
        OSError, ValueError: The model or the data cannot be read, the model was trained on some of
            the clips, or each label has too few.
        TooManyBadClips: More clips than allowed cannot be decoded.
    """
    held_out = read_held_out(data)
    refuse_training_clips(model, held_out)
    # The model may have a calibration already; it is not read, as it may be damaged.
    tagger = load_tagger(model, running, calibration=False)
    bad_clips = BadClips.of_new_run(running.bad_clips, len(held_out.clips), data.max_bad_share)
    scores = probabilities(tagger, held_out, bad_clips)
    good = np.flatnonzero(~np.isnan(scores).any(1))
    if len(good) == 0:
        raise ValueError(
            f"none of the held-out clips can be used; {running.bad_clips} lists the reasons"
        )
    names, all_scores, all_targets = in_model_order(tagger, held_out, scores[good], good)
    source = {"name": str(data.data), "fingerprint": fingerprint(held_out)}
    return fit_calibration(
        all_scores, all_targets, names, options, tagger.activation, tagger.padding, source
    )


def in_model_order(
    tagger: AudioTagger, held_out: HeldOut, scores: np.ndarray, good: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels, scores and targets in the model's order; the data must have all of its labels."""
    own = columns_of(tagger.model.config, held_out.classes)
    names = tagger.names
    missing = [name for index, name in enumerate(names) if index not in own]
    if missing:
        raise ValueError(
            f"the data has no clips of {len(missing)} of the model's {len(names)} labels, such as "
            f"{missing[:3]}; name all of them in --label-csv"
        )
    order = np.argsort(own)
    return names, scores[:, order], held_out.targets[good][:, order]


def _check(
    options: CalibrationArguments, activation: str, scores: np.ndarray, targets: np.ndarray
) -> None:
    if options.method not in METHODS:
        raise ValueError(f"method is {options.method!r}; it must be one of {', '.join(METHODS)}")
    if options.method == "platt" and activation == "softmax":
        raise ValueError(
            "method is 'platt', which fits each label alone, but the scores are softmaxes over all "
            "labels; use temperature"
        )
    if options.precision is not None and not 0 < options.precision <= 1:
        raise ValueError(f"precision is {options.precision}; give more than 0 and at most 1")
    if options.min_positives < 1:
        raise ValueError(f"min_positives is {options.min_positives}; give at least 1")
    if scores.shape != targets.shape or scores.ndim != 2 or len(scores) == 0:
        raise ValueError(
            f"scores has shape {scores.shape} and targets {targets.shape}, but both must be "
            f"(clips, labels)"
        )
    if not targets.any() or targets.all():
        raise ValueError(
            "no clip has a label, or all clips have all labels; give clips with and without each "
            "label"
        )


__all__ = [
    "CalibrationArguments",
    "Fit",
    "calibrate",
    "fit_calibration",
    "platt",
    "steady_threshold",
    "temperature",
    "threshold",
]
