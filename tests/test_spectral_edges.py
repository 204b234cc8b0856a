"""Edges of sounds at known samples, against loops that follow the definition, in any blocks."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from modeling_ast import ASTFeatureExtractor
from modeling_ast.spectral_edges import (
    AVERAGED,
    BETWEEN,
    BINS,
    CONTEXT,
    LEAST_RISE,
    EdgeFinder,
    Edges,
    borders,
    edge_curves,
    in_order,
    nearest_edge,
    placed,
    without_stretches,
)

RATE = 16_000
FRAME = 0.025


def some_frames(num_frames, num_bins=16, seed=0):
    """Levels that change now and then, with noise."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(0, 3, (num_frames // 20 + 1, num_bins)), 20, axis=0)
    return torch.from_numpy(levels[:num_frames] + rng.normal(0, 1, (num_frames, num_bins))).float()


def log_mel(x):
    return ASTFeatureExtractor().log_mel(torch.from_numpy(x.astype(np.float32)))


def by_definition(frames):
    """Rises and falls of each column by loops."""
    frames = frames.numpy().astype(np.float64)
    curves = []
    for middle in range(CONTEXT, len(frames) - CONTEXT - BETWEEN + 1):
        before, behind = frames[:middle], frames[middle + BETWEEN :]
        changes = []
        for near, far in ((behind, before[::-1]), (before[::-1], behind)):
            means = [
                far[start : start + AVERAGED].mean(0) for start in range(CONTEXT - AVERAGED + 1)
            ]
            rise = np.maximum(near[:AVERAGED].mean(0) - np.max(means, axis=0), 0)
            changes.append(np.sort(rise)[-BINS:].mean())
        curves.append(changes)
    return np.array(curves).T


def test_curves_are_those_of_the_definition():
    frames = some_frames(150)
    np.testing.assert_allclose(edge_curves(frames).numpy(), by_definition(frames), atol=1e-5)


def test_few_bins():
    assert edge_curves(some_frames(60, num_bins=3)).shape == (2, 60 - 2 * CONTEXT - BETWEEN + 1)


@pytest.mark.parametrize("seed", range(8))
def test_the_finder_gives_the_same_for_any_blocks(seed):
    frames = some_frames(400, seed=seed)
    cuts = np.sort(np.random.default_rng(seed).integers(0, 401, 9))
    whole, pieces = EdgeFinder(0.01, FRAME), EdgeFinder(0.01, FRAME)
    expected = in_order([whole.add(frames), whole.finish()])
    parts = [pieces.add(part) for part in torch.tensor_split(frames, cuts.tolist())]
    found = in_order([*parts, pieces.finish()])
    assert len(expected.rises) > 3 and len(expected.falls) > 3
    for mine, theirs in zip(found, expected):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("num_frames", [0, 1, 2, 30, 60])
def test_a_short_or_even_recording_has_no_edges(num_frames):
    finder = EdgeFinder(0.01, FRAME)
    edges = in_order([finder.add(torch.zeros(num_frames, 16)), finder.finish()])
    assert len(edges.rises) == len(edges.falls) == 0 and finder.num_frames == num_frames


@pytest.mark.parametrize("floor", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("kind", ["tone", "noise"])
@pytest.mark.parametrize("onset", [0.8, 1.00371, 1.49993])
def test_an_abrupt_sound_begins_and_ends_within_a_frame(kind, floor, onset):
    rng = np.random.default_rng(0)
    x = floor * rng.standard_normal(3 * RATE)
    start, stop = round(onset * RATE), round((onset + 0.7) * RATE)
    times = np.arange(stop - start) / RATE
    sound = np.sin(2 * np.pi * 800 * times) if kind == "tone" else rng.standard_normal(len(times))
    x[start:stop] += 0.3 * sound
    frames = log_mel(x)
    finder = EdgeFinder(0.01, FRAME)
    edges = in_order([finder.add(frames), finder.finish()])
    for side, time in ((edges.rises, onset), (edges.falls, onset + 0.7)):
        strongest = side[np.argmax(side[:, 1]), 0]
        assert strongest == pytest.approx(time, abs=FRAME)
        assert nearest_edge(side, time + 0.2, 0.5) == strongest


def test_strokes_that_follow_each_other_have_one_rise():
    """A bell every 0.2 s: each stroke falls, but only the first rises above the sound before it."""
    x = 1e-3 * np.random.default_rng(0).standard_normal(3 * RATE)
    for stroke in range(5):
        start = round((1 + 0.2 * stroke) * RATE)
        times = np.arange(round(0.15 * RATE)) / RATE
        x[start : start + len(times)] += np.sin(2 * np.pi * 900 * times) * np.exp(-times / 0.03)
    frames = log_mel(x)
    finder = EdgeFinder(0.01, FRAME)
    edges = in_order([finder.add(frames), finder.finish()])
    (rise,) = edges.rises[edges.rises[:, 1] > LEAST_RISE + 1]
    assert rise[0] == pytest.approx(1.0, abs=FRAME)


def test_the_nearer_of_two_equal_edges_and_the_stronger_of_two_near_ones():
    edges = np.array([[1.0, 5.0], [1.4, 5.0], [3.0, 3.0], [3.1, 6.0], [9.0, 50.0]])
    assert nearest_edge(edges, 1.1, 0.5) == 1.0 and nearest_edge(edges, 1.3, 0.5) == 1.4
    assert nearest_edge(edges, 3.0, 0.5) == 3.1
    assert nearest_edge(edges, 5.0, 0.5) == 5.0  # none within reach
    assert nearest_edge(np.empty((0, 2)), 5.0, 0.5) == 5.0


def test_events_do_not_cross():
    """For any edges, events stay in order, do not overlap, and have a length."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        cuts = np.sort(rng.uniform(0, 20, 12)).reshape(-1, 2)
        spans = [(a, b) for a, b in cuts.tolist() if b - a > 0.1]
        sides = [np.stack([np.sort(rng.uniform(0, 20, 40)), rng.uniform(2, 9, 40)], 1)] * 2
        found = placed(spans, Edges(*sides), 0.5)
        assert len(found) == len(spans)
        for (onset, offset), (begin, end) in zip(spans, found):
            assert begin < end
            assert abs(begin - onset) <= 0.5 and abs(end - offset) <= 0.5 + 0.05
        for (_, end), (begin, _) in pairwise(found):
            assert end <= begin + 0.05


def test_bad_stretches_have_no_edges_but_weak_borders():
    stretches = np.array([[5.0, 6.0], [9.0, np.inf]])
    rises = np.array([[4.0, 9.0], [5.5, 9.0], [6.03, 9.0], [7.0, 9.0], [9.5, 9.0]])
    kept = without_stretches(Edges(rises, rises[:2]), stretches)
    assert kept.rises[:, 0].tolist() == [4.0, 7.0] and kept.falls[:, 0].tolist() == [4.0]
    weak = borders(stretches[:1], 20.0)
    assert weak.rises.tolist() == [[0.0, LEAST_RISE], [6.0, LEAST_RISE]]
    assert weak.falls.tolist() == [[5.0, LEAST_RISE], [20.0, LEAST_RISE]]
    assert in_order([kept, weak]).rises[:, 0].tolist() == [0.0, 4.0, 6.0, 7.0]
