"""The weights that a run ends with; held-out clips never decide this."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, AudioTagger
from modeling_ast.commands import finetune
from modeling_ast.commands.finetune import parse_arguments
from modeling_ast.training.kept_weights import Weights, choose_weights, prepare_choice
from tests.conftest import TINY, randomise

WORDS = ["--model", "m", "--data", "d", "--output_dir", "o", "--use_cpu"]
ALL = [Weights("last", "", None), Weights("best", "", None), Weights("average", "", None)]


def parse(*words):
    return parse_arguments([*WORDS, *words])[0]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        # Two standard errors of 0.8 of 40 clips are 0.126, those of 1.0 are 0.063.
        ({"last": 0.65, "best": 0.8, "average": 0.67}, "best"),
        ({"last": 0.8, "best": 0.8, "average": 0.68}, "average"),
        ({"last": 0.68, "best": 0.8, "average": 0.67}, "last"),
        ({"last": 1.0, "best": 1.0, "average": 1.0}, "average"),
        ({"last": 0.9, "best": 1.0, "average": 0.95}, "average"),
        ({"last": 0.95, "best": 1.0, "average": 0.925}, "last"),
        ({"last": float("nan"), "best": 0.1, "average": float("nan")}, "best"),
        ({"last": float("nan"), "average": float("nan")}, "last"),
        ({}, "last"),
    ],
)
def test_validation_clips_choose(scores, kept):
    weights, choice = choose_weights(parse(), ALL, scores, "accuracy", 40)
    assert (weights.name, choice.value) == (kept, kept)
    if scores:
        assert "accuracy on the 40 validation clips: last" in choice.reason
        is_lower = scores[kept] < max(scores.values())
        assert (f"and {kept} is the safer choice" in choice.reason) == is_lower


def test_without_validation_clips_an_automatic_run_keeps_the_average():
    assert choose_weights(parse("--auto"), ALL, {}, "mAP", 0)[0].name == "average"
    assert choose_weights(parse("--auto"), ALL[:1], {}, "mAP", 0)[0].name == "last"


def test_what_is_asked_for_is_kept():
    arguments = parse("--keep-weights", "average", "--average-from", "1")
    scores = {"last": 0.9, "best": 0.95, "average": 0.1}
    weights, choice = choose_weights(arguments, ALL, scores, "mAP", 40)
    assert weights.name == "average" and choice.reason == "given"
    arguments = parse("--keep-weights", "best")
    weights, choice = choose_weights(arguments, ALL[:1], {"last": 0.9}, "mAP", 40)
    assert weights.name == "last" and choice.reason == "which is also the best one"


@pytest.mark.parametrize(
    "words",
    [
        ["--keep-weights", "best"],
        ["--load-best-model-at-end", "--eval-strategy", "epoch", "--save-strategy", "epoch"],
        ["--save-strategy", "best", "--metric-for-best-model", "accuracy"],
    ],
)
def test_held_out_clips_never_choose(words):
    with pytest.raises(
        ValueError, match=r"would choose the weights by the held-out clips.*--validation-share"
    ):
        prepare_choice(parse(*words), "accuracy", has_validation=False)
    arguments = parse(*words)
    prepare_choice(arguments, "accuracy", has_validation=True)
    assert arguments.training.metric_for_best_model == "eval_validation_accuracy"
    assert arguments.training.greater_is_better
    assert not arguments.training.load_best_model_at_end


def test_trainer_notes_no_best_by_held_out_clips():
    arguments = parse("--metric-for-best-model", "accuracy", "--eval-strategy", "epoch")
    prepare_choice(arguments, "accuracy", has_validation=False)
    assert arguments.training.metric_for_best_model is None


def test_impossible_values(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("keep_weights: worst")
    with pytest.raises(ValueError, match="--keep-weights is 'worst'; it must be one of auto, last"):
        parse("--recipe", str(recipe))
    with pytest.raises(SystemExit):
        parse("--keep-weights", "average")
    assert "give --average-from too" in capsys.readouterr().err


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    config = ASTConfig(**{**TINY, "num_hidden_layers": 1})
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


def write_clips(folder, count, seed):
    """Tones of two kinds in noise that almost hides them."""
    for label, hz in (("high", 3000), ("low", 600)):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng([seed, index, hz])
            tone = np.sin(2 * np.pi * hz * rng.uniform(0.5, 1.5) * np.arange(8000) / 16000)
            noisy = 0.02 * tone + 0.05 * rng.standard_normal(8000)
            soundfile.write(folder / label / f"{seed}_{index}.wav", noisy, 16000)


RUN = [
    *("--num-train-epochs", "4", "--average-from", "3", "--eval-strategy", "epoch"),
    *("--save-strategy", "epoch", "--per-device-train-batch-size", "4", "--learning-rate", "3e-3"),
    *("--validation-share", "0.34", "--report-to", "none", "--length-clips", "0"),
]


@pytest.mark.parametrize("keep", ["auto", "best", "average", "last"])
def test_the_saved_model_is_the_one_that_was_kept(base, tmp_path, keep):
    """The weights and the accuracy are right, and the log has no metrics of held-out clips."""
    data, out = tmp_path / "data", tmp_path / "run"
    write_clips(data / "train", 12, seed=0)
    write_clips(data / "test", 4, seed=1)
    words = ["--model", base, "--data", data, "--output_dir", out, *RUN, "--keep-weights", keep]
    assert finetune.main([*map(str, words)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    steps = [int(path.name.split("-")[1]) for path in out.glob("checkpoint-*")]
    state = json.loads((out / f"checkpoint-{max(steps)}" / "trainer_state.json").read_text())
    log, key = state["log_history"], "eval_validation_accuracy"
    judged = {row["step"]: row[key] for row in log if key in row}
    assert sorted(judged) == sorted(steps) and not any("eval_accuracy" in row for row in log)
    # Trainer takes the first of equal ones.
    best = max(sorted(judged), key=judged.__getitem__)
    folders = {
        "last": out / f"checkpoint-{max(steps)}",
        "best": out / f"checkpoint-{best}",
        "average": out / "average",
    }
    assert metrics["validation_last_accuracy"] == judged[max(steps)]
    if best < max(steps):
        assert metrics["validation_best_accuracy"] == judged[best]
    chosen = keep
    if keep == "auto":
        scores = {name: metrics.get(f"validation_{name}_accuracy", -1) for name in folders}
        highest = max(scores.values())
        adjusted = (highest * 8 + 2) / 12  # a third of 24 clips
        error = np.sqrt(adjusted * (1 - adjusted) / 12)
        names = ("average", "last", "best")
        chosen = next(name for name in names if scores[name] >= highest - error)
    kept = load_file(out / "model.safetensors")
    wanted = load_file(folders[chosen] / "model.safetensors")
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    clips = sorted((data / "test").rglob("*.wav"))
    guesses = [next(iter(tags.labels)) for tags in AudioTagger.from_pretrained(out)(clips)]
    truth = [clip.parent.name for clip in clips]
    assert metrics["eval_accuracy"] == accuracy_score(truth, guesses)
    assert "average_accuracy" in metrics and (chosen == "last") != ("last_accuracy" in metrics)
