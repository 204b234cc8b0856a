"""answers.py, against scikit-learn, and on answers with known mistakes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from modeling_ast.training.answers import Answers, interval_text, summary_lines

NAMES = ["kick", "snare", "tom", "never"]


def one_label(clips=120, seed=0):
    """Answers for clips with one label each; the label "never" has no clip."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, clips)
    logits = rng.standard_normal((clips, 4)) + 1.5 * np.eye(4)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    files = [f"{i}.wav" for i in range(clips)]
    return Answers(scores, np.eye(4)[truth], NAMES, True, files), truth


def several_labels(clips=80, seed=1, **more):
    rng = np.random.default_rng(seed)
    targets = (rng.random((clips, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(float)
    scores = 1 / (1 + np.exp(-(rng.standard_normal((clips, 4)) + 2 * targets - 1)))
    files = [f"{i}.wav" for i in range(clips)]
    return Answers(scores, targets, NAMES, False, files, **more)


def test_one_label_against_sklearn():
    answers, truth = one_label()
    guesses = answers.scores.argmax(1)
    assert answers.headline.value == accuracy_score(truth, guesses)
    assert answers.headline.chance == np.bincount(truth).max() / len(truth)
    assert answers.headline.majority == NAMES[np.bincount(truth).argmax()]
    low, high = answers.headline.interval
    assert low < answers.headline.value < high
    np.testing.assert_array_equal(answers.matrix, confusion_matrix(truth, guesses, labels=range(4)))
    expected = precision_recall_fscore_support(
        truth, guesses, labels=range(4), zero_division=np.nan
    )
    found = [[row.precision, row.recall, row.f1] for row in answers.classes]
    np.testing.assert_allclose(found, np.transpose(expected[:3]))
    worst = [row.name for row in answers.weakest(2)]
    assert worst == [NAMES[i] for i in np.argsort(expected[2][:3])[:2]]


def test_several_labels_against_sklearn():
    answers = several_labels(thresholds=np.array([0.5, 0.4, 0.3, 0.5]))
    kept = answers.targets[:, :3], answers.scores[:, :3]
    assert answers.headline.value == pytest.approx(average_precision_score(*kept))
    assert answers.headline.metric == "mAP" and answers.headline.majority is None
    found = answers.scores >= [0.5, 0.4, 0.3, 0.5]
    expected = precision_recall_fscore_support(answers.targets, found, zero_division=np.nan)
    rows = [[row.precision, row.recall, row.f1] for row in answers.classes]
    np.testing.assert_allclose(rows, np.transpose(expected[:3]))
    # Counted by hand, clip by clip: missed labels against wrong ones.
    counts = np.zeros((4, 4), int)
    for true, given in zip(answers.targets.astype(bool), found):
        for i in np.flatnonzero(true & ~given):
            for j in np.flatnonzero(given & ~true):
                counts[i, j] += 1
        counts[np.diag_indices(4)] += true & given
    np.testing.assert_array_equal(answers.matrix, counts)


def test_pairs_that_are_confused():
    scores = np.eye(4)[[0, 0, 0, 1, 1, 2, 0, 1]]
    truth = np.eye(4)[[0, 1, 1, 1, 2, 2, 2, 0]]
    answers = Answers(scores, truth, NAMES, True, list("abcdefgh"))
    pairs = [(pair.true, pair.predicted, pair.clips, pair.positives) for pair in answers.confusions]
    assert pairs == [
        ("snare", "kick", 2, 3),
        ("kick", "snare", 1, 2),
        ("tom", "kick", 1, 3),
        ("tom", "snare", 1, 3),
    ]
    assert summary_lines(answers)[1:] == [
        "weakest classes, by F1: kick 0.33 (2 clips), snare 0.33 (3 clips), tom 0.50 (3 clips)",
        "most often confused: snare mistaken for kick, in 2 of 3 clips",
    ]


def test_the_surest_mistake_is_first():
    answers, truth = one_label()
    guesses, surest = answers.scores.argmax(1), answers.scores.max(1)
    wrong = np.flatnonzero(guesses != truth)
    expected = [(f"{i}.wav", NAMES[truth[i]], NAMES[guesses[i]], surest[i]) for i in wrong]
    expected.sort(key=lambda row: -row[3])
    found = [(row.file, *row.true, *row.predicted, row.score) for row in answers.mistakes]
    assert found == expected and {row.kind for row in answers.mistakes} == {"confused"}


def test_mistakes_of_several_labels():
    """A threshold separates missed and found labels; the confidence is measured from it."""
    scores = np.array([[0.9, 0.7, 0.0, 0.0], [0.2, 0.1, 0.0, 0.0], [0.6, 0.35, 0.0, 0.0]])
    truth = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    lowest = np.array([0.5, 0.4, 0.5, 0.5])
    answers = Answers(scores, truth, NAMES, False, ["a", "b", "c"], lowest)
    rows = [(row.file, row.kind, row.true, row.predicted, row.score) for row in answers.mistakes]
    assert rows == [
        ("a", "missed", ["tom"], ["kick", "snare"], 0.0),  # 1 - 0 / 0.5
        ("b", "missed", ["snare"], [], 0.1),  # 1 - 0.1 / 0.4
        ("a", "false positive", ["kick", "tom"], ["snare"], 0.7),  # (0.7 - 0.4) / 0.6
        ("c", "missed", ["snare"], ["kick"], 0.35),  # 1 - 0.35 / 0.4
    ]
    sure = [row.confidence for row in answers.mistakes]
    assert sure == pytest.approx([1.0, 0.75, 0.5, 0.125])
    assert summary_lines(answers)[-1] == (
        "most often confused: tom missed and snare found instead, in 1 of 1 clips"
    )


def test_the_summary():
    truth = np.eye(4)[[0, 0, 0, 1, 1, 2, 2, 2]]
    answers = Answers(truth, truth, ["a\x1b[2J", *NAMES[1:]], True, list("abcdefgh"))
    (first,) = summary_lines(answers)
    assert first == (
        'accuracy 1.000 on 8 held-out clips (95 % interval 0.631 to 1.000; always "a\\x1b[2J" '
        "would give 0.375)"
    )
    # The classes without a mistake are not among the weakest.
    wrong = truth.copy()
    wrong[0] = [0, 1, 0, 0]
    second = summary_lines(replace(answers, scores=wrong))[1]
    assert second == "weakest classes, by F1: a\\x1b[2J 0.80 (3 clips), snare 0.80 (2 clips)"
    grouped = Answers(truth, truth, NAMES, True, list("abcdefgh"), groups=list("xxyyzzzz"))
    assert "over 3 groups" in summary_lines(grouped)[0]
    one = Answers(truth, np.roll(truth, 1, 0), NAMES, True, list("abcdefgh"), groups=["x"] * 8)
    assert interval_text(one.headline) == "no interval: it needs clips of two groups or more"
    text = summary_lines(several_labels())[0]
    assert text.startswith("mAP 0.") and "random scores would give 0." in text


def test_no_class_is_defined():
    answers = Answers(np.ones((3, 2)), np.ones((3, 2)), ["a", "b"], False, list("abc"))
    assert math.isnan(answers.headline.value) and answers.weakest(3) == []
    assert answers.mistakes == [] and answers.confusions == []


def test_sizes_must_fit():
    scores = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"2 files and 2 classes have scores \(3, 2\) and targets"):
        Answers(scores, scores, ["a", "b"], True, ["x", "y"])
    with pytest.raises(ValueError, match="there are no clips; give the answers to one"):
        Answers(scores[:0], scores[:0], ["a", "b"], True, [])
    with pytest.raises(ValueError, match="2 groups are given for 3 clips"):
        Answers(scores, scores, ["a", "b"], True, list("xyz"), groups=[1, 2])
