"""Steps and runs, against scipy's filter and loops that follow the definitions, in any blocks."""

import numpy as np
import pytest
from scipy import ndimage

from modeling_ast.score_curves import (
    Run,
    RunRules,
    RunTracker,
    StepCombiner,
    combined_windows,
    find_runs,
    median_filtered,
    runs_above,
    without_gaps,
)


def some_curves(seed, num_steps=211, num_classes=4):
    """Scores that stay high or low for a while, like those of a model."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter1d(rng.standard_normal((num_steps, num_classes)), 3.0, axis=0)
    return (1 / (1 + np.exp(-12 * noise))).astype(np.float32)


def blocks(array, seed):
    """The array in blocks of random lengths, some of them empty."""
    cuts = np.random.default_rng(seed).integers(0, len(array) + 1, 12)
    return np.split(array, np.sort(cuts))


def stepwise(curve, rules):
    """The runs of a filtered curve by a loop over the steps, slower than `find_runs`."""
    found, start = [], None
    for step, score in enumerate([*curve, -1.0]):
        if score >= rules.low and start is None:
            start = step
        elif score < rules.low and start is not None:
            if max(curve[start:step]) >= rules.threshold:
                found.append([start, step])
            start = None
    number = 0
    while number + 1 < len(found):
        if found[number + 1][0] - found[number][1] < rules.min_gap_steps:
            found[number][1] = found.pop(number + 1)[1]
        else:
            number += 1
    return [pair for pair in found if pair[1] - pair[0] >= rules.min_length_steps]


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("num_covering", [1, 2, 5])
def test_a_step_is_the_mean_or_maximum_of_the_windows_that_cover_it(how, num_covering):
    windows = np.random.default_rng(0).random((30, 3))
    steps = combined_windows(windows, num_covering, how)
    assert steps.shape == (31 - num_covering, 3)
    for step in range(len(steps)):
        expected = getattr(np, how)(windows[step : step + num_covering], axis=0)
        np.testing.assert_allclose(steps[step], expected, rtol=1e-6)


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("num_covering", [1, 4, 9])
@pytest.mark.parametrize("seed", range(5))
def test_the_combiner_gives_the_same_for_any_blocks(how, num_covering, seed):
    windows = np.random.default_rng(seed).random((40, 3))
    combiner = StepCombiner(num_covering, how)
    parts = [combiner.add(block) for block in blocks(windows, seed)]
    expected = combined_windows(windows, num_covering, how)
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("width", [1, 3, 7, 31])
@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_the_median_filter_is_that_of_scipy(width, num_steps):
    curves = some_curves(width, num_steps)
    expected = ndimage.median_filter(curves, size=(width, 1), mode="nearest")
    np.testing.assert_array_equal(median_filtered(curves, width), expected)


def test_runs_reach_the_level_and_are_as_long_as_can_be():
    curve = np.array([0.9, 0.2, 0.5, 0.7, 0.5, 0.4, 0.6])
    assert runs_above(curve, 0.5) == [Run(0, 1, 0.9), Run(2, 5, 0.7), Run(6, 7, 0.6)]
    assert runs_above(curve, 1.0) == []


def test_a_gap_of_the_least_length_stays():
    runs = [Run(0, 2, 0.5), Run(4, 6, 0.9), Run(9, 10, 0.6)]
    assert without_gaps(runs, 2) == runs
    assert without_gaps(runs, 3) == [Run(0, 6, 0.9), Run(9, 10, 0.6)]
    assert without_gaps(runs, 4) == [Run(0, 10, 0.9)]


RULES = [
    RunRules(0.5, 0.5),
    RunRules(0.8, 0.4),
    RunRules(0.7, 0.7, median_steps=5),
    RunRules(0.6, 0.6, min_gap_steps=6),
    RunRules(0.6, 0.6, min_length_steps=5),
    RunRules(0.8, 0.5, median_steps=7, min_gap_steps=5, min_length_steps=8),
    RunRules(0.9, 0.3, median_steps=31, min_gap_steps=40, min_length_steps=3),
]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_runs_are_those_of_a_loop_over_the_steps(rules, seed):
    curve = some_curves(seed)[:, 0]
    smooth = ndimage.median_filter(curve, size=rules.median_steps, mode="nearest")
    runs = find_runs(curve, rules)
    assert [[run.start, run.stop] for run in runs] == stepwise(smooth, rules)
    for run in runs:
        assert run.score == smooth[run.start : run.stop].max()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_the_tracker_finds_the_same_runs_for_any_blocks(rules, seed):
    curves = some_curves(seed)
    thresholds = [rules.threshold, 0.5, 0.9, 0.99]
    of_class = [rules._replace(threshold=threshold) for threshold in thresholds]
    tracker = RunTracker(of_class)
    found = [pair for block in blocks(curves, seed) for pair in tracker.add(block)]
    found += tracker.finish()
    for index, rule in enumerate(of_class):
        mine = [run for number, run in found if number == index]
        assert mine == find_runs(curves[:, index], rule)


def test_a_run_is_given_as_soon_as_no_other_can_join_it():
    tracker = RunTracker([RunRules(0.5, 0.5, min_gap_steps=3)])
    assert tracker.add(np.array([[0.9], [0.1], [0.1]])) == []
    assert tracker.add(np.array([[0.1]])) == [(0, Run(0, 1, 0.9))]
    assert tracker.finish() == []
