"""Calibration against scikit-learn, against formulas, and on clips with known probabilities."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_recall_curve

from modeling_ast.calibration import (
    Calibration,
    LabelCalibration,
    load_calibration,
    logit,
    sigmoid,
)
from modeling_ast.training.calibrating import (
    CalibrationArguments,
    fit_calibration,
    platt,
    temperature,
    threshold,
)
from modeling_ast.training.metrics import expected_calibration_error, threshold_metrics

LABELS = ["a", "b", "c"]


def known(seed=0, num_clips=4000, slope=2.5, intercept=-1.0):
    """Scores that are too confident by a known slope and intercept, and targets from the truth."""
    rng = np.random.default_rng(seed)
    true_logits = 2 * rng.standard_normal((num_clips, 3)) - 1
    targets = (rng.random((num_clips, 3)) < sigmoid(true_logits)).astype(float)
    return sigmoid((true_logits - intercept) / (1 / slope)), targets


def test_platt_is_logistic_regression():
    scores, targets = known()
    slope, intercept = platt(scores[:, 0], targets[:, 0])
    judge = LogisticRegression(C=np.inf).fit(logit(scores[:, :1]), targets[:, 0])
    assert slope == pytest.approx(judge.coef_[0, 0], rel=0.01)
    assert intercept == pytest.approx(judge.intercept_[0], rel=0.02)
    assert slope == pytest.approx(1 / 2.5, rel=0.1) and intercept == pytest.approx(-1, abs=0.15)


def test_platt_stays_finite_where_the_scores_separate_the_clips():
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    slope, intercept = platt(scores, np.array([0.0, 0, 1, 1]))
    assert 0 < slope < 10 and abs(intercept) < 10


def test_the_temperature_is_found():
    scores, targets = known(intercept=0.0, slope=3.0)
    assert temperature(scores, targets, "sigmoid") == pytest.approx(3.0, rel=0.05)
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((5000, 4))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    picked = np.array([rng.choice(4, p=row) for row in chances])
    sure = np.exp(2 * logits) / np.exp(2 * logits).sum(1, keepdims=True)
    assert temperature(sure, np.eye(4)[picked], "softmax") == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_f1_is_that_of_trying_every_threshold(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, 10 ** (1 + seed % 3), 40) / 10 ** (1 + seed % 3)  # with ties
    targets = (rng.random(40) < 0.3).astype(float)
    targets[0] = 1
    found = f1_score(targets, scores >= threshold(scores, targets))
    best = max(f1_score(targets, scores >= value) for value in np.unique(scores))
    assert found == pytest.approx(best)


@pytest.mark.parametrize("seed", range(10))
def test_a_wanted_precision_is_reached_as_low_as_can_be(seed):
    rng = np.random.default_rng(seed)
    scores, targets = rng.random(60), (rng.random(60) < 0.4).astype(float)
    precisions, recalls, _ = precision_recall_curve(targets, scores)
    wanted = 0.6
    lowest = threshold(scores, targets, wanted)
    found = scores >= lowest
    if (precisions[:-1] >= wanted).any():
        assert targets[found].mean() >= wanted
        assert targets[found].sum() / targets.sum() == recalls[:-1][precisions[:-1] >= wanted].max()
    else:
        assert targets[found].mean() == precisions[:-1].max()


def test_the_calibration_error_is_that_of_a_loop_over_bins():
    rng = np.random.default_rng(0)
    scores, targets = rng.random((300, 3)), (rng.random((300, 3)) < 0.5).astype(float)
    scores[0, 0] = 1.0
    error = 0.0
    for low in range(15):
        inside = (scores * 15 >= low) & ((scores * 15 < low + 1) | (low == 14))
        if inside.any():
            gap = abs(scores[inside].mean() - targets[inside].mean())
            error += inside.mean() * gap
    assert expected_calibration_error(scores, targets) == pytest.approx(error)


def test_f1_is_that_of_scikit_learn():
    scores, targets = known(num_clips=50)
    thresholds = np.array([0.2, 0.5, 0.9])
    expected = f1_score(targets, scores >= thresholds, average="macro", zero_division=0)
    assert threshold_metrics(scores, targets, thresholds)["F1"] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_other_clips_are_calibrated_too(method):
    options = CalibrationArguments(method=method)
    fit = fit_calibration(*known(0), LABELS, options, "sigmoid", "longest")
    scores, targets = known(1)
    calibrated = fit.calibration.apply(scores)
    before = threshold_metrics(scores, targets, np.full(3, 0.5))
    after = threshold_metrics(calibrated, targets, fit.calibration.thresholds)
    assert after["ECE"] < before["ECE"] / (1.1 if method == "temperature" else 4)
    assert after["F1"] > before["F1"] - 0.005
    assert fit.after["ECE"] < fit.before["ECE"]


def test_a_label_with_few_clips_gets_the_values_of_all():
    scores, targets = known(num_clips=500)
    targets[:, 1] = 0
    targets[:9, 1] = 1
    options = CalibrationArguments(method="platt")
    calibration = fit_calibration(
        scores, targets, LABELS, options, "sigmoid", "longest"
    ).calibration
    few = calibration.labels["b"]
    assert few.fallback and few.positives == 9 and few.intercept == 0.0
    assert few.slope == pytest.approx(1 / temperature(scores, targets, "sigmoid"))
    assert few.threshold == threshold(calibration.apply(scores), targets)
    assert not calibration.labels["a"].fallback


def test_what_is_saved_is_loaded(tmp_path):
    calibration = fit_calibration(
        *known(), LABELS, CalibrationArguments("platt", 0.8), "sigmoid", "longest", {"name": "d"}
    ).calibration
    calibration.save(tmp_path)

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((tmp_path / "calibration.json").read_text(), parse_constant=refuse)
    assert content["method"] == "platt" and content["criterion"] == "precision 0.8"
    loaded = load_calibration(tmp_path, LABELS, "sigmoid")
    assert loaded == calibration and loaded.fingerprint == calibration.fingerprint
    assert load_calibration(tmp_path, LABELS, "softmax") is None
    assert load_calibration(tmp_path / "..", LABELS, "sigmoid") is None
    with pytest.raises(ValueError, match=r"is of another model: its labels are \['a', 'b', 'c'\]"):
        load_calibration(tmp_path, ["x", "b", "c"], "sigmoid")
    for text in ("{}", "[1]", "no json", '{"labels": {"a": {"threshold": NaN}}}'):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(ValueError, match=r"is not a calibration .*; make it again"):
            load_calibration(tmp_path, LABELS, "sigmoid")


def test_applied_by_the_formula():
    labels = {
        "a": LabelCalibration(0.3, 2.0, -1.0, 20),
        "b": LabelCalibration(0.6, 0.5, 0.25, 20),
    }
    calibration = Calibration(labels, "platt", "best F1", "sigmoid", "longest", 40)
    scores = np.array([[0.2, 0.7], [0.0, 1.0]])
    expected = [1 / (1 + (0.8 / 0.2) ** 2 * np.e), 1 / (1 + (0.3 / 0.7) ** 0.5 * np.exp(-0.25))]
    np.testing.assert_allclose(calibration.apply(scores)[0], expected)
    assert np.isfinite(calibration.apply(scores)).all()
    np.testing.assert_allclose(calibration.relative(np.array([0.3, 0.6])), [0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "activation", "message"),
    [
        (CalibrationArguments("isotonic"), "sigmoid", "method is 'isotonic'; it must be one of"),
        (CalibrationArguments("platt"), "softmax", "the scores are softmaxes over all labels"),
        (CalibrationArguments(precision=0.0), "sigmoid", "precision is 0.0; give more than 0"),
        (CalibrationArguments(min_positives=0), "sigmoid", "min_positives is 0; give at least 1"),
    ],
)
def test_refused(options, activation, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(*known(num_clips=50), LABELS, options, activation, "longest")
    with pytest.raises(ValueError, match="no clip has a label"):
        scores = np.full((5, 3), 0.5)
        fit_calibration(
            scores, np.zeros((5, 3)), LABELS, CalibrationArguments(), "sigmoid", "longest"
        )
