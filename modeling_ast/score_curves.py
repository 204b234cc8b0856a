"""Scores of overlapping windows -> a score for each step of time -> runs of steps with a sound.

A recording is cut into windows of W seconds, one every H seconds. Step k lasts from k H to
(k + 1) H; its score is the mean, or the maximum, of all windows that cover its middle. A run is a
stretch of steps whose scores stay high enough: an event, in steps instead of seconds.

The small functions work on whole curves and define the rules. `StepCombiner` and `RunTracker` do
the same block by block, so that a day of audio needs no more memory than a minute; tests compare
the two ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

COMBINATIONS = ("mean", "max")


class Run(NamedTuple):
    """Consecutive steps in which a sound is heard."""

    start: int  # first step
    stop: int  # the step behind its last
    score: float  # the highest score in it


class RunRules(NamedTuple):
    """The rules by which the curve of a class becomes runs."""

    threshold: float  # reached somewhere in each run
    low: float  # a run lasts as long as the scores reach this
    median_steps: int = 1  # width of the median filter, odd; 1 is none
    min_gap_steps: int = 0  # runs with a shorter gap between them become one
    min_length_steps: int = 0  # then shorter runs are dropped


def combined_windows(window_scores: np.ndarray, num_covering: int, how: str) -> np.ndarray:
    """The score of each step: the mean or the maximum of the windows that cover it.

    Args:
        window_scores: (N + num_covering - 1, C); the first `num_covering` cover step 0.
        num_covering: Windows that cover a step.
        how: One of `COMBINATIONS`.
    Returns:
        (N, C), float32.
    """
    covering = sliding_window_view(window_scores, num_covering, axis=0)  # (N, C, num_covering)
    combined = covering.max(-1) if how == "max" else covering.mean(-1)
    return combined.astype(np.float32)  # (N, C)


def median_filtered(curves: np.ndarray, width: int) -> np.ndarray:
    """The median of the `width` steps around each step; the curve is extended with its end values.

    Args:
        curves: (N, ...), N at least 1.
        width: Odd.
    """
    half = width // 2
    ends = [(half, half), *[(0, 0)] * (curves.ndim - 1)]
    return _inner_medians(np.pad(curves, ends, mode="edge"), width)


def _inner_medians(curves: np.ndarray, width: int) -> np.ndarray:
    """The median around each step that has `width // 2` neighbours on both sides."""
    return np.median(sliding_window_view(curves, width, axis=0), axis=-1).astype(curves.dtype)


def runs_above(curve: np.ndarray, low: float) -> list[Run]:
    """The longest stretches of a curve (N,) whose scores all reach `low`."""
    reaches = np.concatenate(([False], curve >= low, [False]))
    edges = np.flatnonzero(reaches[1:] != reaches[:-1]).reshape(-1, 2)
    return [Run(start, stop, float(curve[start:stop].max())) for start, stop in edges.tolist()]


def joined(first: Run, second: Run) -> Run:
    """One run from the beginning of the first to the end of the second."""
    return Run(first.start, second.stop, max(first.score, second.score))


def without_gaps(runs: Iterable[Run], min_gap: int) -> list[Run]:
    """Runs, in order; two of them become one where the gap is shorter than `min_gap` steps."""
    kept: list[Run] = []
    for run in runs:
        if kept and run.start - kept[-1].stop < min_gap:
            run = joined(kept.pop(), run)
        kept.append(run)
    return kept


def find_runs(curve: np.ndarray, rules: RunRules) -> list[Run]:
    """The runs of a whole curve (N,): median filter, hysteresis, gaps, then lengths."""
    smooth = median_filtered(curve, rules.median_steps)
    runs = [run for run in runs_above(smooth, rules.low) if run.score >= rules.threshold]
    runs = without_gaps(runs, rules.min_gap_steps)
    return [run for run in runs if run.stop - run.start >= rules.min_length_steps]


class StepCombiner:
    """`combined_windows`, block by block."""

    def __init__(self, num_covering: int, how: str):
        self.num_covering = num_covering
        self.how = how
        self._earlier: np.ndarray | None = None  # windows that cover steps to come as well

    def add(self, window_scores: np.ndarray) -> np.ndarray:
        """The scores (K, C) of the steps that are complete with these windows (any number, C)."""
        if self._earlier is not None:
            window_scores = np.concatenate([self._earlier, window_scores])
        num_steps = max(0, len(window_scores) - self.num_covering + 1)
        self._earlier = window_scores[num_steps:]
        if num_steps == 0:
            return np.empty((0, window_scores.shape[1]), np.float32)
        return combined_windows(window_scores, self.num_covering, self.how)


class RunTracker:
    """`find_runs` of all classes, block by block.

    Args:
        rules: Those of each class; the numbers of steps must be the same in all of them.
    """

    def __init__(self, rules: Sequence[RunRules]):
        self.rules = rules
        self._low = np.array([rule.low for rule in rules], np.float32)  # (C,)
        self._half = rules[0].median_steps // 2
        self._context: np.ndarray | None = None  # steps that later medians need
        self._step = 0  # steps whose medians are known
        self._open: dict[int, Run] = {}  # by class: a run that reaches the last of these steps
        self._ended: dict[int, Run] = {}  # by class: a run that the next one may join

    def add(self, scores: np.ndarray) -> list[tuple[int, Run]]:
        """Takes the scores (K, C) of the next steps; returns (class, run) of finished runs."""
        if len(scores) == 0 or self._half == 0:
            return self._follow(scores)
        before = np.repeat(scores[:1], self._half, 0) if self._context is None else self._context
        scores = np.concatenate([before, scores])
        self._context = scores[-2 * self._half :]
        if len(scores) <= 2 * self._half:
            return []
        return self._follow(_inner_medians(scores, 2 * self._half + 1))

    def finish(self) -> list[tuple[int, Run]]:
        """The runs that are not finished when the recording ends."""
        finished = []
        if self._context is not None:
            finished += self.add(np.repeat(self._context[-1:], self._half, 0))
        for index in sorted(self._open):
            finished += self._end(index, self._open[index])
        for index in sorted(self._ended):
            finished += self._if_long(index, self._ended[index])
        self._open, self._ended = {}, {}
        return finished

    def _follow(self, smooth: np.ndarray) -> list[tuple[int, Run]]:
        """Takes the medians (K, C) of the next steps."""
        begin, end = self._step, self._step + len(smooth)
        finished: list[tuple[int, Run]] = []
        if begin == end:
            return finished
        high = np.flatnonzero((smooth >= self._low).any(0)).tolist()
        for index in sorted({*high, *self._open}):
            runs = [
                Run(begin + start, begin + stop, score)
                for start, stop, score in runs_above(smooth[:, index], self._low[index])
            ]
            if (growing := self._open.pop(index, None)) is not None:
                goes_on = bool(runs) and runs[0].start == begin
                runs[:goes_on] = [joined(growing, runs[0]) if goes_on else growing]
            if runs and runs[-1].stop == end:
                self._open[index] = runs.pop()
            for run in runs:
                finished += self._end(index, run)
        self._step = end
        return finished + self._settle()

    def _end(self, index: int, run: Run) -> list[tuple[int, Run]]:
        """A run has ended: it joins the one before, or that one is finished."""
        rule, before = self.rules[index], self._ended.get(index)
        if run.score < rule.threshold:
            return []
        if before is None:
            self._ended[index] = run
            return []
        first, *rest = without_gaps([before, run], rule.min_gap_steps)
        self._ended[index] = rest[0] if rest else first
        return self._if_long(index, first) if rest else []

    def _settle(self) -> list[tuple[int, Run]]:
        """The ended runs that no later run can join any more."""
        finished = []
        for index, run in list(self._ended.items()):
            next_start = self._open[index].start if index in self._open else self._step
            if next_start - run.stop >= self.rules[index].min_gap_steps:
                finished += self._if_long(index, self._ended.pop(index))
        return finished

    def _if_long(self, index: int, run: Run) -> list[tuple[int, Run]]:
        return [(index, run)] if run.stop - run.start >= self.rules[index].min_length_steps else []


__all__ = [
    "COMBINATIONS",
    "Run",
    "RunRules",
    "RunTracker",
    "StepCombiner",
    "combined_windows",
    "find_runs",
    "joined",
    "median_filtered",
    "runs_above",
    "without_gaps",
]
