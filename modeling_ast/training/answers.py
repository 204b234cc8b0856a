"""The scores of a model on held-out clips, and the figures that are shown of them.

These are one accuracy or mAP, with its interval and the value that guessing would reach, the
weakest classes, the pairs of labels that the model confuses, and the clips with the worst mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..labels import printable
from .intervals import (
    CONFIDENCE,
    Interval,
    accuracy_interval,
    majority_share,
    mean_precision_interval,
    random_mean_precision,
)
from .metrics import ClassResult, class_table, tagging_metrics

# A label counts as found from this score on, for models without a calibration.
DEFAULT_THRESHOLD = 0.5
# Number of weak classes that a summary names.
WEAKEST = 3
# Kinds of mistakes: the first if a clip has exactly one label, the others if it may have several.
CONFUSED, FALSE_POSITIVE, MISSED = "confused", "false positive", "missed"


class Headline(NamedTuple):
    """The figure that a model is judged by."""

    metric: str  # "accuracy", or "mAP" where a clip may have several labels
    value: float
    interval: Interval
    # The accuracy of always answering the most frequent class, or the mAP of random scores.
    chance: float
    majority: str | None  # the most frequent class; None for mAP
    num_clips: int
    num_groups: int | None  # None if the interval was computed over single clips, not groups


class Confusion(NamedTuple):
    """How many clips have the label `true` but were given the wrong label `predicted` instead."""

    true: str
    predicted: str
    clips: int
    positives: int  # clips that have the true label


class Mistake(NamedTuple):
    """One wrong label of one clip: a label that was missed, or one that the clip does not have."""

    clip: int  # index of the clip
    file: str
    true: Sequence[str]  # only the missed label if kind is MISSED, else all labels of the clip
    predicted: Sequence[str]  # all labels found if kind is MISSED, else only the wrong one
    score: float  # of the wrong label, or of the missed one
    kind: str
    confidence: float  # from 0 (at the threshold) to 1 (the model is sure)


@dataclass(frozen=True)
class Answers:
    """Scores of held-out clips, with everything that is needed to judge them.

    Args:
        scores: (B, C), probabilities.
        targets: (B, C), 1 where a clip has the label, else 0.
        names: Names of the C classes.
        exclusive: Whether a clip has exactly one label; its answer is then the highest score.
        files: Names of the B clips.
        thresholds: (C,), or one for all: a label counts as found from this score on. Used only
            if a clip may have several labels.
        groups: Group of each clip, such as its speaker, for the interval; see `intervals.py`.
    Raises:
        ValueError: The sizes do not fit together, or there is no clip.
    """

    scores: np.ndarray
    targets: np.ndarray
    names: Sequence[str]
    exclusive: bool
    files: Sequence[str]
    thresholds: np.ndarray | float = DEFAULT_THRESHOLD
    groups: Sequence[Hashable] | None = None

    def __post_init__(self):
        num_clips = len(self.files)
        wanted = (num_clips, len(self.names))
        sizes = {"scores": self.scores.shape, "targets": self.targets.shape}
        wrong = [f"{name} {shape}" for name, shape in sizes.items() if shape != wanted]
        if num_clips == 0:
            raise ValueError("there are no clips; give the answers to one clip or more")
        if wrong:
            raise ValueError(
                f"{num_clips} files and {len(self.names)} classes have {' and '.join(wrong)}; "
                f"scores and targets must be (clips, classes)"
            )
        if self.groups is not None and len(self.groups) != num_clips:
            raise ValueError(
                f"{len(self.groups)} groups are given for {num_clips} clips; give one for each"
            )

    @property
    def metric(self) -> str:
        """What a model is judged by: "accuracy" or "mAP"."""
        return "accuracy" if self.exclusive else "mAP"

    @cached_property
    def there(self) -> np.ndarray:
        """(B, C), bool: the labels that the clips really have."""
        return self.targets.astype(bool)

    @cached_property
    def found(self) -> np.ndarray:
        """(B, C), bool: the labels that the model gives the clips."""
        if self.exclusive:
            return np.eye(len(self.names), dtype=bool)[self.scores.argmax(1)]
        return self.scores >= self.thresholds

    @cached_property
    def classes(self) -> list[ClassResult]:
        """A row for each class."""
        return class_table(self.scores, self.targets, self.names, self.found)

    @cached_property
    def headline(self) -> Headline:
        """The accuracy or the mAP, its interval, and the value that guessing would reach."""
        majority = None
        if self.exclusive:
            hits = self.found[self.there]
            value, interval = float(hits.mean()), accuracy_interval(hits, self.groups)
            chance = majority_share(self.targets)
            majority = self.names[int(self.targets.sum(0).argmax())]
        else:
            value = tagging_metrics(self.scores, self.targets)["mAP"]
            interval = mean_precision_interval(self.scores, self.targets, self.groups)
            chance = random_mean_precision(self.targets)
        num_groups = None if self.groups is None else len(set(self.groups))
        return Headline(self.metric, value, interval, chance, majority, len(self.files), num_groups)

    @property
    def class_metric(self) -> str:
        """The field of `ClassResult` that a class is judged by."""
        return "f1" if self.exclusive else "average_precision"

    def weakest(self, count: int) -> list[ClassResult]:
        """The classes with the lowest quality, the lowest first, if they have held-out clips."""
        quality = self.class_metric
        rows = [
            row for row in self.classes if row.positives and not math.isnan(getattr(row, quality))
        ]
        return sorted(rows, key=lambda row: getattr(row, quality))[:count]

    @cached_property
    def matrix(self) -> np.ndarray:
        """(C, C), counts of clips; the confusion matrix if each clip has exactly one label.

        Off the diagonal, [i, j] counts the clips that have label i, which was missed, and were
        given label j, which they do not have. The diagonal counts labels that were found correctly.
        """
        missed = (self.there & ~self.found).astype(np.float32)  # exact up to 2^24 clips
        false = (self.found & ~self.there).astype(np.float32)
        counts = (missed.T @ false).astype(int)
        np.fill_diagonal(counts, (self.there & self.found).sum(0))
        return counts

    @cached_property
    def confusions(self) -> list[Confusion]:
        """Pairs of labels that the model confuses, the most frequent first."""
        counts, positives = self.matrix.copy(), self.there.sum(0)
        np.fill_diagonal(counts, 0)
        true, predicted = np.nonzero(counts)
        # Among pairs with equally many clips, the one with the rarer true label comes first.
        order = np.lexsort((positives[true], -counts[true, predicted]))
        return [
            Confusion(self.names[t], self.names[p], int(counts[t, p]), int(positives[t]))
            for t, p in zip(true[order].tolist(), predicted[order].tolist())
        ]

    @cached_property
    def mistakes(self) -> list[Mistake]:
        """All mistakes, those with the highest confidence first."""
        clips, labels = np.nonzero(self.found & ~self.there)
        kinds = [CONFUSED if self.exclusive else FALSE_POSITIVE] * len(clips)
        if not self.exclusive:
            more, missed = np.nonzero(self.there & ~self.found)
            clips, labels = np.concatenate([clips, more]), np.concatenate([labels, missed])
            kinds += [MISSED] * len(more)
        scores = self.scores[clips, labels]
        confidence = scores
        if not self.exclusive:
            lowest = np.broadcast_to(self.thresholds, (len(self.names),))[labels]
            above = (scores - lowest) / np.maximum(1 - lowest, 1e-12)
            confidence = np.where(scores >= lowest, above, 1 - scores / np.maximum(lowest, 1e-12))
        order = np.argsort(-confidence, kind="stable")
        return [
            self._mistake(int(clips[i]), int(labels[i]), kinds[i], float(confidence[i]))
            for i in order
        ]

    def _mistake(self, clip: int, label: int, kind: str, confidence: float) -> Mistake:
        true, predicted = self.labels_of(clip)
        name = [self.names[label]]
        return Mistake(
            clip,
            self.files[clip],
            name if kind == MISSED else true,
            predicted if kind == MISSED else name,
            float(self.scores[clip, label]),
            kind,
            confidence,
        )

    def labels_of(self, clip: int) -> tuple[list[str], list[str]]:
        """The labels that a clip has, and those that the model gives it."""
        true, predicted = np.flatnonzero(self.there[clip]), np.flatnonzero(self.found[clip])
        return [self.names[i] for i in true.tolist()], [self.names[i] for i in predicted.tolist()]


def chance_text(headline: Headline) -> str:
    """A clause that says which value guessing would reach."""
    if headline.majority is None:
        return f"random scores would give {headline.chance:.3f}"
    return f'always "{printable(headline.majority)}" would give {headline.chance:.3f}'


def interval_text(headline: Headline) -> str:
    """The interval as text: "95 % interval 0.648 to 0.790"."""
    low, high = headline.interval
    if math.isnan(low):
        return "no interval: it needs clips of two groups or more"
    over = "" if headline.num_groups is None else f" over {headline.num_groups} groups"
    return f"{CONFIDENCE * 100:.0f} % interval {low:.3f} to {high:.3f}{over}"


def summary_lines(answers: Answers) -> list[str]:
    """A few lines for a terminal: the figure, the weakest classes, the pair confused most often."""
    headline = answers.headline
    lines = [
        f"{headline.metric} {headline.value:.3f} on {headline.num_clips} held-out clips "
        f"({interval_text(headline)}; {chance_text(headline)})"
    ]
    quality = answers.class_metric
    weakest = [
        f"{printable(row.name)} {getattr(row, quality):.2f} "
        f"({row.positives} {'clip' if row.positives == 1 else 'clips'})"
        for row in answers.weakest(WEAKEST)
        if getattr(row, quality) < 1
    ]
    if weakest:
        name = "F1" if answers.exclusive else "average precision"
        lines.append(f"weakest classes, by {name}: {', '.join(weakest)}")
    if answers.confusions:
        pair = answers.confusions[0]
        true, predicted = printable(pair.true), printable(pair.predicted)
        what = f"{true} mistaken for {predicted}"
        if not answers.exclusive:
            what = f"{true} missed and {predicted} found instead"
        lines.append(f"most often confused: {what}, in {pair.clips} of {pair.positives} clips")
    return lines


__all__ = [
    "CONFUSED",
    "DEFAULT_THRESHOLD",
    "FALSE_POSITIVE",
    "MISSED",
    "Answers",
    "Confusion",
    "Headline",
    "Mistake",
    "chance_text",
    "interval_text",
    "summary_lines",
]
