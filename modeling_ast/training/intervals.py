"""Bootstrap intervals of metrics over held-out clips, and the values that guessing would reach.

A bootstrap draws as many clips as there are, with replacement, and computes the metric of the
draw; the interval is the middle 95 % of many such values. Clips of one group (a speaker, an
instrument, a place) resemble each other, so if the groups are known, whole groups are drawn.
Source: Efron and Tibshirani 1993, chapters 13 (percentiles) and 8 (whole units are drawn).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
NUM_DRAWS = 1000
# Draws x clips x classes should not exceed this: large data sets get fewer draws than NUM_DRAWS.
MOST_WORK = 1_000_000_000
LEAST_DRAWS = 200
# Number of clip weights in memory at a time.
WEIGHTS_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A 95 % confidence interval; both ends are NaN if the clips do not determine it."""

    low: float
    high: float


def accuracy_interval(hits: np.ndarray, groups: Sequence[Hashable] | None = None) -> Interval:
    """The interval of an accuracy.

    If all clips are right, every draw is, too, and the bootstrap would give 1 to 1 for any number
    of clips. The lower end is then the exact one of Clopper and Pearson, for as many trials as
    there are groups or, without groups, clips. The same holds for the upper end if all are wrong.

    Args:
        hits: (B,), whether each clip is right; at least one.
        groups: Group of each clip; by default each clip is its own group.
    Returns:
        The interval; NaN if there is only one group, unless all clips are right or all are wrong.
    """
    hits = np.asarray(hits, bool)
    num_units = len(hits) if groups is None else len(set(groups))
    bound = ((1 - CONFIDENCE) / 2) ** (1 / num_units)
    if hits.all():
        return Interval(bound, 1.0)
    if not hits.any():
        return Interval(0.0, 1 - bound)
    draws = _draws(len(hits), groups, NUM_DRAWS)
    return _middle(
        np.concatenate([weights @ hits / weights.sum(1) for weights in draws]), num_units
    )


def mean_precision_interval(
    scores: np.ndarray, targets: np.ndarray, groups: Sequence[Hashable] | None = None
) -> Interval:
    """The interval of a mean average precision.

    In each draw the mean is over those classes that have a drawn positive clip and a drawn negative
    one. A perfect mAP gives 1 to 1, whatever the number of clips.

    Args:
        scores, targets: (B, C), as in `metrics.average_precisions`.
        groups: Group of each clip; by default each clip is its own group.
    Returns:
        The interval; NaN if there is only one group, or if no class is defined.
    """
    scores, targets = np.nan_to_num(np.asarray(scores)), np.asarray(targets).astype(bool)
    positives = targets.sum(0)
    defined = np.flatnonzero((positives > 0) & (positives < len(targets)))
    if not len(defined):
        return Interval(math.nan, math.nan)
    affordable = MOST_WORK // (len(targets) * len(defined))
    means = []
    for weights in _draws(len(targets), groups, min(NUM_DRAWS, max(LEAST_DRAWS, affordable))):
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for c in defined:
            precision = weighted_average_precision(scores[:, c], targets[:, c], weights)
            total += np.nan_to_num(precision)
            count += ~np.isnan(precision)
        means.append(total[count > 0] / count[count > 0])
    num_units = len(targets) if groups is None else len(set(groups))
    return _middle(np.concatenate(means), num_units)


def weighted_average_precision(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Average precision of one class if each clip counts several times, or not at all.

    Args:
        scores: (B,), finite.
        targets: (B,), bool.
        weights: (R, B), how often each clip counts in each of R draws.
    Returns:
        (R,), in [0, 1]; NaN for a draw without a positive or without a negative clip. Clips of
        equal score are ranked together, as by scikit-learn.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, drawn = -scores[order], weights[:, order]  # drawn (R, B)
    positive = np.flatnonzero(targets[order])  # (P,)
    hits = drawn[:, positive]  # (R, P)
    # The last clip of equal score: its place among all clips, and among the positive ones.
    last = np.searchsorted(ranked, ranked[positive], side="right") - 1
    last_positive = np.searchsorted(ranked[positive], ranked[positive], side="right") - 1
    seen = drawn.cumsum(1)[:, last]  # (R, P)
    precision = hits.cumsum(1)[:, last_positive] / np.maximum(seen, 1)
    total = hits.sum(1)  # (R,)
    result = (precision * hits).sum(1) / np.maximum(total, 1)
    return np.where((total > 0) & (total < drawn.sum(1)), result, np.nan)


def majority_share(targets: np.ndarray) -> float:
    """The accuracy of always answering the most frequent of the classes (B, C)."""
    return float(np.asarray(targets).mean(0).max())


def random_mean_precision(targets: np.ndarray) -> float:
    """The mAP that random scores give on average, over the classes (B, C) that are defined.

    The average precision of P of N clips in random order has the mean
    (H + (P - 1) / (N - 1) * (N - H)) / N, where H = 1 + 1/2 + ... + 1/N. That is P / N where both
    are large, and more where they are small. It follows from the precision at each rank k: the
    clip there is positive with probability P / N, and each of the k - 1 clips before it is then
    positive with probability (P - 1) / (N - 1).
    """
    targets = np.asarray(targets)
    num_clips, positives = len(targets), targets.sum(0)
    positives = positives[(positives > 0) & (positives < num_clips)]
    if not len(positives):
        return math.nan
    harmonic = (1 / np.arange(1, num_clips + 1)).sum()
    share = (positives - 1) / (num_clips - 1)
    return float(((harmonic + share * (num_clips - harmonic)) / num_clips).mean())


def _draws(
    num_clips: int, groups: Sequence[Hashable] | None, num_draws: int
) -> Iterator[np.ndarray]:
    """How often each clip is drawn (R, B), for `num_draws` draws in all; the same in each call."""
    rng = np.random.default_rng(0)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups or ()))}
    unit = range(num_clips) if groups is None else [numbers[group] for group in groups]
    num_units = num_clips if groups is None else len(numbers)
    block = max(1, WEIGHTS_AT_ONCE // num_clips)
    for start in range(0, num_draws, block):
        size = min(block, num_draws - start)
        counts = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size)
        yield counts[:, unit].astype(np.int32)


def _middle(figures: np.ndarray, num_units: int) -> Interval:
    if num_units < 2 or not len(figures):
        return Interval(math.nan, math.nan)
    rest = (1 - CONFIDENCE) / 2
    low, high = np.quantile(figures, [rest, 1 - rest])
    return Interval(float(low), float(high))


__all__ = [
    "CONFIDENCE",
    "Interval",
    "accuracy_interval",
    "majority_share",
    "mean_precision_interval",
    "random_mean_precision",
    "weighted_average_precision",
]
