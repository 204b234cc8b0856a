"""Cross-validation: a run for each fold, then their mean and deviation, against numpy."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import main
from modeling_ast.commands.finetune import parse_arguments
from modeling_ast.training import folds
from modeling_ast.training.data_arguments import DataArguments
from modeling_ast.training.folds import read_folds, scores, summary
from tests.conftest import randomise


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = ASTConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        max_length=40,
        num_mel_bins=32,
        num_labels=2,
        id2label={0: "high", 1: "low"},
    )
    folder = tmp_path_factory.mktemp("base") / "model"
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Three takes by four speakers of two kinds of noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "sounds"
    for label in ("high", "low"):
        (folder / label).mkdir(parents=True)
        for index in range(12):
            noise = rng.standard_normal(6400)
            noise = np.diff(noise) if label == "high" else np.cumsum(noise) / 30
            soundfile.write(folder / label / f"{'abcd'[index % 4]}_{index}.wav", noise / 9, 16000)
    return folder


def run(*words, status=0):
    assert main(["finetune", *map(str, words)]) == status


def words_of(base, sounds, out):
    words = ["--model", base, "--data", sounds, "--output-dir", out, "--max-steps", 1]
    return [*words, "--report-to", "none", "--length-clips", 0, "--use_cpu"]


def test_each_fold_is_held_out_once(base, sounds, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = [*words_of(base, sounds, out), "--folds", 2, "--group-by", "([a-d])_"]
    run(*words, "--json")
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    stored = json.loads((out / "folds.json").read_text(), parse_constant=pytest.fail)
    assert {**printed, "division": stored["division"]} == {**stored, "output_dir": str(out)}
    assert list(printed["results"]) == ["1", "2"] and printed["metric"] == "accuracy"
    held_out = []
    for number in (1, 2):
        folder = out / f"fold_{number}"
        metrics = json.loads((folder / "metrics.json").read_text())
        own = printed["results"][str(number)]
        assert own.items() <= metrics.items() and "eval_runtime" not in own
        report = json.loads((folder / "data_report.json").read_text())
        assert report["used"] == {"train": 12, "test": 12}
        assert report["groups"] == {"train": 2, "test": 2}
        # The arguments in its run.json give its clips again.
        run_of = json.loads((folder / "run.json").read_text())
        assert (run_of["folds"], run_of["eval_fold"]) == (2, number)
        held_out.append(folder / "model.safetensors")
    for name in ("eval_accuracy", "eval_loss", "eval_mAP"):
        values = [printed["results"][number][name] for number in "12"]
        assert printed["mean"][name] == pytest.approx(np.mean(values))
        assert printed["std"][name] == pytest.approx(np.std(values, ddof=1))
    # A finished fold is not run again.
    weights = [path.read_bytes() for path in held_out]
    monkeypatch.setattr(folds, "finetune", pytest.fail)
    run(*words)
    text = capsys.readouterr()
    mean, std = printed["mean"]["eval_accuracy"], printed["std"]["eval_accuracy"]
    last = text.out.splitlines()[-1]
    assert "training_accuracy" in printed["mean"] and "training_" not in text.out
    assert last == f"accuracy {mean:.4f} +- {std:.4f} over 2 folds; the models are in {out}/fold_*"
    assert "fold 1 is finished (1 of 2)" in text.err
    assert [path.read_bytes() for path in held_out] == weights
    # Other arguments mean another run.
    run(*words, "--learning-rate", 1e-3, status=1)
    assert f"{out} holds a run with --learning-rate 5e-05, not 0.001" in capsys.readouterr().err


def test_the_share_of_a_recipe_is_replaced_by_folds(tmp_path):
    """The user did not give it, so there is no warning that it is not used."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("eval_share: 0.2\n")
    words = ["--recipe", str(recipe), "--model", "m", "--data", "d", "--output-dir", "o"]
    words += ["--use_cpu"]
    for given, share in (
        ([], 0.2),
        (["--folds", "2"], None),
        (["--eval-fold", "2"], None),
        (["--folds", "2", "--eval-share", "0.2"], 0.2),
    ):
        assert parse_arguments([*words, *given])[0].data.eval_share == share


def test_a_killed_run_goes_on_with_the_fold_it_was_in(base, sounds, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = [*words_of(base, sounds, out), "--folds", 2]
    run_whole = folds.finetune

    def killed(arguments, announce):
        if arguments.data.eval_fold == 2:
            raise OSError("killed")
        return run_whole(arguments, announce)

    monkeypatch.setattr(folds, "finetune", killed)
    run(*words, status=1)
    first = json.loads((out / "folds.json").read_text())
    assert list(first["results"]) == ["1"]
    monkeypatch.setattr(folds, "finetune", run_whole)
    run(*words)
    assert "fold 1 is finished (1 of 2)\nfold 2 is held out (2 of 2)" in capsys.readouterr().err
    both = json.loads((out / "folds.json").read_text())["results"]
    assert both["1"] == first["results"]["1"] and list(both) == ["1", "2"]
    # With one more fold the clips are divided differently.
    more = tmp_path / "more"
    shutil.copytree(sounds, more)
    shutil.copy(more / "low" / "a_0.wav", more / "low" / "e_0.wav")
    words[words.index(sounds)] = more
    (out / "run.json").unlink()
    run(*words, status=1)
    assert "holds results of folds with other clips than now" in capsys.readouterr().err


def test_the_folds_of_a_column(sounds, tmp_path):
    files = sorted(sounds.rglob("*.wav"))
    rows = [f"{file},{file.parent.name},{3 + index % 3}" for index, file in enumerate(files)]
    table = tmp_path / "all.csv"
    table.write_text("\n".join(["file,label,fold", *rows]) + "\n")
    assert read_folds(DataArguments(str(table), folds=3))[0] == [3, 4, 5]
    assert read_folds(DataArguments(str(table), folds=4, fold_column="none"))[0] == [1, 2, 3, 4]
    for name, message in (("fold", "has the 3 folds"), ("part", "no column 'part'")):
        with pytest.raises(ValueError, match=message):
            read_folds(DataArguments(str(table), folds=4, fold_column=name))
    table.write_text("\n".join(["file,label,fold", *(f"{row}x" for row in rows)]) + "\n")
    with pytest.raises(ValueError, match="holds '3x'; folds must be whole numbers"):
        read_folds(DataArguments(str(table), folds=3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--streaming", "--train-clips", 4], "--folds must divide all clips first; train without"),
        (["--push_to_hub"], "--push-to-hub is for one model, and --folds trains several"),
        (["--resume_from_checkpoint", "x"], "each fold resumes from its own newest undamaged"),
        (["--group-by", "(a|b)_"], "finds no group in 12 of the 24 paths"),
    ],
)
def test_what_cannot_be_done_is_one_line(base, sounds, tmp_path, capsys, words, message):
    run(*words_of(base, sounds, tmp_path / "out"), "--folds", 2, *words, status=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_a_wrong_model_does_not_bind_the_directory(base, sounds, tmp_path, capsys):
    """Its run.json would make the corrected command a run with another model."""
    words = ["--folds", 2, "--eval-strategy", "no"]
    run(*words_of(tmp_path / "no model", sounds, tmp_path / "out"), *words, status=1)
    assert "cannot load the model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_undefined_metrics_are_left_out_of_the_mean():
    results = [scores({"eval_mAP": value, "eval_runtime": 3.0}) for value in (0.5, np.nan, 0.7)]
    assert results[1] == {"eval_mAP": None}
    mean, std = summary(results)
    assert mean == {"eval_mAP": pytest.approx(0.6)}
    assert std == {"eval_mAP": pytest.approx(np.std([0.5, 0.7], ddof=1))}
    assert summary(results[1:2]) == ({"eval_mAP": None}, {"eval_mAP": None})
