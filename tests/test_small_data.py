"""The rules of --auto: each on numbers computed by hand, then as the command applies them."""

import json

import numpy as np
import pytest
import soundfile
from transformers.trainer_utils import SchedulerType

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import finetune
from modeling_ast.commands.finetune import parse_arguments
from modeling_ast.training.choices import GIVEN, Choice, choice_lines
from modeling_ast.training.normalization import Moments
from modeling_ast.training.small_data import (
    Facts,
    balance,
    batch_size,
    choose,
    epochs,
    masks,
    max_length,
    min_length,
    rates,
    schedule,
    statistics,
    validation_share,
)
from tests.conftest import TINY, randomise

WORDS = ["--model", "m", "--data", "d", "--output_dir", "o", "--auto", "--use_cpu"]


def facts(**changes):
    """40 clips of 2 s and a model for them, as the quickstart's."""
    given = {
        "num_clips": 40,
        "class_counts": [20, 20],
        "exclusive": True,
        "num_frames": [198] * 40,
        "moments": Moments(count=4, mean=-7.0, squares=36.0),
        "max_length": 200,
        "num_mel_bins": 64,
        "patch_frames": 16,
        "time_stride": 16,
        "width": 128,
        "num_layers": 4,
        "mean": -4.3,
        "std": 4.6,
        "pretrained": True,
    }
    return Facts(**{**given, **changes})


def values(choices):
    return {choice.name: choice.value for choice in choices}


@pytest.mark.parametrize(
    ("lengths", "changes", "wanted"),
    [
        # The model's own length, if that is hardly longer than the clips.
        ([198] * 40, {}, 200),
        ([98] * 40, {}, 16 + 6 * 16),
        # A length for nine of ten, if the others are far longer.
        ([98] * 38 + [900] * 2, {}, 16 + 6 * 16),
        # A length for all, if the longest is not much longer.
        ([98] * 38 + [120] * 2, {}, 16 + 7 * 16),
        # At most twice the median: longer clips are cropped, and evaluated in parts.
        ([98] * 30 + [900] * 10, {"max_length": 1024}, 16 + 12 * 16),
        # Not longer than the published input, and at least one patch.
        ([3000] * 40, {}, 1024),
        ([3000] * 40, {"max_length": 1500}, 1500),
        ([3] * 40, {}, 16),
        ([98] * 40, {"time_stride": 10}, 16 + 9 * 10),
    ],
)
def test_the_input_fits_the_clips(lengths, changes, wanted):
    choice = max_length(facts(num_frames=lengths, **changes))
    assert choice.value == wanted and choice.reason


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ([198] * 40, "the model's own; 100% of"),
        ([98] * 38 + [900] * 2, "nine of ten clips are no longer than 98 frames of 10 ms, rounded"),
        ([112] * 38 + [900] * 2, "nine of ten clips are no longer than 112 frames of 10 ms; 95%"),
        ([98] * 38 + [120] * 2, "the longest clip has 120 frames of 10 ms, rounded up"),
        ([60] * 30 + [900] * 10, "twice the median length: 120 frames of 10 ms, rounded up"),
        ([3000] * 40, "the longest input: 1024 frames of 10 ms; 0% of the clips"),
    ],
)
def test_the_reason_says_what_decided_the_length(lengths, reason):
    assert max_length(facts(num_frames=lengths)).reason.startswith(reason)


def test_reasons_at_a_bound():
    assert epochs(200, True).reason == "about 8000 clips in all, as usual from trained weights"
    assert epochs(20, True).reason == "the most epochs from trained weights: 1200 clips in all"
    assert epochs(2000, False).reason == "the fewest epochs from random weights: 40000 clips in all"
    looks = {choice.reason for choice in schedule(5, 5) if choice.name.startswith("eval")}
    assert looks == {"5 steps, evaluated about 5 times"}


def test_columns_are_aligned():
    names, values = zip(*(("validation_share", None), ("a_name_of_more_than_27_letters", 0.25)))
    lines = choice_lines([Choice(*pair, "why") for pair in zip(names, values)])
    assert lines == [
        "validation_share                none  why",
        "a_name_of_more_than_27_letters  0.25  why",
    ]


def test_masks_are_in_proportion():
    """As for ESC-50: 24 of 128 mel bins, 96 of 512 frames."""
    published = facts(num_frames=[512] * 9, num_mel_bins=128)
    assert values(masks(published, 512)) == {"frequency_mask": 24, "time_mask": 96}
    # Padding and the part that is cut off do not count.
    short = facts(num_frames=[32] * 9)
    assert values(masks(short, 512)) == {"frequency_mask": 12, "time_mask": 6}
    assert values(masks(facts(num_frames=[5000] * 9), 512))["time_mask"] == 96


def test_parts_of_clips_are_a_quarter_of_the_input_and_at_least_a_patch():
    assert values([min_length(facts(), 200)]) == {"min_length": 50}
    assert values([min_length(facts(), 1024)]) == {"min_length": 256}
    at_least = min_length(facts(patch_frames=32), 64)
    assert at_least.value == 32 and at_least.reason.startswith("one patch")


def test_trained_weights_keep_their_statistics_and_random_ones_get_those_of_the_clips():
    assert values(statistics(facts())) == {"mean": -4.3, "std": 4.6}
    assert "40 clips to train on is -7" in statistics(facts())[0].reason
    assert values(statistics(facts(pretrained=False))) == {"mean": -7.0, "std": 3.0}


def test_only_deep_models_have_smaller_rates_below():
    assert values(rates(facts(num_layers=4)))["layer_decay"] == 1
    assert values(rates(facts(num_layers=12)))["layer_decay"] == 0.75


def test_rates_fall_with_the_width():
    small, base = (values(rates(facts(width=width, num_layers=12))) for width in (128, 768))
    assert small["learning_rate"] == 1e-3 and base["learning_rate"] == 5e-5
    assert (small["head_rate"], base["head_rate"]) == (1, 10)
    between = values(rates(facts(width=384)))
    # A straight line between logarithms.
    slope = np.log(5e-5 / 1e-3) / np.log(768 / 128)
    assert between["learning_rate"] == pytest.approx(1e-3 * 3**slope, rel=0.05)
    assert between["learning_rate"] * between["head_rate"] == pytest.approx(1e-3, rel=0.05)
    assert values(rates(facts(width=24)))["learning_rate"] == 1e-3
    adapter = values(rates(facts(width=768, adapted=True)))
    assert adapter["learning_rate"] == pytest.approx(5e-4)
    scratch = [values(rates(facts(width=width, pretrained=False))) for width in (128, 768)]
    assert [rate["learning_rate"] for rate in scratch] == pytest.approx([1e-3, 1e-3 / 6], rel=0.05)
    assert scratch[0]["layer_decay"] == scratch[0]["head_rate"] == 1


def test_epochs_batches_and_what_is_set_aside():
    assert [epochs(n, True).value for n in (10, 200, 2000)] == [60, 40, 10]
    assert [epochs(n, False).value for n in (10, 200, 2000)] == [120, 80, 20]
    assert [batch_size(n).value for n in (30, 60)] == [8, 16]
    assert batch_size(300, num_processes=4).value == 4
    assert validation_share(59).value is None and 0 < validation_share(60).value < 0.5
    assert balance([50, 11]).value is False and balance([50, 10]).value is True


def test_a_short_run_is_looked_at_often():
    chosen = values(schedule(total_steps=240, steps_of_epoch=4))
    assert chosen["eval_steps"] == chosen["save_steps"] == 20 and chosen["logging_steps"] == 6
    assert chosen["average_from"] == 46  # of 60
    chosen = values(schedule(total_steps=2, steps_of_epoch=4))
    assert chosen["eval_steps"] == chosen["logging_steps"] == 1 and "average_from" not in chosen


def test_what_is_given_stays():
    arguments, _ = parse_arguments([*WORDS, "--learning_rate=5e-5", "--frequency-mask", "0"])
    done = choose(arguments, facts())
    # Even if the given value is the default.
    assert arguments.training.learning_rate == 5e-5 and arguments.augmentation.frequency_mask == 0
    reasons = {choice.name: choice.reason for choice in done}
    assert {name for name in reasons if reasons[name] == GIVEN} == {
        "learning_rate",
        "frequency_mask",
    }
    assert arguments.training.num_train_epochs == 60 and arguments.augmentation.mixup_rate == 0.5
    assert arguments.training.lr_scheduler_type == SchedulerType.COSINE
    assert arguments.model.max_length == 200 and arguments.optimizer.layer_decay == 1


def test_a_recipe_gives_too(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("auto: true\nnum_train_epochs: 3\n")
    arguments, _ = parse_arguments([*WORDS, "--recipe", str(recipe), "--seed", "4"])
    assert {"auto", "num_train_epochs", "seed"} <= arguments.given
    assert "learning_rate" not in arguments.given
    assert "num_train_epochs 3" in " ".join(
        " ".join(str(choice).split()) for choice in choose(arguments, facts())
    )
    # Given steps decide the schedule of the run.
    arguments, _ = parse_arguments([*WORDS, "--max-steps", "12"])
    assert "num_train_epochs" not in values(choose(arguments, facts()))
    assert arguments.training.eval_steps == 1 and arguments.sampling.average_from is None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    config = ASTConfig(**TINY)
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


def write_tones(folder, count, seconds, seed):
    for label, hz in (("high", 3000), ("low", 300)):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng([seed, index, hz])
            times = np.arange(int(16000 * seconds)) / 16000
            noise = 0.01 * rng.standard_normal(len(times))
            tone = 0.1 * np.sin(2 * np.pi * hz * rng.uniform(0.8, 1.2) * times)
            soundfile.write(folder / label / f"{index}.wav", tone + noise, 16000)


def chosen_in(folder):
    return {row["name"]: row for row in json.loads((folder / "chosen.json").read_text())}


def test_a_run_keeps_what_it_chose_and_looks_at_no_held_out_clip(base, tmp_path, capsys):
    """Two runs that differ only in their held-out clips choose the same."""
    runs = []
    for name, count, seconds in (("one", 2, 0.5), ("two", 5, 1.5)):
        data, out = tmp_path / name / "data", tmp_path / name / "run"
        write_tones(data / "train", 6, 0.7, seed=0)
        write_tones(data / "test", count, seconds, seed=1)
        words = ["--recipe", "small_data", "--model", base, "--data", data, "--output_dir", out]
        words += ["--max_steps", 4, "--report_to", "none", "--length_clips", 0, "--max_roll", 2]
        assert finetune.main([*map(str, words)]) == 0
        runs.append(chosen_in(out))
    assert runs[0] == runs[1]
    printed = capsys.readouterr().err
    chosen = runs[0]
    assert all(row["reason"] for row in chosen.values())
    for name in ("max_length", "mean", "learning_rate", "mixup_rate"):
        assert f"{name} " in printed and chosen[name]["reason"] in printed
    # Clips of 0.7 s have 1 + (11200 - 400) // 160 = 68 frames: patches of 16, every 7 frames.
    assert chosen["max_length"]["value"] == 16 + 8 * 7
    assert chosen["keep_weights"]["value"] == "last"
    run = json.loads((tmp_path / "one" / "run" / "run.json").read_text())
    assert run["mean"] == chosen["mean"]["value"] and run["max_length"] == 72
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "one" / "run")
    assert (extractor.mean, extractor.max_length) == (run["mean"], 72)
    assert "LOAD REPORT" not in printed and "fine-tune before you trust" not in printed
    assert "a new head for 2 labels; positions fitted from 3 x 12 to 3 x 9 patches" in printed


def test_data_that_has_changed_is_named(base, tmp_path, capsys):
    """The numbers that --auto chose then differ, although the user gave none."""
    data, out = tmp_path / "data", tmp_path / "run"
    write_tones(data / "train", 6, 0.7, seed=0)
    write_tones(data / "test", 2, 0.7, seed=1)
    words = ["--recipe", "small_data", "--model", base, "--data", data, "--output_dir", out]
    words += ["--max_steps", 2, "--report_to", "none", "--length_clips", 0, "--worst_clips", 0]
    assert finetune.main([*map(str, words)]) == 0
    write_tones(data / "train" / "more", 3, 0.9, seed=2)
    for file in (data / "train" / "more").rglob("*.wav"):
        file.rename(data / "train" / file.parent.name / f"more_{file.name}")
    for folder in (*(data / "train" / "more").iterdir(), data / "train" / "more"):
        folder.rmdir()
    capsys.readouterr()
    assert finetune.main([*map(str, words)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"error: the data has changed since the run in {out}: it had 16 clips, and now has 22; "
        f"give another --output-dir"
    )
    # As many clips, but one has another label: the weights have learned the old one.
    extra = [*(data / "train").rglob("more_*.wav")]
    for file in extra:
        file.unlink()
    assert finetune.main([*map(str, words)]) == 0
    resumes = f"resumes from {out / 'checkpoint-2'}; that run has ended, and is only judged again"
    assert resumes in capsys.readouterr().err
    first, second = sorted((data / "train").iterdir())
    moved = sorted(first.iterdir())[0]
    moved.rename(second / f"was_{moved.name}")
    assert finetune.main([*map(str, words)]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(
            f"error: the clips or their labels have changed since the run in {out}; give another"
        )
    )
    # A differing flag of the user is named first.
    assert finetune.main([*map(str, words), "--seed", "7"]) == 1
    assert "holds a run with --seed 0, not 7" in capsys.readouterr().err
