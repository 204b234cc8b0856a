"""intervals.py, against scipy's bootstrap and exact interval, and scikit-learn."""

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score

from modeling_ast.training import intervals
from modeling_ast.training.intervals import (
    accuracy_interval,
    majority_share,
    mean_precision_interval,
    random_mean_precision,
    weighted_average_precision,
)


def make_case(clips=90, classes=4, decimals=1, seed=0):
    """Scores that are a little better than chance, with ties; no clip has class 1."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((clips, classes)) < np.linspace(0.1, 0.6, classes)).astype(int)
    targets[:, 1] = 0
    scores = rng.standard_normal((clips, classes)) + targets
    return scores.round(decimals), targets


@pytest.mark.parametrize(("right", "clips"), [(117, 162), (30, 40), (3, 200)])
def test_accuracy_against_scipy(right, clips):
    hits = np.arange(clips) < right
    found = accuracy_interval(hits)
    expected = scipy.stats.bootstrap(
        (hits,), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    step = 1.01 / clips  # an accuracy changes in steps of one clip
    assert found == pytest.approx(tuple(expected), abs=max(step, 0.01))


def test_mean_precision_against_scipy():
    """scipy draws the clips, and scikit-learn computes the metric of each draw."""
    scores, targets = make_case()

    def mean_precision(drawn):
        t, s = targets[drawn], scores[drawn]
        kept = [c for c in range(4) if 0 < t[:, c].sum() < len(t)]
        return np.mean([average_precision_score(t[:, c], s[:, c]) for c in kept])

    expected = scipy.stats.bootstrap(
        (np.arange(len(scores)),),
        mean_precision,
        vectorized=False,
        method="percentile",
        n_resamples=300,
        rng=2,
    ).confidence_interval
    assert mean_precision_interval(scores, targets) == pytest.approx(tuple(expected), abs=0.025)


@pytest.mark.parametrize("decimals", [8, 0])
def test_weights_are_repeated_clips(decimals):
    scores, targets = make_case(decimals=decimals)
    rng = np.random.default_rng(3)
    weights = rng.integers(0, 4, (20, len(scores)))
    weights[0] = targets[:, 3] == 0
    found = weighted_average_precision(scores[:, 3], targets[:, 3].astype(bool), weights)
    assert math.isnan(found[0])
    for row, value in zip(weights[1:], found[1:]):
        clips = np.repeat(np.arange(len(scores)), row)
        expected = average_precision_score(targets[clips, 3], scores[clips, 3])
        assert value == pytest.approx(expected, abs=1e-12)


def test_blocks_of_draws_are_one_draw(monkeypatch):
    scores, targets = make_case()
    whole = mean_precision_interval(scores, targets)
    monkeypatch.setattr(intervals, "WEIGHTS_AT_ONCE", 7 * len(scores))
    assert mean_precision_interval(scores, targets) == pytest.approx(whole)
    # A large data set gets fewer draws, so the interval is only nearly the same.
    monkeypatch.setattr(intervals, "MOST_WORK", 0)
    fewer = mean_precision_interval(scores, targets)
    assert fewer != whole and fewer == pytest.approx(whole, abs=0.03)


def test_groups_are_drawn_whole():
    """If the clips of a group are all right or all wrong, the group counts like one clip."""
    group_hits = np.array([1, 1, 0, 1, 0, 1, 1, 0, 1, 1], bool)
    hits, groups = np.repeat(group_hits, 20), np.repeat([f"kit {i}" for i in range(10)], 20)
    order = np.random.default_rng(0).permutation(200)
    found = accuracy_interval(hits[order], groups[order].tolist())
    # Groups are numbered in their order.
    group_hits = group_hits[[int(name[4:]) for name in dict.fromkeys(groups[order])]]
    assert found == pytest.approx(accuracy_interval(group_hits), abs=1e-12)
    alone = accuracy_interval(hits)
    assert found.high - found.low > 3 * (alone.high - alone.low)
    scores, targets = make_case()
    wide = mean_precision_interval(
        np.repeat(scores, 9, 0), np.repeat(targets, 9, 0), np.repeat(np.arange(90), 9).tolist()
    )
    assert wide == pytest.approx(mean_precision_interval(scores, targets), abs=1e-12)


@pytest.mark.parametrize("clips", [1, 8, 300])
def test_all_right_is_not_certain(clips):
    exact = scipy.stats.binomtest(clips, clips).proportion_ci(0.95, "exact")
    assert accuracy_interval(np.ones(clips)) == pytest.approx((exact.low, 1.0))
    exact = scipy.stats.binomtest(0, clips).proportion_ci(0.95, "exact")
    assert accuracy_interval(np.zeros(clips)) == pytest.approx((0.0, exact.high))
    assert accuracy_interval(np.ones(2 * clips), ["a", "b"] * clips).low == pytest.approx(
        0.025**0.5
    )


def test_one_group_says_nothing():
    assert all(map(math.isnan, accuracy_interval([1, 0, 1], ["a"] * 3)))
    scores, targets = make_case()
    assert all(map(math.isnan, mean_precision_interval(scores, targets, ["a"] * 90)))
    assert all(map(math.isnan, mean_precision_interval(scores[:, [1]], targets[:, [1]])))


def test_what_guessing_gives():
    targets = np.eye(3, dtype=int)[[0, 1, 1, 2, 1]]
    assert majority_share(targets) == 0.6
    rng = np.random.default_rng(0)
    few = (np.arange(10)[:, None] < [1, 3, 10]).astype(int)  # the last class is undefined
    simulated = np.mean(
        [[average_precision_score(few[:, c], rng.random(10)) for c in (0, 1)] for _ in range(500)]
    )
    assert random_mean_precision(few) == pytest.approx(simulated, abs=0.03)
    many = (np.arange(5000)[:, None] < 500).astype(int)
    assert random_mean_precision(many) == pytest.approx(0.1, abs=0.002)
    assert math.isnan(random_mean_precision(few[:, 2:]))
