"""Metrics, against their definitions, scikit-learn class by class, and scipy's quantile."""

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
)
from transformers import EvalPrediction

from modeling_ast.training.metrics import (
    AudioTaggingMetric,
    accuracy,
    areas_under_roc,
    average_precisions,
    class_table,
    compute_metrics,
    d_prime,
    precision_recall_f1,
    tagging_metrics,
)


def make_case(clips: int = 211, classes: int = 7, decimals: int = 8, seed: int = 0):
    """Scores a little better than chance, with ties; no clip has class 1, all have class 4."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((clips, classes)) < np.linspace(0.05, 0.7, classes)).astype(int)
    targets[:, 1], targets[:, 4] = 0, 1
    scores = rng.standard_normal((clips, classes)) + targets
    return scores.round(decimals).astype(np.float32), targets


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_each_class_agrees_with_sklearn(decimals):
    scores, targets = make_case(decimals=decimals)
    precisions, areas = average_precisions(scores, targets), areas_under_roc(scores, targets)
    for c in range(targets.shape[1]):
        if c in (1, 4):
            assert math.isnan(precisions[c]) and math.isnan(areas[c])
            continue
        column = targets[:, c], scores[:, c]
        assert precisions[c] == pytest.approx(average_precision_score(*column), abs=1e-12)
        assert areas[c] == pytest.approx(roc_auc_score(*column), abs=1e-12)


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_ties_are_ranked_together(decimals):
    """The definitions: precision and recall at each score; pairs, in which a tie counts half."""
    scores, targets = make_case(clips=83, decimals=decimals)
    precisions, areas = average_precisions(scores, targets), areas_under_roc(scores, targets)
    for c in (0, 2, 3, 5, 6):
        s, t = scores[:, c], targets[:, c]
        precision, recalled = 0.0, 0
        for score in sorted(set(s), reverse=True):
            hits = t[s >= score].sum()
            precision += (hits - recalled) * t[s >= score].mean() / t.sum()
            recalled = hits
        pairs = s[t == 1][:, None] - s[t == 0]
        assert precisions[c] == pytest.approx(precision, abs=1e-12)
        assert areas[c] == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2, abs=1e-12)


def test_one_class_alone_and_infinite_scores():
    """The logarithm of a probability that was rounded to 0 is minus infinity."""
    scores, targets = make_case()
    one = tagging_metrics(scores[:, [3]], targets[:, [3]])
    assert one["mAP"] == average_precisions(scores, targets)[3]
    finite, infinite = scores.copy(), scores.copy()
    finite[:9], infinite[:9] = -99, -np.inf
    finite[9:14], infinite[9:14] = 99, np.inf
    assert tagging_metrics(infinite, targets) == tagging_metrics(finite, targets)


def test_half_precision_is_widened():
    scores, targets = make_case(decimals=1)
    half = average_precisions(scores.astype(np.float16), targets)
    np.testing.assert_array_equal(half, average_precisions(scores, targets))


def test_means_leave_out_undefined_classes_and_count_them():
    scores, targets = make_case()
    kept = [0, 2, 3, 5, 6]
    result = tagging_metrics(scores, targets)
    mean_auc = roc_auc_score(targets[:, kept], scores[:, kept], average="macro")
    wanted = average_precision_score(targets[:, kept], scores[:, kept], average="macro")
    assert result["mAP"] == pytest.approx(wanted, abs=1e-12)
    assert result["mAUC"] == pytest.approx(mean_auc, abs=1e-12)
    assert result["d_prime"] == pytest.approx(2**0.5 * scipy.stats.norm.ppf(mean_auc), abs=1e-9)
    assert result["undefined_classes"] == 2 and isinstance(result["undefined_classes"], int)
    none = tagging_metrics(scores[:, [1, 4]], targets[:, [1, 4]])
    assert none["undefined_classes"] == 2
    assert all(math.isnan(none[name]) for name in ("mAP", "mAUC", "d_prime"))


def test_d_prime_at_its_ends():
    assert d_prime(0.5) == 0.0
    assert (d_prime(1.0), d_prime(0.0)) == (math.inf, -math.inf)
    # The published AST: mAUC .972 is d' 2.70.
    assert d_prime(0.972) == pytest.approx(2.70, abs=0.005)


def test_class_table_has_a_row_for_each_name():
    scores, targets = make_case()
    rows = class_table(scores, targets, [f"class {c}" for c in range(7)])
    np.testing.assert_array_equal(
        [row.average_precision for row in rows], average_precisions(scores, targets)
    )
    np.testing.assert_array_equal([row.auc for row in rows], areas_under_roc(scores, targets))
    assert [row.positives for row in rows] == targets.sum(0).tolist()
    assert rows[3].name == "class 3"
    with pytest.raises(ValueError, match="got 2 names for 7 classes"):
        class_table(scores, targets, ["a", "b"])


def test_precision_recall_and_f1_are_sklearns():
    """Class 1 neither exists nor is found, class 2 is never found, no clip has class 5."""
    scores, targets = make_case()
    found = scores > 0.7
    found[:, [1, 2]], targets[:, 5] = False, 0
    expected = precision_recall_fscore_support(targets, found, zero_division=np.nan)
    np.testing.assert_allclose(precision_recall_f1(found, targets), expected[:3])
    rows = class_table(scores, targets, "abcdefg", found)
    np.testing.assert_allclose([row[4:] for row in rows], np.transpose(expected[:3]))
    assert math.isnan(rows[2].precision) and rows[2].recall == rows[2].f1 == 0
    assert all(math.isnan(number) for number in class_table(scores, targets, "abcdefg")[0][4:])


def test_compute_metrics_on_several_labels():
    scores, targets = make_case()
    # Trainer gives the labels as floats, and further outputs after the logits.
    prediction = EvalPrediction((scores, np.zeros(3)), targets.astype(np.float32))
    assert compute_metrics(prediction) == tagging_metrics(scores, targets)


def test_compute_metrics_on_one_label():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 101)
    logits = rng.standard_normal((101, 5)).astype(np.float32) * 3
    logits[np.arange(101), labels] += 2
    result = compute_metrics(EvalPrediction(logits, labels))
    assert result["accuracy"] == (logits.argmax(1) == labels).mean()
    softmax = scipy.special.softmax(logits.astype(np.float64), axis=1)
    wanted = average_precision_score(np.eye(5)[labels], softmax, average="macro")
    assert result["mAP"] == pytest.approx(wanted, abs=1e-12)
    assert accuracy(logits, labels) == result["accuracy"]


def test_ignored_clips_are_not_judged():
    scores, targets = make_case()
    more_scores = np.concatenate((scores, scores[:9] * -5))
    more = np.concatenate((targets, np.full((9, 7), -100)))
    assert compute_metrics(EvalPrediction(more_scores, more)) == tagging_metrics(scores, targets)
    one = compute_metrics(EvalPrediction(scores[:4], np.array([0, 3, -100, 2])))
    assert one == compute_metrics(EvalPrediction(scores[[0, 1, 3]], np.array([0, 3, 2])))


def test_sure_logits_keep_their_order():
    """Sigmoid and softmax in float32 would round all of these to 1 and tie them."""
    logits = np.array([[20.0, 0], [30.0, 0], [40.0, 0], [50.0, 0]], np.float32)
    targets = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert compute_metrics(EvalPrediction(logits, targets))["mAP"] == pytest.approx(
        (1.0 + average_precision_score(targets[:, 1], logits[:, 1])) / 2
    )
    assert compute_metrics(EvalPrediction(logits, np.array([1, 1, 0, 0])))["mAP"] == 1.0


@pytest.mark.parametrize("several", [True, False])
def test_the_evaluate_metric_works_offline_and_in_batches(tmp_path, several):
    scores, targets = make_case(decimals=2)
    labels = targets if several else targets.argmax(1)
    wanted = compute_metrics(EvalPrediction(scores, labels))
    metric = AudioTaggingMetric(cache_dir=str(tmp_path))
    assert metric.compute(predictions=scores, references=labels) == wanted
    for start in range(0, len(scores), 50):
        piece = slice(start, start + 50)
        metric.add_batch(predictions=scores[piece], references=labels[piece])
    assert metric.compute() == wanted


def test_each_bad_argument_is_named():
    scores, targets = make_case()
    with pytest.raises(ValueError, match=r"shape \(211, 7\) and targets \(211, 6\)"):
        average_precisions(scores, targets[:, :6])
    with pytest.raises(ValueError, match=r"shape \(0, 7\).*at least one of each"):
        tagging_metrics(scores[:0], targets[:0])
    with pytest.raises(ValueError, match="0 or 1, without mixup"):
        areas_under_roc(scores, targets * 0.5)
    scores[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 211 clips have NaN"):
        tagging_metrics(scores, targets)
