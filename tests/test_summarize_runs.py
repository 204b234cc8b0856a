"""summarize_runs.py against numpy."""

import json
import sys

import numpy as np
import pytest

from examples import summarize_runs


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["summarize_runs.py", *map(str, words)])
    summarize_runs.main()
    return capsys.readouterr().out


def test_mean_and_deviation(tmp_path, monkeypatch, capsys):
    scores, folders = [0.9, 0.95, 0.97, 0.91, 0.96], []
    for fold, score in enumerate(scores):
        folder = tmp_path / f"fold{fold}"
        folder.mkdir()
        metrics = {
            "eval_accuracy": score,
            "eval_runtime": 3.0,
            "eval_d_prime": None,
            f"only_{fold}": 1.0,
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
        folders.append(folder)
    out = json.loads(run(monkeypatch, capsys, *folders, "--json"))
    row = out["metrics"].pop("eval_accuracy")
    assert out == {"runs": 5, "metrics": {}}
    assert row["mean"] == pytest.approx(np.mean(scores))
    assert row["std"] == pytest.approx(np.std(scores, ddof=1))
    assert (row["min"], row["max"]) == (0.9, 0.97)
    line = run(monkeypatch, capsys, *folders).splitlines()[1]
    assert line.split() == ["eval_accuracy", "0.9380", "0.0311", "0.9000", "0.9700"]
    one = json.loads(run(monkeypatch, capsys, folders[0], "--json"))
    assert one["metrics"]["eval_accuracy"]["std"] == 0


def test_a_run_that_has_not_ended(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"error: there is no .*metrics.json, .* finished run"):
        run(monkeypatch, capsys, tmp_path)
