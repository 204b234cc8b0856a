"""What a run leaves: the judge against scikit-learn, the table as a spreadsheet reads it."""

import csv

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score
from transformers import EvalPrediction

from modeling_ast.labels import Label
from modeling_ast.training.lengths import SHARES, LengthResult, Lengths
from modeling_ast.training.results import (
    Judge,
    draw_classes,
    length_section,
    metric_rows,
    write_table,
)

NAMES = ["a, b", "$x$", "c", "never"]
CLASSES = [Label(f"/m/{name}", name) for name in NAMES]


@pytest.fixture
def judged():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    return rng.standard_normal((40, 4)).astype(np.float32), labels


@pytest.mark.parametrize("multi_hot", [False, True])
def test_the_judge(judged, multi_hot):
    """Class indices are ranked by their softmax, multi-hot labels by their logits."""
    logits, labels = judged
    one_hot = np.eye(4)[labels]
    judge = Judge(CLASSES, exclusive=True)
    metrics = judge(EvalPrediction(logits, one_hot if multi_hot else labels))
    assert judge.metric == "accuracy" and next(iter(metrics)) == "accuracy"
    assert metrics["accuracy"] == accuracy_score(labels, logits.argmax(1))
    scores = logits if multi_hot else softmax(logits.astype(np.float64), axis=1)
    for index, row in enumerate(judge.table[:3]):
        assert row.name == NAMES[index] and row.positives == (labels == index).sum()
        expected = average_precision_score(one_hot[:, index], scores[:, index])
        assert row.average_precision == pytest.approx(expected)
        assert row.auc == pytest.approx(roc_auc_score(one_hot[:, index], scores[:, index]))
    assert np.isnan(judge.table[3].average_precision)
    assert metrics["mAP"] == pytest.approx(
        np.mean([row.average_precision for row in judge.table[:3]])
    )


def test_several_labels_have_no_accuracy(judged):
    logits, labels = judged
    judge = Judge(CLASSES, exclusive=False)
    assert "accuracy" not in judge(EvalPrediction(logits, np.eye(4)[labels]))
    assert judge.metric == "mAP"


def test_the_table_and_its_picture(judged, tmp_path):
    logits, labels = judged
    judge = Judge(CLASSES, exclusive=True)
    judge(EvalPrediction(logits, labels))
    write_table(judge.table, tmp_path / "per_class.csv")
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NAMES
    assert [int(row["index"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[0]["average_precision"]) == judge.table[0].average_precision
    assert (rows[3]["average_precision"], rows[3]["positives"]) == ("", "0")
    draw_classes(judge.table * 30, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_the_card():
    rows = metric_rows({"eval_mAP": 0.5, "eval_runtime": 3.0, "average_mAP": 0.75})
    assert rows == "| mAP | 0.5000 |\n| mAP of the averaged weights | 0.7500 |"


def test_the_cards_scores_under_both_paddings():
    results = [
        LengthResult(padding, share, {"mAP": share / 2 + (padding == "longest") / 8})
        for padding in ("max_length", "longest")
        for share in SHARES
    ]
    text = length_section(Lengths(results, 17), "mAP", "longest")
    assert "mAP on 17 of the held-out clips" in text and "saved the padding `longest`" in text
    assert "| max_length | 0.5000 | 0.2500 | 0.1250 |" in text
    assert "| longest | 0.6250 | 0.3750 | 0.2500 |" in text
    assert "plain transformers and transformers.js always pad to max_length" in text
    assert length_section(Lengths([], 0), "mAP", "longest") == ""
