"""Which weights a run ends with; that held-out clips never decide it."""

import pytest

from modeling_ast.commands.finetune import parse_arguments
from modeling_ast.training.kept_weights import Weights, choose_weights, prepare_choice

WORDS = ["--model", "m", "--data", "d", "--output_dir", "o", "--use_cpu"]
ALL = [Weights("last", "", None), Weights("best", "", None), Weights("average", "", None)]


def parse(*words):
    return parse_arguments([*WORDS, *words])[0]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({"last": 0.7, "best": 0.8, "average": 0.75}, "best"),
        # Of equal ones the average, then the last.
        ({"last": 0.8, "best": 0.8, "average": 0.8}, "average"),
        ({"last": 0.8, "best": 0.8, "average": 0.7}, "last"),
        ({"last": float("nan"), "best": 0.1, "average": float("nan")}, "best"),
        ({}, "last"),
    ],
)
def test_validation_clips_choose(scores, kept):
    weights, choice = choose_weights(parse(), ALL, scores, "accuracy", 40)
    assert (weights.name, choice.value) == (kept, kept)
    if scores:
        assert "accuracy of the 40 validation clips: last" in choice.reason


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
        ValueError, match=r"would let the held-out clips choose.*--validation-share"
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
    assert "needs --average-from" in capsys.readouterr().err
