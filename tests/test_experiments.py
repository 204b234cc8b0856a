"""Studies with stored runs, and the fine-tuning of transformers' example."""

import json
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from sklearn.metrics import accuracy_score

from modeling_ast import ASTConfig, ASTForAudioClassification
from tests.benchmarks import example_way
from tests.benchmarks.experiments import Experiments, spread, write_small_ast

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def data(tmp_path):
    """Noises and tones, in one folder for each."""
    rng, times = np.random.default_rng(0), np.arange(4000) / 16000
    for split in ("train", "test"):
        for number in range(4):
            tone = np.sin(2 * np.pi * rng.uniform(300, 900) * times)
            for label, sound in (("noise", rng.standard_normal(4000)), ("tone", tone)):
                path = tmp_path / "data" / split / label / f"{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, 0.1 * sound, 16000)
    return tmp_path / "data"


@pytest.fixture
def small(tmp_path):
    write_small_ast(tmp_path / "small", max_length=24, intermediate_size=16, **TINY, time_stride=16)
    return tmp_path / "small"


def test_a_run_is_done_once(tmp_path):
    calls = []
    for _ in range(2):
        result = Experiments(tmp_path).once("x", lambda: calls.append(1) or {"score": 0.5})
        assert result["score"] == 0.5 and result["seconds"] >= 0
    assert calls == [1]


def test_a_run_that_was_cut_leaves_nothing(tmp_path):
    experiments = Experiments(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        experiments.once("x", lambda: exec("raise KeyboardInterrupt"))
    assert experiments.once("x", lambda: {"score": 1})["score"] == 1


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    experiments = Experiments(tmp_path / "study")

    def cut(folder):
        folder.mkdir()
        raise ValueError("cut")

    with pytest.raises(ValueError, match="cut"):
        experiments.make("data", cut)
    folder = experiments.make("data", lambda folder: folder.mkdir())
    assert list(folder.iterdir()) == []
    assert experiments.make("data", cut) == folder


def test_a_fine_tuning_and_an_ensemble_are_kept_with_their_command(tmp_path, data, small):
    experiments = Experiments(tmp_path / "study", quick=True)
    flags = {"model": small, "data": data, "from_scratch": True, "average_from": 3}
    for name in ("a", "b"):
        result = experiments.finetune(name, {**flags, "seed": ord(name)})
        assert 0 <= result["metrics"]["average_accuracy"] <= 1
        assert f"--data {data}" in result["command"] and "--max-steps 2" in result["command"]
    score = experiments.evaluate("both", ["a", "b"], data)
    kept = json.loads((tmp_path / "study" / "results" / "both.json").read_text())
    assert kept["score"] == score and 0 <= score <= 1


def test_a_command_that_fails_says_why(tmp_path, small):
    experiments = Experiments(tmp_path / "study")
    with pytest.raises(RuntimeError, match=r"x ended with status 1: error: .*no-such"):
        experiments.finetune("x", {"model": small, "data": tmp_path / "no-such"})
    with pytest.raises(RuntimeError, match=r"y ended with status 2: .*--no-such"):
        experiments.finetune("y", {"model": small, "data": tmp_path, "no_such": 1})
    assert not list((tmp_path / "study" / "results").iterdir())


def test_the_spread_of_scores():
    scores = [0.25, 0.5, 1.0]
    mean, deviation = statistics.mean(scores), np.std(scores, ddof=1)
    assert spread(scores) == f"**{mean:.3f}** ± {deviation:.3f} | 0.250, 0.500, 1.000"
    assert spread([0.5]) == "0.500 |"


def test_the_accuracy_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((50, 4)), rng.integers(4, size=50)
    found = example_way.accuracy(SimpleNamespace(predictions=logits, label_ids=labels))
    assert found["accuracy"] == accuracy_score(labels, logits.argmax(1))


def test_the_way_of_the_example_learns_to_tell_noise_from_tones(tmp_path, data, small):
    """transformers' own AST; the same seed gives the same accuracy."""
    model = ASTForAudioClassification(ASTConfig.from_pretrained(small))
    model.save_pretrained(small)
    options = {"steps": 15, "batch_size": 4, "learning_rate": 1e-2}
    scores = [
        example_way.finetune(small, data, tmp_path / "out", **options, seed=seed) for seed in (0, 0)
    ]
    assert scores[0] == scores[1] > 0.8
