"""Dividing clips, against scikit-learn's splitters, exhaustive search and counting."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from modeling_ast.training.dividing import deal_folds, divide, hold_out
from tests.conftest import ROOT


def one_label(numbers):
    return [[str(number)] for number in numbers]


def most_off(classes, parts, shares):
    """The largest difference, in clips, between a class's clips in a part and its share."""
    return max(
        abs(np.sum((classes == own) & (parts == part)) - share * np.sum(classes == own))
        for own in np.unique(classes)
        for part, share in enumerate(shares)
    )


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 6), min_size=4, max_size=80).map(np.array),
    st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5]),
)
def test_each_class_has_its_share_within_one_clip(classes, share):
    held_out = hold_out(one_label(classes), share)
    counts = {own: (held_out[classes == own].sum(), sum(classes == own)) for own in set(classes)}
    # A class with two or more clips has at least one on each side.
    assert all(0 < inside < total for inside, total in counts.values() if total > 1)
    assert all(
        abs(inside - share * total) <= 1 for inside, total in counts.values() if share * total >= 1
    )
    assert 0 < held_out.sum() < len(classes)
    # Unless rare classes need more, the number is that of scikit-learn, rounded up.
    if all(share * total >= 1 and (1 - share) * total >= 1 for _, total in counts.values()):
        splitter = StratifiedShuffleSplit(1, test_size=share, random_state=0)
        ((_, theirs),) = splitter.split(classes, classes)
        assert held_out.sum() == len(theirs)


@pytest.mark.filterwarnings("ignore:The least populated class")
@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 4), min_size=10, max_size=80).map(np.array),
    st.integers(2, 5),
)
def test_folds_are_as_even_as_those_of_scikit_learn(classes, num_folds):
    folds = deal_folds(one_label(classes), num_folds)
    assert set(folds) == set(range(1, num_folds + 1))
    shares = [1 / num_folds] * num_folds
    assert most_off(classes, folds - 1, shares) < 1
    sizes = np.bincount(folds)[1:]
    assert sizes.max() - sizes.min() <= 1
    if np.bincount(classes).max() >= num_folds:
        theirs = np.empty(len(classes), int)
        for fold, (_, held_out) in enumerate(StratifiedKFold(num_folds).split(classes, classes)):
            theirs[held_out] = fold
        assert most_off(classes, folds - 1, shares) <= most_off(classes, theirs, shares) + 1e-9


def tagged(seed, clips=600, labels=14):
    """Clips with no, one or several labels, some of them rare."""
    rng = np.random.default_rng(seed)
    return rng.random((clips, labels)) < np.geomspace(0.005, 0.4, labels)


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_to_a_clip(seed):
    matrix = tagged(seed)
    labels = [list(np.flatnonzero(row)) for row in matrix]
    held_out = hold_out(labels, 0.2)
    assert held_out.sum() == 120
    off = np.abs(matrix[held_out].sum(0) - 0.2 * matrix.sum(0))
    drawn = (np.random.default_rng(index).permutation(held_out) for index in range(20))
    off_if_drawn = [np.abs(matrix[own].sum(0) - 0.2 * matrix.sum(0)) for own in drawn]
    assert (off <= 2 + 0.01 * matrix.sum(0)).all()
    assert np.square(off).mean() < np.square(off_if_drawn).mean() / 5
    often = matrix.sum(0) > 1
    assert matrix[held_out].any(0)[often].all() and matrix[~held_out].any(0)[often].all()
    # The clips without a label are divided in the same shares.
    none = ~matrix.any(1)
    assert abs(none[held_out].sum() - 0.2 * none.sum()) <= 2
    folds = deal_folds(labels, 5)
    assert set(np.bincount(folds)[1:]) == {120}
    for fold in range(1, 6):
        off = np.abs(matrix[folds == fold].sum(0) - 0.2 * matrix.sum(0))
        assert (off <= 2 + 0.01 * matrix.sum(0)).all()


def kits(seed, clips=300, groups=16, classes=5):
    """Clips of groups of unequal sizes, each with more clips of some classes."""
    rng = np.random.default_rng(seed)
    kit = rng.choice(groups, clips, p=rng.dirichlet(np.full(groups, 2)))
    prefers = rng.dirichlet(np.ones(classes), groups)
    return np.array([rng.choice(classes, p=prefers[own]) for own in kit]), kit


@pytest.mark.parametrize("seed", range(3))
def test_no_group_is_in_two_parts_and_labels_are_near_their_shares(seed):
    classes, kit = kits(seed)
    held_out = hold_out(one_label(classes), 0.2, kit.tolist())
    assert not set(kit[held_out]) & set(kit[~held_out])
    for own in set(classes):
        assert 0.1 < held_out[classes == own].mean() < 0.35
    folds = deal_folds(one_label(classes), 3, kit.tolist())
    assert all(len(set(folds[kit == own])) == 1 for own in set(kit))
    theirs = np.empty(len(classes), int)
    for fold, (_, part) in enumerate(StratifiedGroupKFold(3).split(classes, classes, kit)):
        theirs[part] = fold
    shares = [1 / 3] * 3
    assert most_off(classes, folds - 1, shares) <= most_off(classes, theirs, shares) + 2


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.booleans())
def test_as_many_labels_are_on_both_sides_as_can_be(seed, grouped):
    """The best division is found by trying all divisions of a few clips or groups."""
    rng = np.random.default_rng(seed)
    units, classes = rng.integers(3, 9), rng.integers(2, 6)
    clips = units + (rng.integers(0, 8) if grouped else 0)
    group = np.concatenate([np.arange(units), rng.integers(0, units, clips - units)])
    labels = [list(np.flatnonzero(rng.random(classes) < 0.4)) for _ in range(clips)]
    has = np.zeros((units, classes), bool)
    for unit, names in zip(group, labels):
        has[unit, names] = True
    has = has[:, has.sum(0) > 1]

    def lacking(held_out):
        return (~has[held_out].any(0)).sum() + (~has[~held_out].any(0)).sum()

    ways = (np.array(way) for way in itertools.product((False, True), repeat=int(units)))
    least = min(lacking(way) for way in ways if 0 < way.sum() < units)
    held_out = hold_out(labels, 0.25, group.tolist() if grouped else None)
    assert lacking(np.isin(np.arange(units), group[held_out])) == least


def test_the_one_clip_of_a_label_is_to_train_on():
    labels = [["a"]] * 10 + [["b"]]
    assert not hold_out(labels, 0.4)[-1]


def test_too_few_to_divide():
    with pytest.raises(ValueError, match="1 clips cannot be divided into 2 parts"):
        hold_out([["a"]], 0.5)
    with pytest.raises(ValueError, match="2 groups cannot be divided into 3 parts"):
        deal_folds([["a"]] * 4, 3, [0, 0, 1, 1])
    with pytest.raises(ValueError, match="4 clips cannot be divided into 1000000000 parts"):
        deal_folds([["a"]] * 4, 10**9)
    for share in (0.01, 0.4, 0.6, 0.95, 0.99):
        for count in (2, 3, 10):
            held_out = hold_out([["a"]] * count, share)
            assert 0 < held_out.sum() < count
    assert sorted(divide([["a"], ["a"], []], (0.4, 0.3, 0.3))) == [0, 1, 2]


def test_every_process_divides_alike():
    """Each process has other hashes of strings."""
    file = ROOT / "modeling_ast" / "training" / "dividing.py"
    code = f"""
import runpy
hold_out = runpy.run_path({str(file)!r})["hold_out"]
labels = [[name for name in "abcdef" if index % (ord(name) - 90) == 0] for index in range(60)]
print(hold_out(labels, 0.3).astype(int).tolist())
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
