"""finetune.py and quickstart.py as a person runs them, in their own processes."""

import json
import os
import signal
import subprocess
import sys
import time

import finetune
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, randomise
from embedded_data import SOUNDS, write_data_set
from sklearn.metrics import average_precision_score
from transformers import TrainingArguments, pipeline

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, read_audio

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
    """A tiny AST of other labels, whose head therefore is fresh."""
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


def command(*arguments):
    return [sys.executable, str(ROOT / "examples" / "finetune.py"), *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def test_a_run_leaves_a_model_its_numbers_and_a_card(base, data, tmp_path):
    out = tmp_path / "run"
    paths = ("--model", base, "--data", data, "--output_dir", out)
    ended = run(*paths, *TINY_RUN, "--max_roll", 10)
    assert ended.returncode == 0, ended.stderr[-3000:]
    metrics = json.loads((out / "metrics.json").read_text())

    # scikit-learn judges the saved model on the held-out clips.
    classify = pipeline("audio-classification", model=str(out))
    assert classify.model.config.problem_type == "multi_label_classification"
    assert classify.feature_extractor.padding == "longest"
    _, held_out = finetune.load_data(finetune.DataArguments(data=str(data)))
    scores, targets = [], []
    for row in held_out:
        # Logits: after six steps the clips' scores are so alike that a sigmoid makes ties.
        waveform = read_audio(row["audio"]["bytes"])
        rows = classify(waveform, top_k=len(SOUNDS), function_to_apply="none")
        by_name = {entry["label"]: entry["score"] for entry in rows}
        scores.append([by_name[sound.name] for sound in SOUNDS])
        targets.append([sound.mid in row["labels"] for sound in SOUNDS])
    expected = average_precision_score(np.array(targets), np.array(scores), average="macro")
    assert metrics["eval_mAP"] == pytest.approx(expected, abs=1e-4)

    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    result = front["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == pytest.approx(metrics["eval_mAP"], abs=1e-4)
    assert front["pipeline_tag"] == "audio-classification"
    assert str(base) in card and str(data) in card
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_ends_as_an_unbroken_one(base, data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    paths = ("--model", base, "--data", data, "--output_dir")
    assert run(*paths, whole, *TINY_RUN).returncode == 0
    process = subprocess.Popen(
        command(*paths, broken, *TINY_RUN), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = broken / "checkpoint-2" / "trainer_state.json"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (broken / "metrics.json").exists()
    again = run(*paths, broken, *TINY_RUN)
    assert again.returncode == 0, again.stderr[-3000:]
    models = [ASTForAudioClassification.from_pretrained(path) for path in (whole, broken)]
    for (name, first), second in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        assert torch.equal(first, second), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--data": None}, "--data is missing"),
        (
            {"--model": "nobody/nothing"},
            "cannot load the model 'nobody/nothing': We couldn't connect",
        ),
        ({"--eval_split": "dev"}, "splits ['test', 'train'] but not 'dev'"),
        ({"--label_csv": "nowhere.csv"}, "no file at nowhere.csv"),
    ],
)
def test_mistakes_are_one_line(base, data, tmp_path, monkeypatch, capsys, changes, words):
    options = {"--model": base, "--data": data, "--output_dir": tmp_path / "run", **changes}
    words_of_command = [str(word) for pair in options.items() if pair[1] for word in pair]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *words_of_command])
    with pytest.raises(SystemExit) as end:
        finetune.main()
    message = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err
    assert words in message


def test_a_recipe_is_read_and_the_command_line_wins(base, data, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1e-3\nnum_train_epochs: 7\nmax_roll: 4\noutput_dir: here\n")
    arguments = ["finetune.py", "--recipe", recipe, "--model", base, "--data", data]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--num_train_epochs", "2"])
    _, _, augmentation, training = finetune.parse_arguments()
    assert (training.learning_rate, training.num_train_epochs) == (1e-3, 2)
    assert augmentation.max_roll == 4 and augmentation.mixup_rate == 0
    recipe.write_text("learning_rat: 1e-3\n")
    with pytest.raises(ValueError, match=r"unknown arguments \['learning_rat'\]"):
        finetune.parse_arguments()


def test_every_recipe_is_understood(monkeypatch):
    for recipe in sorted((ROOT / "examples" / "recipes").glob("*.yaml")):
        arguments = ["finetune.py", "--recipe", str(recipe), "--model", "m", "--data", "d"]
        monkeypatch.setattr(sys, "argv", arguments)
        finetune.parse_arguments()
        assert recipe.read_text().startswith("# Command:")


def test_a_directory_written_anew_is_read_anew(tmp_path):
    """datasets' own cache knows a local directory by its last name alone."""
    first, second = tmp_path / "a" / "data", tmp_path / "b" / "data"
    for folder, clips in ((first, 14), (second, 28)):
        write_data_set(folder, num_train=clips, num_test=14, seconds=1.0, progress=False)
        train, _ = finetune.load_data(finetune.DataArguments(data=str(folder)))
        assert len(train) == clips
    write_data_set(first, num_train=15, num_test=14, seconds=1.0, progress=False, force=True)
    assert len(finetune.load_data(finetune.DataArguments(data=str(first)))[0]) == 15


def test_gradient_accumulation_equals_a_larger_batch(base, data, tmp_path):
    """With several labels, where BCE ignores the number of items that Trainer counts."""
    arguments = finetune.DataArguments(data=str(data))
    splits = finetune.load_data(arguments)
    classes = finetune.read_classes(arguments, splits[0])
    steps = []
    for batch, accumulation in ((8, 1), (4, 2)):
        model, extractor = finetune.load_model(finetune.ModelArguments(model=str(base)), classes)
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
        trainer = finetune.build_trainer(
            model, extractor, classes, splits, arguments, finetune.Augmentation(0.0), training
        )
        before = model.classifier.dense.bias.detach().clone()
        trainer.train()
        steps.append(model.classifier.dense.bias.detach() - before)
    assert steps[0].abs().min() > 1e-3
    torch.testing.assert_close(steps[1], steps[0], atol=0, rtol=1e-3)


def test_quickstart_runs_through(tmp_path):
    out = tmp_path / "quickstart"
    arguments = ["--output_dir", out, "--num-train", 28, "--num-test", 28, "--epochs", 1]
    script = [sys.executable, str(ROOT / "examples" / "quickstart.py"), *map(str, arguments)]
    ended = subprocess.run(script, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "RANDOM weights" in ended.stdout and "held-out mAP" in ended.stdout
    for name in ("clip.png", "model/model.safetensors", "model/README.md", "ast/config.json"):
        assert (out / name).is_file(), name
    again = subprocess.run(script, capture_output=True, text=True, check=False, cwd=ROOT)
    assert again.returncode == 1 and "exists; name another --output_dir" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_quickstart_reaches_its_score(tmp_path):
    out = tmp_path / "quickstart"
    script = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--output_dir", str(out)]
    assert subprocess.run(script, check=False).returncode == 0
    assert json.loads((out / "model" / "metrics.json").read_text())["eval_mAP"] >= 0.9
