"""The result files: metrics against scikit-learn, tables as a spreadsheet reads them."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score
from transformers import EvalPrediction

from modeling_ast import ASTFeatureExtractor
from modeling_ast.labels import Label
from modeling_ast.training.clips import ClipReader
from modeling_ast.training.held_out import held_out_clips
from modeling_ast.training.results import Judge, answers_of, name_below, save_results, scores_of

NAMES = ["a, b", "$x$", "c", "never"]
CLASSES = [Label(f"/m/{name}", name) for name in NAMES]


@pytest.fixture
def judged(tmp_path):
    """Logits, class indices and the clips: forty short files."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    files = [str(tmp_path / f"{number}.wav") for number in range(40)]
    for file in files:
        soundfile.write(file, 0.1 * rng.standard_normal(2000), 16000)
    rows = Dataset.from_dict({"audio": files, "label": [NAMES[index] for index in labels]})
    held_out = held_out_clips(rows, ClipReader(), CLASSES, "label", exclusive=True)
    return rng.standard_normal((40, 4)).astype(np.float32), labels, held_out


@pytest.mark.parametrize("multi_hot", [False, True])
def test_the_judge(judged, multi_hot):
    """Class indices are ranked by their softmax, multi-hot labels by their logits."""
    logits, labels, held_out = judged
    one_hot = np.eye(4)[labels]
    judge = Judge(CLASSES, exclusive=True)
    metrics = judge(EvalPrediction(logits, one_hot if multi_hot else labels))
    assert judge.metric == "accuracy" and next(iter(metrics)) == "accuracy"
    assert metrics["accuracy"] == accuracy_score(labels, logits.argmax(1))
    answers = judge.answers(held_out, sigmoid=multi_hot)
    scores = expit(logits) if multi_hot else softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(answers.scores, scores, rtol=1e-6)
    for index, row in enumerate(answers.classes[:3]):
        assert row.name == NAMES[index] and row.positives == (labels == index).sum()
        expected = average_precision_score(one_hot[:, index], scores[:, index])
        assert row.average_precision == pytest.approx(expected)
        assert row.auc == pytest.approx(roc_auc_score(one_hot[:, index], scores[:, index]))
    assert np.isnan(answers.classes[3].average_precision)
    assert metrics["mAP"] == pytest.approx(
        np.mean([row.average_precision for row in answers.classes[:3]])
    )
    assert answers.headline.value == metrics["accuracy"]
    assert answers.files[3].endswith("/3.wav")


def test_names_start_at_the_folder_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "data", Path("data")):
        assert name_below(root, str(tmp_path / "data" / "a" / "b.wav")) == os.path.join(
            "a", "b.wav"
        )
        assert name_below(root, "data/a/b.wav") == os.path.join("a", "b.wav")
        assert name_below(root, "a/b.wav") == "a/b.wav"
        assert name_below(root, str(tmp_path / "database" / "b.wav")).startswith(str(tmp_path))
    assert name_below(None, "/x/y.wav") == "/x/y.wav"


def test_several_labels_have_no_accuracy(judged):
    logits, labels, _ = judged
    judge = Judge(CLASSES, exclusive=False)
    assert "accuracy" not in judge(EvalPrediction(logits, np.eye(4)[labels]))
    assert judge.metric == "mAP"


def test_answers_to_other_clips_are_refused(judged):
    logits, labels, held_out = judged
    judge = Judge(CLASSES, exclusive=True)
    judge(EvalPrediction(logits, np.roll(labels, 1)))
    with pytest.raises(AssertionError):
        judge.answers(held_out, sigmoid=False)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_scores_keep_the_order_of_sure_logits(sigmoid):
    logits = np.array([[-800.0, 0, 9], [20, 25, 30], [800, -800, 0]], np.float32)
    found = scores_of(logits, sigmoid)
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(found, expit(wide) if sigmoid else softmax(wide, axis=1), rtol=1e-12)
    assert len(set(found[1])) == 3


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_files(judged, tmp_path):
    logits, _, held_out = judged
    held_out = held_out._replace(groups=[str(n % 8) for n in range(40)])
    answers = answers_of(held_out, softmax(logits, axis=1))
    folder = tmp_path / "out"
    folder.mkdir()
    save_results(folder, answers, held_out, ASTFeatureExtractor(max_length=64), "m", 3)
    rows = read_csv(folder / "per_class.csv")
    assert [row["name"] for row in rows] == NAMES
    assert [int(row["index"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[0]["average_precision"]) == answers.classes[0].average_precision
    assert (rows[3]["average_precision"], rows[3]["positives"], rows[3]["recall"]) == ("", "0", "")
    pairs = read_csv(folder / "confusions.csv")
    assert sum(int(pair["clips"]) for pair in pairs) == len(answers.mistakes)
    assert len(read_csv(folder / "worst_clips.csv")) == len(answers.mistakes)
    assert (folder / "worst_clips.html").read_text().count("<audio") == 3
    for name in ("confusion.png", "per_class_f1.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    text = (folder / "results.json").read_text()
    results = json.loads(text, parse_constant=pytest.fail)
    assert results["groups"] == 8 and results["clips"] == 40
    assert [results["low"], results["high"]] == list(answers.headline.interval)
    assert results["classes"][3] == {
        "name": "never",
        "average_precision": None,
        "auc": None,
        "positives": 0,
        "precision": results["classes"][3]["precision"],
        "recall": None,
        "f1": results["classes"][3]["f1"],
    }
    # A later evaluation removes the files that it does not write itself.
    perfect = answers_of(held_out, held_out.targets.astype(float))
    save_results(folder, perfect, held_out, ASTFeatureExtractor(max_length=64), "m", 3)
    assert not (folder / "worst_clips.html").exists()
    assert read_csv(folder / "worst_clips.csv") == []
    save_results(folder, answers, held_out, ASTFeatureExtractor(max_length=64), "m", 0)
    assert not (folder / "worst_clips.html").exists()
    assert math.isfinite(json.loads((folder / "results.json").read_text())["low"])
