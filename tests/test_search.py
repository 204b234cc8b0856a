"""Hyperparameter search: its space, its validation clips, its resume and its recipe."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import yaml

from examples.embedded_data import write_data_set
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import main
from modeling_ast.training import search as searching
from modeling_ast.training.data_sources import DataArguments
from modeling_ast.training.recipe_files import read_recipe
from tests.conftest import TINY, randomise

optuna = pytest.importorskip("optuna", reason="the extra search is not installed")

SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "mixup_rate": [0.0, 0.5]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "data"
    return write_data_set(folder, num_train=14, num_test=14, seconds=1.0, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny AST with other labels, so that its head will be new."""
    config = ASTConfig(**TINY)
    folder = tmp_path_factory.mktemp("base") / "model"
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config, padding="longest").save_pretrained(folder)
    return folder


def run(base, data, out, *words, status=0):
    given = ["finetune", "--model", base, "--data", data, "--output-dir", out]
    given += ["--num-train-epochs", 1, "--per-device-train-batch-size", 7, "--seed", 3, *words]
    assert main([str(word) for word in given]) == status


def rows(out):
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    return file


@pytest.fixture(scope="module")
def searched(base, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    words = ("--search-space", folder / "space.yaml", "--search-trials", 2)
    run(base, data, folder / "run", *words)
    return folder / "run"


def test_each_trial_has_numbers_of_its_own_and_the_best_becomes_a_recipe(searched, data, capsys):
    found = rows(searched)
    assert [row["trial"] for row in found] == ["0", "1"]
    assert {row["state"] for row in found} == {"complete"}
    rates = [float(row["learning_rate"]) for row in found]
    assert len(set(rates)) == 2 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert {float(row["mixup_rate"]) for row in found} <= {0.0, 0.5}
    best = max(found, key=lambda row: float(row["mAP"]))
    recipe = yaml.safe_load((searched / "best.yaml").read_text())
    assert recipe["learning_rate"] == float(best["learning_rate"])
    assert recipe["mixup_rate"] == float(best["mixup_rate"])
    assert recipe["output_dir"] == str(searched / "best") and recipe["data"] == str(data)
    assert not any(name.startswith("search") for name in recipe)
    assert read_recipe(str(searched / "best.yaml"))["seed"] == "3"
    # Only the numbers of the trials are kept.
    assert {path.name for path in searched.iterdir()} == {
        *("search.log", "trials.csv", "best.yaml", "run.json")
    }
    assert main(["finetune", "--recipe", str(searched / "best.yaml"), "--length-clips", "2"]) == 0
    run_before = json.loads((searched / "best" / "run.json").read_text())
    assert run_before["learning_rate"] == recipe["learning_rate"]
    shutil.rmtree(searched / "best")


def test_a_search_goes_on_and_repeats_the_trial_that_was_killed(
    searched,
    base,
    data,
    tmp_path,
    space,
    monkeypatch,
    capsys,
):
    out = tmp_path / "run"
    shutil.copytree(searched, out)
    words = ("--search-space", space)
    # Enough trials are done, so nothing is trained.
    with monkeypatch.context() as patch:
        patch.setattr(searching.ASTTrainer, "train", None)
        run(base, data, out, *words, "--search-trials", 2, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["num_trials"] == 2 and found["recipe"] == str(out / "best.yaml")

    # As after a kill: a trial with values but without a score.
    study, _ = searching.open_study(out, SPACE, seed=3)
    dead = study.ask()
    numbers = searching.suggest(SPACE, dead)
    run(base, data, out, *words, "--search-trials", 3)
    assert [row["state"] for row in rows(out)] == ["complete", "complete", "fail", "complete"]
    assert float(rows(out)[-1]["learning_rate"]) == numbers["learning_rate"]
    assert len({row["learning_rate"] for row in rows(out)}) == 3


def test_the_held_out_clips_are_never_read(base, data, tmp_path, space, monkeypatch):
    heard = []
    decode = searching.AudioCollator.__call__

    def noting(self, features):
        heard.extend(row["video_id"] for row in features)
        return decode(self, features)

    monkeypatch.setattr(searching.AudioCollator, "__call__", noting)
    words = ("--search-space", space, "--search-trials", 1, "--dataloader-num-workers", 0)
    run(base, data, tmp_path / "run", *words)
    loaded = searching.load(DataArguments(data=str(data), validation_share=0.2))
    assert heard and not set(heard) & set(loaded.held_out["video_id"])
    assert set(heard) == {*loaded.train["video_id"], *loaded.validation["video_id"]}


def test_a_trial_with_mixup_of_one_label(base, tmp_path):
    """The run has no mixup and labels are class indices; in a trial with mixup they are not."""
    for index in range(12):
        folder = tmp_path / "sounds" / ("high", "low")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        sound = np.random.default_rng(index).standard_normal(16000) / 10
        soundfile.write(folder / f"{index}.wav", sound, 16000)
    file = tmp_path / "space.yaml"
    file.write_text("mixup_rate: [1.0]\nlabel_smoothing: [0.0]")
    words = ("--eval-share", 0.3, "--search-space", file, "--search-trials", 1)
    run(base, tmp_path / "sounds", tmp_path / "run", *words)
    assert rows(tmp_path / "run")[0]["state"] == "complete"


WRONG_SPACES = {
    "cannot read the search space": None,
    "has no lines such as": "[]",
    "has ['data', 'folds'], which cannot be searched": "{data: [a], folds: [2]}",
    "has learning_rate: 3; give a list of values, or low < high": "learning_rate: 3",
    "has head_rate: {'low': 5, 'high': 1}": "head_rate: {low: 5, high: 1}",
    "has learning_rate: {'low': 0, 'high': 1, 'log': True}": (
        "learning_rate: {low: 0, high: 1, log: true}"
    ),
    "has mixup_rate: []": "mixup_rate: []",
}


@pytest.mark.parametrize("message", WRONG_SPACES)
def test_spaces_that_cannot_be_searched(message, base, data, tmp_path, capsys):
    file = tmp_path / "space.yaml"
    if WRONG_SPACES[message] is not None:
        file.write_text(WRONG_SPACES[message])
    words = ("--search-space", file, "--search-trials", 2)
    run(base, data, tmp_path / "run", *words, status=1)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and str(file) in error
    assert not (tmp_path / "run").exists()


def test_another_search_in_the_same_directory_is_refused(searched, base, data, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text("learning_rate: {low: 1e-4, high: 1e-3}")
    run(base, data, searched, "--search-space", other, "--search-trials", 3, status=1)
    assert "holds a search in another space" in capsys.readouterr().err
    run(base, data, searched, "--search-trials", 3, "--freeze", 1, status=1)
    assert "holds a run with --freeze None, not 1" in capsys.readouterr().err


def test_mistakes_in_the_flags(base, data, tmp_path, capsys):
    run(base, data, tmp_path / "run", "--search-trials", 0, status=1)
    assert "--search-trials is 0; it must be at least 1" in capsys.readouterr().err
    run(base, data, tmp_path / "run", "--search-space", "x.yaml", status=1)
    assert "--search-space is for a search; give --search-trials too" in capsys.readouterr().err


def test_values_are_drawn_from_the_space():
    space = {**SPACE, "lora_rank": [4, 8], "freeze": {"low": 0, "high": 3, "log": False}}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [searching.suggest(space, study.ask()) for _ in range(60)]
    assert {values["lora_rank"] for values in drawn} == {4, 8}
    assert {values["freeze"] for values in drawn} == {0, 1, 2, 3}
    rates = sorted(values["learning_rate"] for values in drawn)
    # Log-uniform: about half of them are below the geometric mean.
    assert 15 < sum(rate < 1e-3 for rate in rates) < 45
