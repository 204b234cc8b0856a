"""`modeling-ast finetune` from the command to the files, and the steps of finetuning.py."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    precision_recall_fscore_support,
)
from transformers import TrainerCallback, TrainingArguments, pipeline, trainer

from examples.embedded_data import SOUNDS, write_data_set
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, read_audio
from modeling_ast.commands import finetune
from modeling_ast.outputs import one_run_at_a_time
from modeling_ast.training.arguments import (
    Arguments,
    ModelArguments,
    OptimizerArguments,
    SamplingArguments,
)
from modeling_ast.training.augmentation import Augmentation
from modeling_ast.training.building import build_trainer, clips_of_training, load_model
from modeling_ast.training.data_sources import DataArguments, load_data, read_classes
from modeling_ast.training.results import Judge
from modeling_ast.training.streams import TrainingStream
from tests.conftest import ROOT, randomise
from tests.hub_stand_in import HubStandIn

TINY_RUN = [
    *("--max_steps", "6", "--per_device_train_batch_size", "4"),
    *("--save_steps", "2", "--logging_steps", "1", "--seed", "3"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "data"
    return write_data_set(folder, num_train=28, num_test=28, seconds=1.0, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny AST with other labels, so that its head will be new."""
    config = ASTConfig(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=32,
        max_length=100,
        num_mel_bins=32,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("base") / "model"
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config, padding="longest").save_pretrained(folder)
    return folder


def run(*arguments, status=0):
    """Runs the command in this process."""
    assert finetune.main([str(argument) for argument in arguments]) == status


def test_a_run_leaves_a_model_its_numbers_and_a_card(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    paths = ("--model", base, "--data", data, "--output_dir", out)
    run(*paths, *TINY_RUN, "--max_roll", 10)
    metrics = json.loads((out / "metrics.json").read_text())
    # Trainer's logs must go to standard error.
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        f"listen to the mistakes: {out / 'worst_clips.html'}",
        f"the model is in {out}",
    ]
    assert printed[0].startswith(
        f"mAP {metrics['eval_mAP']:.3f} on 28 held-out clips (95 % interval"
    )

    # scikit-learn computes the metrics of the saved model on the held-out clips.
    classify = pipeline("audio-classification", model=str(out), device="cpu")
    assert classify.model.config.problem_type == "multi_label_classification"
    assert classify.feature_extractor.padding == "longest"
    _, held_out = load_data(DataArguments(data=str(data)))
    # With the run's batches, because single clips round differently and scores nearly tie.
    waveforms = [read_audio(row["audio"]["bytes"]) for row in held_out]
    logits = []
    for start in range(0, len(waveforms), TrainingArguments.per_device_eval_batch_size):
        batch = waveforms[start : start + TrainingArguments.per_device_eval_batch_size]
        inputs = classify.feature_extractor(batch, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            logits.append(classify.model(**inputs).logits)
    targets = [[sound.mid in row["labels"] for sound in SOUNDS] for row in held_out]
    scores = torch.cat(logits).numpy()
    assert [sound.name for sound in SOUNDS] == list(classify.model.config.id2label.values())
    expected = average_precision_score(np.array(targets), scores, average="macro")
    assert metrics["eval_mAP"] == pytest.approx(expected, abs=1e-4)

    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    result = front["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == pytest.approx(metrics["eval_mAP"], abs=1e-4)
    assert front["pipeline_tag"] == "audio-classification"
    assert str(base) in card and str(data) in card
    for name in ("learning_curve.png", "per_class_ap.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG") and f"({name})" in card
    assert metrics["lengths"].keys() == {"metric", "clips", "seconds", "max_length", "longest"}
    assert metrics["lengths"]["seconds"] == [0.25, 0.5, 1.0]
    # Clips of about the model's length are hardly padded.
    assert metrics["lengths"]["longest"][-1] == pytest.approx(expected, abs=0.01)
    assert "![score against the length of a clip](score_by_length.png)" in card
    assert (out / "score_by_length.png").read_bytes().startswith(b"\x89PNG")
    check_results(out, targets, scores, list(classify.model.config.id2label.values()))


def check_results(out, targets, logits, names):
    """The run's files, against scikit-learn and the logits of plain transformers."""
    results = json.loads((out / "results.json").read_text())
    targets, found = np.array(targets), logits >= 0
    expected = precision_recall_fscore_support(targets, found, zero_division=np.nan)[:3]
    for row, name, *numbers in zip(results["classes"], names, *expected, strict=True):
        given = [row[key] for key in ("precision", "recall", "f1")]
        numbers = [None if np.isnan(x) else pytest.approx(x) for x in numbers]
        assert row["name"] == name and given == numbers
    assert results["low"] <= results["value"] <= results["high"]
    assert results["chance"] < results["value"] + 0.3 and results["majority"] is None
    with (out / "worst_clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (targets.astype(bool) != found).sum()
    page = (out / "worst_clips.html").read_text()
    assert (
        1 <= page.count("<audio") <= 30 and "(worst_clips.html)" in (out / "README.md").read_text()
    )


# All options with random draws, and the average, which must survive a kill.
DRAWING_RUN = [
    *("--per_device_train_batch_size", "4", "--num_train_epochs", "3", "--eval_strategy", "epoch"),
    *("--save_steps", "2", "--save_total_limit", "1", "--logging_steps", "1", "--seed", "3"),
    *("--mixup_rate", "0.5", "--mix_whole_set", "--max_gain_db", "6", "--frequency_mask", "8"),
    *("--time_mask", "20", "--max_noise", "0.1", "--max_roll", "5", "--patchout_time", "3"),
    *("--balanced_sampling", "--average_from", "1", "--dataloader_num_workers", "1"),
    *("--min_length", "25"),
]


def killed(point, *arguments):
    """Runs in a new session until it is killed at that point; see killed_finetuning.py."""
    command = [sys.executable, "-m", "tests.killed_finetuning", point, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=False
    )


def assert_killed(ended):
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]


def assert_same_weights(first, second):
    for folder in (".", "average"):
        models = [
            ASTForAudioClassification.from_pretrained(run / folder) for run in (first, second)
        ]
        for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unbroken_one(base, data, tmp_path):
    """Killed twice: just after the second epoch's end, and while it writes a checkpoint."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    paths = ("--model", base, "--data", data, "--output_dir")
    run(*paths, whole, *DRAWING_RUN)
    # Seven steps an epoch, a checkpoint after every second one: that of step 14 is older than the
    # evaluation at the epoch's end, which a run that resumes there does not repeat.
    assert_killed(killed("step:15", *paths, broken, *DRAWING_RUN))
    assert [path.name for path in broken.glob("checkpoint-*")] == ["checkpoint-14"]
    assert_killed(killed("saving:18", *paths, broken, *DRAWING_RUN))
    state = broken / "checkpoint-18" / "trainer_state.json"
    with pytest.raises(json.JSONDecodeError):
        json.loads(state.read_text())
    assert not (broken / "metrics.json").exists()
    run(*paths, broken, *DRAWING_RUN)
    assert_same_weights(whole, broken)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(base, data, tmp_path):
    """Killed repeatedly, each time when it touches its files for a random number of times."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    paths = ("--model", base, "--data", data, "--output_dir")
    ended = killed("touch:0", *paths, whole, *DRAWING_RUN)
    assert ended.returncode == 0, ended.stderr[-3000:]
    touches = int(ended.stderr.splitlines()[-1].removeprefix("touched "))
    rng = np.random.default_rng(0)
    kills = 0
    # The first three runs together cannot reach the end.
    while kills < 8:
        moment = rng.integers(touches // 8, touches // 4)
        ended = killed(f"touch:{moment}", *paths, broken, *DRAWING_RUN)
        if (broken / "metrics.json").exists():
            break
        assert_killed(ended)
        kills += 1
    assert kills >= 3
    run(*paths, broken, *DRAWING_RUN)
    assert_same_weights(whole, broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"--model": "nobody/nothing"},
            "from the Hub: We couldn't connect",
        ),
        ({"--eval_split": "dev"}, "splits ['test', 'train'] but not 'dev'"),
        ({"--label_csv": "nowhere.csv"}, "cannot read the label file nowhere.csv"),
        ({"--data": "nowhere/data"}, "'nowhere/data' is not a file or directory on this machine"),
        (
            {"--data": "/nowhere"},
            "error: '/nowhere' is not a file or directory on this machine; ch",
        ),
        ({"--data": "csv"}, "as a name it stands for a format; give another --data"),
        ({"--data": "my sounds"}, "'my sounds' is not a file or directory on this machine"),
        ({"--audio-column": "video_id", "--max_bad_share": "0"}, "clips cannot be decoded"),
        ({"--average_from": "9", "--max_steps": "1"}, "the first epoch to average is 9"),
    ],
)
def test_mistakes_are_one_line(base, data, tmp_path, capsys, changes, message):
    options = {"--model": base, "--data": data, "--output_dir": tmp_path / "run", **changes}
    run(*(word for pair in options.items() for word in pair), status=1)
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith("error: ") and message in line and printed.out == ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tones for each label, in train and test."""
    root = tmp_path_factory.mktemp("folders") / "sounds"
    times = np.arange(16000) / 16000
    for split, count in (("train", 12), ("test", 6)):
        for label, hz in (("high", 3000), ("low", 300)):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                rng = np.random.default_rng([index, hz, count])
                tone = np.sin(2 * np.pi * hz * rng.uniform(0.8, 1.2) * times)
                noise = rng.standard_normal(16000)
                path = root / split / label / f"{index}.wav"
                soundfile.write(path, 0.1 * tone + 0.01 * noise, 16000)
    return root


PUBLISHED = [
    *("--published_adam", "--head_rate", "10", "--layer_decay", "0.9", "--learning_rate", "1e-3"),
    *("--decay_first", "1", "--decay_factor", "0.85", "--warmup_steps", "2"),
    *("--balanced_sampling", "--average_from", "2", "--num_train_epochs", "3"),
    *("--per_device_train_batch_size", "8", "--save_strategy", "epoch", "--logging_steps", "1"),
]


def test_one_folder_per_label_with_all_published_parts(base, folders, tmp_path, capsys):
    """scikit-learn and plain transformers check the model and the average of its epochs."""
    out = tmp_path / "run"
    run("--model", base, "--data", folders, "--output_dir", out, *PUBLISHED)
    assert capsys.readouterr().out.startswith("accuracy ")
    metrics = json.loads((out / "metrics.json").read_text())
    clips = sorted((folders / "test").rglob("*.wav"))
    truth = [path.parent.name for path in clips]
    for prefix, folder in (("eval", out), ("average", out / "average")):
        model = ASTForAudioClassification.from_pretrained(folder)
        extractor = ASTFeatureExtractor.from_pretrained(folder)
        assert model.config.problem_type == "single_label_classification"
        assert model.config.id2label == {0: "high", 1: "low"}
        waves = [read_audio(path) for path in clips]
        with torch.no_grad():
            inputs = extractor(waves, sampling_rate=16000, return_tensors="pt")
            logits = model(**inputs).logits
        guesses = [model.config.id2label[index] for index in logits.argmax(1).tolist()]
        assert metrics[f"{prefix}_accuracy"] == accuracy_score(truth, guesses)
        targets = torch.tensor([["high", "low"].index(name) for name in truth])
        loss = torch.nn.functional.cross_entropy(logits, targets)
        assert metrics[f"{prefix}_loss"] == pytest.approx(loss.item(), rel=1e-3)
    epochs = [load_file(out / f"checkpoint-{step}" / "model.safetensors") for step in (6, 9)]
    for name, tensor in load_file(out / "average" / "model.safetensors").items():
        torch.testing.assert_close(tensor, (epochs[0][name] + epochs[1][name]) / 2)
    card = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert card["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert "averaged weights" in (out / "README.md").read_text()
    state = json.loads((out / "checkpoint-9" / "trainer_state.json").read_text())
    rates = [row["learning_rate"] for row in state["log_history"] if "learning_rate" in row]
    # Trainer logs the rate of the first group, the embeddings, three layers below the full rate.
    shares = [0, 0.5, 1] + [0.85] * 3 + [0.85**2] * 3
    assert rates == pytest.approx([1e-3 * 0.9**3 * share for share in shares])


def test_the_loss_can_be_chosen(base, folders, data, tmp_path, capsys):
    """For mixup, the paper uses BCE for Speech Commands, although a clip has one label."""
    paths = ["--model", base, "--output_dir", tmp_path / "run"]
    words = ["--loss", "bce", "--mixup_rate", "0.6", "--mix_whole_set", "--max_steps", "1"]
    run(*paths, "--data", folders, *words)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"eval_accuracy", "eval_mAP"} <= metrics.keys()
    saved = ASTConfig.from_pretrained(tmp_path / "run")
    assert saved.problem_type == "multi_label_classification"
    run(*paths, "--data", data, "--loss", "cross_entropy", status=1)
    error = capsys.readouterr().err
    assert "needs exactly one label per clip" in error and "use --loss bce" in error


def test_label_smoothing_of_class_indices(base, folders, tmp_path):
    """Smoothed as by torch's own cross entropy, which needs class indices."""
    out = tmp_path / "run"
    paths = ["--model", base, "--data", folders, "--output_dir", out, "--max_steps", "1"]
    words = ["--label_smoothing", "0.3", "--logging_steps", "1", "--report_to", "none"]
    words += ["--per_device_train_batch_size", "24", "--save_steps", "1", "--learning_rate", "0"]
    run(*paths, *words)
    model = ASTForAudioClassification.from_pretrained(out)
    clips = sorted((folders / "train").rglob("*.wav"))
    inputs = ASTFeatureExtractor.from_pretrained(out)(
        [read_audio(path) for path in clips], sampling_rate=16000, return_tensors="pt"
    )
    truth = torch.tensor([["high", "low"].index(path.parent.name) for path in clips])
    with torch.no_grad():
        logits = model(**inputs).logits
    wanted = torch.nn.functional.cross_entropy(logits, truth, label_smoothing=0.3).item()
    assert logged(out / "checkpoint-1", "loss") == [pytest.approx(wanted, rel=1e-3)]


def logged(folder, key):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [row[key] for row in state["log_history"] if key in row]


def test_features_on_the_training_device_are_those_of_the_workers(base, data, tmp_path):
    """Without masks, noise and roll, the same losses and metrics."""
    words = ["--model", base, "--data", data, *TINY_RUN, "--eval_strategy", "steps"]
    words += ["--min_length", 30]
    curves = []
    for where in ("workers", "device"):
        out = tmp_path / where
        run(*words, "--output_dir", out, "--features", where, "--eval_steps", 3)
        curves.append([logged(out / "checkpoint-6", key) for key in ("loss", "eval_loss")])
        assert len(curves[-1][0]) == 6 and len(curves[-1][1]) == 2
    np.testing.assert_allclose(curves[0][0], curves[1][0], rtol=1e-3)
    np.testing.assert_allclose(curves[0][1], curves[1][1], rtol=1e-5)


@pytest.fixture
def quick_streams(monkeypatch):
    """No waiting: datasets waits 5 s at the end of a shuffled stream for threads of pyarrow."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


@pytest.mark.usefixtures("quick_streams")
def test_a_stream_trains_by_epochs_and_resumes(base, data, tmp_path):
    """Features and masks are computed on the training device; TensorBoard has a log."""
    out = tmp_path / "run"
    words = ["--model", base, "--data", data, "--output_dir", out, "--streaming"]
    words += ["--train_clips", 28, "--shuffle_buffer", 8, "--features", "device", "--mixup_rate", 1]
    words += ["--time_mask", 20, "--average_from", 2, "--num_train_epochs", 2, "--save_steps", 5]
    words += ["--per_device_train_batch_size", 4, "--logging_steps", 1]
    run(*words)
    # Two epochs of seven steps.
    losses = logged(out / "checkpoint-14", "loss")
    assert len(losses) == 14
    assert {"eval_mAP", "average_mAP"} <= json.loads((out / "metrics.json").read_text()).keys()
    assert list(out.glob("runs/*/events.out.tfevents.*"))
    assert "28 clips to train" in (out / "README.md").read_text()
    shutil.rmtree(out / "checkpoint-14")
    (out / "metrics.json").unlink()
    run(*words)
    assert logged(out / "checkpoint-14", "loss") == losses


@pytest.mark.usefixtures("quick_streams")
def test_a_stream_of_unknown_length_trains_by_steps(base, data, tmp_path):
    words = ["--model", base, "--data", data, "--output_dir", tmp_path, "--streaming", *TINY_RUN]
    run(*words, "--report_to", "none")
    assert "a stream of clips to train" in (tmp_path / "README.md").read_text()
    assert len(logged(tmp_path / "checkpoint-6", "loss")) == 6
    assert not (tmp_path / "runs").exists()


def test_a_streams_bad_clips_are_counted_among_those_drawn(base, data, tmp_path):
    splits = load_data(DataArguments(data=str(data), streaming=True))
    training = TrainingArguments(
        tmp_path, max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=3
    )
    arguments = Arguments(
        ModelArguments(),
        DataArguments(data=str(data), streaming=True),
        Augmentation(0.0),
        OptimizerArguments(),
        SamplingArguments(),
        training,
    )
    assert clips_of_training(splits[0], arguments) == 5 * 4 * 3
    classes = read_classes(arguments.data, *splits)
    model, extractor = load_model(ModelArguments(model=str(base)), classes)
    judge = Judge(classes, exclusive=False)
    trainer = build_trainer(model, extractor, classes, splits, arguments, judge)
    assert isinstance(trainer.train_dataset, TrainingStream)
    assert trainer.data_collator.bad_clips.num_clips == 60 + 28


def test_mixed_precision_checkpointing_and_accumulation_together(base, data, tmp_path):
    out = tmp_path / "run"
    words = ["--model", base, "--data", data, "--output_dir", out, *TINY_RUN, "--use_cpu", "--bf16"]
    run(*words[:4], "--output_dir", tmp_path / "plain", *TINY_RUN)
    run(*words, "--gradient_checkpointing", "--gradient_accumulation_steps", 2)
    losses = logged(out / "checkpoint-6", "loss")
    assert len(losses) == 6 and np.isfinite(losses).all()
    # The first step has eight clips where the plain run has four; both start at about ln 2.
    assert losses[0] == pytest.approx(
        logged(tmp_path / "plain" / "checkpoint-6", "loss")[0], rel=0.1
    )
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_the_script_pushes_a_run_with_its_own_card(base, data, tmp_path):
    """The whole folder except the checkpoints is pushed to a stand-in of the Hub.

    The recipe is named by its old path, and standard output holds only JSON.
    """
    out = tmp_path / "my-sounds"
    script = ["examples/finetune.py", "--recipe", "examples/recipes/demo.yaml", "--model", base]
    words = [*script, "--data", data, "--output_dir", out, *TINY_RUN, "--push_to_hub", "--json"]
    words += ["--hub_model_id", "me/my-sounds", "--hub_strategy", "end", "--average_from", 1]
    with HubStandIn(tmp_path / "hub") as hub:
        ended = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **hub.environment(home=tmp_path / "home")},
        )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout)
    metrics = json.loads((out / "metrics.json").read_text())
    assert result == {"output_dir": str(out), "metric": "mAP", "metrics": metrics}
    pushed = tmp_path / "hub" / "models" / "me" / "my-sounds"
    assert {
        "model.safetensors",
        "preprocessor_config.json",
        "metrics.json",
        "per_class_ap.png",
    } <= {path.name for path in pushed.iterdir()}
    assert (pushed / "average" / "model.safetensors").is_file()
    assert not list(pushed.glob("checkpoint-*"))
    assert (pushed / "README.md").read_text() == (out / "README.md").read_text()
    assert "model-index" in (pushed / "README.md").read_text()


def test_from_scratch_with_other_patches_and_statistics(base):
    classes = [("a", "a"), ("b", "b")]
    arguments = ModelArguments(
        str(base), from_scratch=True, patch_size=[32, 2], time_stride=2, mean=-6.5, std=5.5
    )
    arguments.patchout_time = 20
    model, extractor = load_model(arguments, classes)
    assert model.config.patch_grid() == (1, 50) and model.config.hidden_size == 24
    assert model.config.patchout_time == 20
    assert (extractor.mean, extractor.std) == (model.config.mean, model.config.std) == (-6.5, 5.5)
    stored = ASTForAudioClassification.from_pretrained(base).state_dict()
    own = model.state_dict()
    name = "audio_spectrogram_transformer.layers.0.mlp.fc1.weight"
    assert not torch.equal(own[name], stored[name])


def test_gradient_accumulation_equals_a_larger_batch(base, data, tmp_path):
    """With several labels, because BCE ignores the number of items that Trainer counts."""
    arguments = DataArguments(data=str(data))
    splits = load_data(arguments)
    classes = read_classes(arguments, splits[0])
    steps = []
    for batch, accumulation in ((8, 1), (4, 2)):
        model, extractor = load_model(ModelArguments(model=str(base)), classes)
        training = TrainingArguments(
            tmp_path / f"run{batch}",
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            save_strategy="no",
        )
        torch.manual_seed(0)
        model.classifier.dense.weight.data.normal_(std=0.1)
        judge = Judge(classes, exclusive=False)
        everything = Arguments(
            ModelArguments(),
            arguments,
            Augmentation(0.0, frequency_mask=0, time_mask=0),
            OptimizerArguments(),
            SamplingArguments(),
            training,
        )
        trainer = build_trainer(model, extractor, classes, splits, everything, judge)
        before = model.classifier.dense.bias.detach().clone()
        trainer.train()
        steps.append(model.classifier.dense.bias.detach() - before)
    assert steps[0].abs().min() > 1e-3
    torch.testing.assert_close(steps[1], steps[0], atol=0, rtol=1e-3)


def test_padding_is_the_checkpoints_unless_it_is_given(base):
    classes = [("a", "a"), ("b", "b")]
    assert load_model(ModelArguments(str(base)), classes)[1].padding == "longest"
    _, extractor = load_model(ModelArguments(str(base), padding="max_length"), classes)
    assert extractor.padding == "max_length"


def test_numbers_that_are_undefined_are_null(base, folders, tmp_path, capsys):
    """If all held-out clips are of one class, no class has an average precision."""
    for path in (folders / "train").rglob("*.wav"):
        place = tmp_path / "sounds" / "train" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    shutil.copytree(folders / "test" / "low", tmp_path / "sounds" / "test" / "low")
    words = ["--model", base, "--data", tmp_path / "sounds", "--max_steps", 1, "--json"]
    run(*words, "--output_dir", tmp_path / "run", "--report_to", "none")
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["metrics"]["eval_mAP"] is None and result["metrics"]["eval_accuracy"] >= 0
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == result["metrics"]


def test_a_run_goes_on_from_its_newest_whole_checkpoint(base, data, tmp_path, capsys):
    """Trainer itself would take the highest number; a given damaged checkpoint is refused."""
    out = tmp_path / "run"
    words = ["--model", base, "--data", data, "--output_dir", out, *TINY_RUN]
    run(*words)
    losses = logged(out / "checkpoint-6", "loss")
    os.truncate(out / "checkpoint-6" / "model.safetensors", 3000)
    (out / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    run(*words, "--resume_from_checkpoint", out / "checkpoint-4", status=1)
    assert "checkpoint-4: optimizer.pt is cut or damaged" in capsys.readouterr().err
    run(*words)
    assert logged(out / "checkpoint-6", "loss") == losses
    assert load_file(out / "checkpoint-6" / "model.safetensors")


def test_a_second_run_in_one_directory_is_refused(base, data, tmp_path, capsys):
    words = ["--model", base, "--data", data, "--output_dir", tmp_path / "run", *TINY_RUN]
    (tmp_path / "run").mkdir()
    with one_run_at_a_time(tmp_path / "run"):
        run(*words, status=1)
    assert "another run is writing into" in capsys.readouterr().err.splitlines()[-1]
    assert list((tmp_path / "run").iterdir()) == []


class BreakWhileSaving(TrainerCallback):
    """From step 3 on the directory is lost, or the disk is full (by a limit on file sizes)."""

    def __init__(self, kind, folder):
        self.kind, self.folder = kind, folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and self.kind == "lost":
            shutil.rmtree(self.folder)
            self.folder.write_text("a file stands where the directory was")
        if state.global_step == 3 and self.kind == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("kind", ["lost", "full"])
def test_a_directory_that_is_lost_and_a_full_disk(base, data, tmp_path, capsys, monkeypatch, kind):
    out = tmp_path / "run"
    breaking = BreakWhileSaving(kind, out)
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, breaking])
    words = ["--model", base, "--data", data, "--output_dir", out, *TINY_RUN]
    try:
        run(*words, "--report_to", "none", status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: cannot write into {out} (")
    assert "it resumes from the newest undamaged checkpoint" in line
    if kind == "full":
        monkeypatch.undo()
        run(*words)
        assert len(logged(out / "checkpoint-6", "loss")) == 6


def test_a_run_of_other_arguments_is_not_gone_on_with(base, data, tmp_path, capsys):
    """Its card and its extractor would have values that the weights were not trained with."""
    out = tmp_path / "run"
    words = ["--model", base, "--data", data, "--output_dir", out, *TINY_RUN]
    run(*words, "--save_strategy", "steps", "--save_steps", 1, "--mean", -7, "--std", 4)
    files = ("preprocessor_config.json", "README.md", "metrics.json", "model.safetensors")
    before = [(out / name).read_bytes() for name in files]
    capsys.readouterr()
    run(*words, "--save_strategy", "steps", "--save_steps", 1, status=1)
    assert "holds a run with --mean -7.0, not None; give another" in capsys.readouterr().err
    assert [(out / name).read_bytes() for name in files] == before
    # Without a checkpoint its model would be replaced.
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    run(*words, status=1)
    assert "holds the model of a run that has ended, without the" in capsys.readouterr().err
    assert [(out / name).read_bytes() for name in files] == before
    # A run that has not ended starts anew, so other arguments are allowed.
    (out / "metrics.json").unlink()
    run(*words)
    assert json.loads((out / "preprocessor_config.json").read_text())["mean"] != -7
