"""Edges of a spectrogram, where it rises or falls at once: there a sound begins or ends.

The scores of windows say which sound is heard, but their edges are blurred: a window of one second
may need from a tenth to a half of a second of a sound to recognise it. The spectrogram shows the
edge itself, but not which sound it belongs to. An event is therefore moved to the strongest edge
near the edge of its scores.

There is a rise where the mean of a few frames is above the loudest such mean in a longer stretch
before it. So the second stroke of a bell is not an edge while the first is in that stretch. A fall
is a rise with time reversed. Only the bins that change most count, because a pure tone fills few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# All in frames of 10 ms. Chosen with scenes at known times: tests/benchmarks/events.py.
AVERAGED = 5  # frames of a mean
CONTEXT = 25  # frames of the stretch with whose loudest mean it is compared
# Frames between the two sides, which hold the edge itself: a frame of 25 ms begins every 10 ms.
BETWEEN = 2
# An edge is the highest value among so many on each side.
RIVALS = 3
# Mel bins that count: those that change most.
BINS = 8
# In nats of log-mel energy: the smallest rise that counts as an edge, 9 dB; and the strength above
# which edges count as equal, so that the nearest is taken. The step from digital silence to a faint
# noise is as large as that from noise to a siren.
LEAST_RISE, MOST_RISE = 2.0, 7.0
# The strength of a distant edge is multiplied by a Gaussian of the distance. This is its standard
# deviation, as a share of the reach.
SPREAD = 0.6
# In seconds: edges nearer than two frames cannot be distinguished; an event lasts a frame at least.
NEAR, SHORTEST = 0.05, 0.025


class Edges(NamedTuple):
    """Edges of a spectrogram, in order: (time in seconds, strength in nats) each."""

    rises: np.ndarray  # (E, 2), float64
    falls: np.ndarray  # (E', 2)


NO_EDGES = Edges(np.empty((0, 2)), np.empty((0, 2)))


def edge_curves(frames: Tensor) -> Tensor:
    """How much the spectrogram rises and falls at each frame that has a context on both sides.

    Args:
        frames: (T, F), log-mel energies in nats, T at least 2 * CONTEXT + BETWEEN.
    Returns:
        (2, T - 2 * CONTEXT - BETWEEN + 1): rises and falls, not below 0. Column i compares the
        frames up to i + CONTEXT - 1 with those from i + CONTEXT + BETWEEN on.
    """
    means = F.avg_pool1d(frames.T, AVERAGED, 1)  # (F, T - AVERAGED + 1)
    loudest = F.max_pool1d(means, CONTEXT - AVERAGED + 1, 1)  # (F, T - CONTEXT + 1)
    behind, before = CONTEXT + BETWEEN, CONTEXT - AVERAGED
    num_columns = len(frames) - behind - CONTEXT + 1
    rises = means[:, behind : behind + num_columns] - loudest[:, :num_columns]
    falls = means[:, before : before + num_columns] - loudest[:, behind:]
    changes = torch.stack([rises, falls]).clamp_min(0.0)  # (2, F, N)
    return changes.topk(min(BINS, frames.shape[1]), dim=1).values.mean(1)  # (2, N)


class EdgeFinder:
    """The edges of a recording, block by block.

    The recording is extended with its first and last frame, so that its ends do not count as edges.

    Args:
        hop_seconds, window_seconds: Time from one frame to the next, and length of a frame.
    """

    def __init__(self, hop_seconds: float, window_seconds: float):
        self.hop_seconds = hop_seconds
        # Column f compares frames that end before the middle of these frames with frames that begin
        # after it. An abrupt edge fills all bins of the frame that it cuts, so that the rise is
        # strongest a frame too early, and the fall a frame too late.
        middle = (window_seconds + (BETWEEN - 1) * hop_seconds) / 2
        self._shifts = (middle + hop_seconds, middle - hop_seconds)
        self._context: Tensor | None = None  # frames that later columns need
        self._column = 0  # number of the next column
        self.num_frames = 0  # so far

    def add(self, frames: Tensor) -> Edges:
        """The edges that are known with the next frames (K, F), log-mel energies in nats."""
        self.num_frames += len(frames)
        return self._next(frames) if len(frames) else NO_EDGES

    def finish(self) -> Edges:
        """The edges that are not known before the recording has ended."""
        if self._context is None:
            return NO_EDGES
        return self._next(self._context[-1:].expand(CONTEXT + BETWEEN + RIVALS, -1))

    def _next(self, frames: Tensor) -> Edges:
        if self._context is None:
            self._context = frames[:1].expand(CONTEXT + RIVALS, -1)
        frames = torch.cat([self._context, frames])
        needed = 2 * CONTEXT + BETWEEN + 2 * RIVALS - 1
        self._context = frames[-needed:]
        if len(frames) <= needed:
            return NO_EDGES
        curves = edge_curves(frames)  # (2, N + 2 * RIVALS)
        highest = F.max_pool1d(curves, 2 * RIVALS + 1, 1)  # (2, N)
        curves = curves[:, RIVALS:-RIVALS]
        is_edge = ((curves == highest) & (curves >= LEAST_RISE)).cpu().numpy()
        strengths = curves.cpu().numpy()
        found = []
        for shift, strength, chosen in zip(self._shifts, strengths, is_edge):
            columns = np.flatnonzero(chosen)
            seconds = (self._column + columns) * self.hop_seconds + shift
            found.append(np.stack([seconds, strength[columns]], axis=1))
        self._column += strengths.shape[1]
        return Edges(*found)


def without_stretches(edges: Edges, stretches: np.ndarray) -> Edges:
    """Leaves out edges in and near stretches (M, 2), begin and end in seconds."""
    starts, stops = stretches.T
    kept = []
    for side in edges:
        seconds = side[:, :1]
        is_near = (starts - NEAR <= seconds) & (seconds <= stops + NEAR)  # (E, M)
        kept.append(side[~is_near.any(1)])
    return Edges(*kept)


def borders(stretches: np.ndarray, end: float) -> Edges:
    """Weak edges where a recording begins and ends, and at the borders of bad stretches (M, 2).

    A sound that is heard there without an edge of its own began before it, or continues after it.
    """
    starts, stops = stretches.T
    rises, falls = np.append(0.0, stops), np.append(starts, end)
    return Edges(
        *(np.stack([times, np.full(len(times), LEAST_RISE)], 1) for times in (rises, falls))
    )


def in_order(parts: Sequence[Edges]) -> Edges:
    """All edges of a recording, by their times."""
    sides = (np.concatenate(side) for side in zip(*parts))
    return Edges(*(side[np.argsort(side[:, 0], kind="stable")] for side in sides))


def nearest_edge(edges: np.ndarray, seconds: float, reach: float) -> float:
    """The edge that belongs to an estimated one: the strongest nearby; nearer ones count more.

    Args:
        edges: (E, 2), the rises or the falls, in order.
        seconds: The estimate.
        reach: In seconds, how far the estimate can be off.
    Returns:
        The time of the edge, or the estimate itself if there is none.
    """
    first, last = np.searchsorted(edges[:, 0], [seconds - reach, seconds + reach])
    if first == last:
        return seconds
    times, strengths = edges[first:last].T
    nearness = np.exp(-0.5 * ((times - seconds) / (SPREAD * reach)) ** 2)
    return float(times[np.argmax(np.minimum(strengths, MOST_RISE) * nearness)])


def placed(
    spans: Sequence[tuple[float, float]], edges: Edges, reach: float
) -> list[tuple[float, float]]:
    """Moves the events of one label, (begin, end) in seconds, to edges of the spectrogram.

    Args:
        spans: As the scores give them, in order, without overlap.
        edges: Of the recording, in order.
        reach: In seconds, how far an onset or offset may move. It stays in its half of the event,
            and of the gap to the next one.
    """
    found = []
    for number, (onset, offset) in enumerate(spans):
        middle = (onset + offset) / 2
        # The two edges of a click may lie on either side of its middle.
        low, high = onset - reach, offset + reach
        if number > 0:
            low = (spans[number - 1][1] + onset) / 2
        if number + 1 < len(spans):
            high = (offset + spans[number + 1][0]) / 2
        rise = nearest_edge(_between(edges.rises, low, middle + NEAR), onset, reach)
        fall = nearest_edge(_between(edges.falls, middle - NEAR, high), offset, reach)
        begin, end = min(rise, fall), max(rise, fall)
        found.append((begin, max(end, begin + SHORTEST)))
    return found


def _between(edges: np.ndarray, low: float, high: float) -> np.ndarray:
    first, last = np.searchsorted(edges[:, 0], [low, high])
    return edges[first:last]


__all__ = [
    "NO_EDGES",
    "EdgeFinder",
    "Edges",
    "borders",
    "edge_curves",
    "in_order",
    "nearest_edge",
    "placed",
    "without_stretches",
]
