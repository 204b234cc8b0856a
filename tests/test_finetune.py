"""finetune.py and quickstart.py as a person runs them, in their own processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import finetune
import numpy as np
import pytest
import soundfile
import torch
import yaml
from data_sources import DataArguments, load_data, read_classes
from embedded_data import SOUNDS, write_data_set
from finetune_arguments import (
    Arguments,
    ModelArguments,
    OptimizerArguments,
    SamplingArguments,
    parse_arguments,
)
from run_folder import Judge
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, average_precision_score
from transformers import TrainingArguments, pipeline

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, read_audio
from modeling_ast.training import SCHEDULES, Augmentation, TrainingStream
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
    _, held_out = load_data(DataArguments(data=str(data)))
    # The run's own batches: clips alone round otherwise, and after six steps scores nearly tie.
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
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


# Everything that draws something, and the average that must survive.
DRAWING_RUN = [
    *("--per_device_train_batch_size", "4", "--num_train_epochs", "3", "--eval_strategy", "epoch"),
    *("--save_steps", "2", "--save_total_limit", "1", "--logging_steps", "1", "--seed", "3"),
    *("--mixup_rate", "0.5", "--mix_whole_set", "--max_gain_db", "6", "--frequency_mask", "8"),
    *("--time_mask", "20", "--max_noise", "0.1", "--max_roll", "5", "--patchout_time", "3"),
    *("--balanced_sampling", "--average_from", "1", "--dataloader_num_workers", "1"),
]


def kill_when(process, is_time) -> bool:
    """SIGKILL; whether it came in time."""
    deadline = time.monotonic() + 300
    while not is_time() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    in_time = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return in_time


def start(*arguments):
    """In a group of its own, so that a kill takes the workers too, as a machine's end does."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(*arguments), start_new_session=True, **quiet)


def assert_same_weights(first, second):
    for folder in (".", "average"):
        models = [
            ASTForAudioClassification.from_pretrained(run / folder) for run in (first, second)
        ]
        for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert torch.equal(a, b), name


def test_a_killed_run_ends_as_an_unbroken_one(base, data, tmp_path):
    """Killed twice: within the second epoch, and while it writes a checkpoint."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    paths = ("--model", base, "--data", data, "--output_dir")
    ended = run(*paths, whole, *DRAWING_RUN)
    assert ended.returncode == 0, ended.stderr[-3000:]
    # Seven steps an epoch: the first kill is in the second one.
    within = broken / "checkpoint-8" / "trainer_state.json"
    assert kill_when(start(*paths, broken, *DRAWING_RUN), within.exists)
    saving = broken / "checkpoint-14"
    assert kill_when(start(*paths, broken, *DRAWING_RUN), saving.exists)
    assert not (broken / "metrics.json").exists()
    again = run(*paths, broken, *DRAWING_RUN)
    assert again.returncode == 0, again.stderr[-3000:]
    assert_same_weights(whole, broken)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(base, data, tmp_path):
    """Killed again and again, some moments after its start, until it ends."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    paths = ("--model", base, "--data", data, "--output_dir")
    assert run(*paths, whole, *DRAWING_RUN).returncode == 0
    rng, kills = np.random.default_rng(0), 0
    for _ in range(12):
        process = start(*paths, broken, *DRAWING_RUN)
        before = {path.name for path in broken.glob("checkpoint-*")} if broken.exists() else set()

        wait = time.monotonic() + rng.uniform(0, 1.5)

        def has_moved(before=before, wait=wait):
            found = {path.name for path in broken.glob("checkpoint-*")}
            return found != before and time.monotonic() > wait

        kills += kill_when(process, has_moved)
        if (broken / "metrics.json").exists():
            break
    assert kills >= 3
    again = run(*paths, broken, *DRAWING_RUN)
    assert again.returncode == 0, again.stderr[-3000:]
    assert_same_weights(whole, broken)


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
    recipe.write_text(
        "learning_rate: 1e-3\nnum_train_epochs: 7\nmax_roll: 4\noutput_dir: here\n"
        "lr_scheduler_kwargs: {min_lr_rate: 0.1}\n"
    )
    arguments = ["finetune.py", "--recipe", recipe, "--model", base, "--data", data]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--num_train_epochs", "2"])
    arguments = parse_arguments()
    augmentation, training = arguments.augmentation, arguments.training
    assert (training.learning_rate, training.num_train_epochs) == (1e-3, 2)
    assert augmentation.max_roll == 4 and augmentation.mixup_rate == 0
    assert training.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    recipe.write_text("learning_rat: 1e-3\n")
    with pytest.raises(ValueError, match=r"unknown arguments \['learning_rat'\]"):
        parse_arguments()


@pytest.mark.parametrize("name", ["demo", "recipes/demo.yaml"])
def test_a_recipe_of_ours_is_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["finetune.py", "--recipe", name, "--model", "m"]
    monkeypatch.setattr(sys, "argv", command)
    recipe = yaml.safe_load((ROOT / "examples" / "recipes" / "demo.yaml").read_text())
    assert parse_arguments().training.num_train_epochs == recipe["num_train_epochs"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--recipe", "nowhere.yaml"])
    with pytest.raises(ValueError, match=r"cannot read the recipe nowhere.yaml"):
        parse_arguments()


RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))


def arguments_of(recipe, monkeypatch, *words):
    """What a recipe sets; on a machine without a GPU bfloat16 must be allowed."""
    command = ["finetune.py", "--recipe", str(recipe), "--use_cpu", *words]
    monkeypatch.setattr(sys, "argv", command)
    return parse_arguments()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood(recipe, monkeypatch):
    arguments_of(recipe, monkeypatch, "--model", "m", "--data", "d")
    text = recipe.read_text()
    assert text.startswith("# Command:")
    for word in ("# Hardware:", "# Result:", "# Differs from the paper:"):
        assert word in text


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_recipes_are_as_published(name, monkeypatch):
    """The schedule is that of training.SCHEDULES, the optimiser published_adam's."""
    recipe = ROOT / "examples" / "recipes" / f"{name}.yaml"
    arguments = arguments_of(recipe, monkeypatch)
    parts = finetune.published_parts(replace(arguments, sampling=SamplingArguments()), [])
    assert parts["epoch_decay"] == SCHEDULES[name]
    optimizer = parts["make_optimizer"](torch.nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.95, 0.999), 5e-7)
    assert arguments.training.max_grad_norm == 0


@pytest.mark.parametrize("shape", ["128x2", "16x16", "32x32"])
def test_recipes_of_patch_shapes_do_not_overlap(shape, base, monkeypatch, tmp_path):
    """As many patches as the spectrogram has places for, of that shape."""
    recipe = ROOT / "examples" / "recipes" / f"patches_{shape}.yaml"
    arguments = arguments_of(recipe, monkeypatch).model
    config = ASTConfig(hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
    ASTForAudioClassification(config).save_pretrained(tmp_path)
    ASTFeatureExtractor.from_config(config).save_pretrained(tmp_path)
    model, _ = finetune.load_model(replace(arguments, model=str(tmp_path)), [("a", "a")])
    mels, frames = map(int, shape.split("x"))
    assert model.config.patch_shape == (mels, frames)
    assert model.config.patch_grid() == (128 // mels, 1024 // frames)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of tones per label, below train and test."""
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


def test_one_folder_per_label_with_all_published_parts(base, folders, tmp_path):
    """scikit-learn and plain transformers judge the model and the average of its epochs."""
    out = tmp_path / "run"
    ended = run("--model", base, "--data", folders, "--output_dir", out, *PUBLISHED)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.splitlines()[-1].startswith("accuracy ")
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
    assert "of the averaged weights" in (out / "README.md").read_text()
    state = json.loads((out / "checkpoint-9" / "trainer_state.json").read_text())
    rates = [row["learning_rate"] for row in state["log_history"] if "learning_rate" in row]
    # Trainer logs the first group's rate: of the embeddings, three layers below the full one.
    shares = [0, 0.5, 1] + [0.85] * 3 + [0.85**2] * 3
    assert rates == pytest.approx([1e-3 * 0.9**3 * share for share in shares])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head_rate", "10"], "--layer_decay and --head_rate are for --published_adam"),
        (["--average_to", "3"], "--average_to is given without --average_from"),
        (
            ["--average_from", "9", "--num_train_epochs", "3"],
            "--average_from is 9 but the run has --num_train_epochs 3; lower",
        ),
        (["--patch_size", "8"], "--patch_size is for --from_scratch"),
        (["--mix_whole_set"], "--mix_whole_set is for a mixup; give --mixup_rate too"),
        (["--decay_first", "1", "--warmup_steps", "0.1"], "--warmup_steps is a share of the run"),
        (["--streaming"], "--streaming knows no end; give --train_clips"),
        (["--streaming", "--balanced_sampling"], "train without --streaming"),
        (
            ["--streaming", "--mixup_rate", "1", "--mix_whole_set"],
            "--mix_whole_set draws clips from anywhere",
        ),
        (
            ["--streaming", "--max_steps", "9", "--average_from", "2"],
            "--decay_first and --average_from count epochs; give --train_clips too",
        ),
    ],
)
def test_what_no_run_could_do_is_refused(monkeypatch, capsys, words, message):
    paths = ["--model", "m", "--data", "d", "--output_dir", "o"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *paths, *words])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert message in capsys.readouterr().err


def test_the_loss_can_be_chosen(base, folders, data, tmp_path, monkeypatch, capsys):
    """The paper learns Speech Commands, one label to a clip, with BCE, for the mixup."""
    paths = ["--model", base, "--data", folders, "--output_dir", tmp_path / "run"]
    words = ["--loss", "bce", "--mixup_rate", "0.6", "--mix_whole_set", "--max_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, paths), *words])
    finetune.main()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"eval_accuracy", "eval_mAP"} <= metrics.keys()
    saved = ASTConfig.from_pretrained(tmp_path / "run")
    assert saved.problem_type == "multi_label_classification"
    several = ["--loss", "cross_entropy", "--data", str(data)]
    monkeypatch.setattr(sys, "argv", [*sys.argv[:7], *several])
    with pytest.raises(SystemExit, match="needs exactly one label to a clip; use bce"):
        finetune.main()


def test_label_smoothing_of_class_indices(base, folders, tmp_path, monkeypatch):
    """As torch's own cross entropy smooths, where labels are class indices."""
    out = tmp_path / "run"
    paths = ["--model", base, "--data", folders, "--output_dir", out, "--max_steps", "1"]
    words = ["--label_smoothing", "0.3", "--logging_steps", "1", "--report_to", "none"]
    words += ["--per_device_train_batch_size", "24", "--save_steps", "1", "--learning_rate", "0"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, paths + words)])
    finetune.main()
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
    """Without augmentation, the same losses and metrics."""
    words = ["--model", base, "--data", data, *TINY_RUN, "--eval_strategy", "steps"]
    curves = []
    for where in ("workers", "device"):
        out = tmp_path / where
        ended = run(*words, "--output_dir", out, "--features", where, "--eval_steps", 3)
        assert ended.returncode == 0, ended.stderr[-3000:]
        curves.append([logged(out / "checkpoint-6", key) for key in ("loss", "eval_loss")])
        assert len(curves[-1][0]) == 6 and len(curves[-1][1]) == 2
    np.testing.assert_allclose(curves[0][0], curves[1][0], rtol=1e-3)
    np.testing.assert_allclose(curves[0][1], curves[1][1], rtol=1e-5)


def test_a_stream_trains_by_epochs_and_resumes(base, data, tmp_path):
    """Features and masks on the training device; TensorBoard has a log of it."""
    out = tmp_path / "run"
    words = ["--model", base, "--data", data, "--output_dir", out, "--streaming"]
    words += ["--train_clips", 28, "--shuffle_buffer", 8, "--features", "device", "--mixup_rate", 1]
    words += ["--time_mask", 20, "--average_from", 2, "--num_train_epochs", 2, "--save_steps", 5]
    words += ["--per_device_train_batch_size", 4, "--logging_steps", 1]
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    # Two epochs of seven steps.
    losses = logged(out / "checkpoint-14", "loss")
    assert len(losses) == 14
    assert {"eval_mAP", "average_mAP"} <= json.loads((out / "metrics.json").read_text()).keys()
    assert list(out.glob("runs/*/events.out.tfevents.*"))
    assert "28 clips to train" in (out / "README.md").read_text()
    shutil.rmtree(out / "checkpoint-14")
    (out / "metrics.json").unlink()
    assert run(*words).returncode == 0
    assert logged(out / "checkpoint-14", "loss") == losses


def test_a_stream_of_unknown_length_trains_by_steps(base, data, tmp_path, monkeypatch):
    words = ["--model", base, "--data", data, "--output_dir", tmp_path, "--streaming", *TINY_RUN]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, words), "--report_to", "none"])
    finetune.main()
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
    assert finetune.clips_of_training(splits[0], arguments) == 5 * 4 * 3
    classes = read_classes(arguments.data, *splits)
    model, extractor = finetune.load_model(ModelArguments(model=str(base)), classes)
    judge = Judge([name for _, name in classes], exclusive=False)
    trainer = finetune.build_trainer(model, extractor, classes, splits, arguments, judge)
    assert isinstance(trainer.train_dataset, TrainingStream)
    assert trainer.data_collator.bad_clips.num_clips == 60 + 28


def test_mixed_precision_checkpointing_and_accumulation_together(base, data, tmp_path):
    out = tmp_path / "run"
    words = ["--model", base, "--data", data, "--output_dir", out, *TINY_RUN, "--use_cpu", "--bf16"]
    plain = run(*words[:4], "--output_dir", tmp_path / "plain", *TINY_RUN)
    ended = run(*words, "--gradient_checkpointing", "--gradient_accumulation_steps", 2)
    assert ended.returncode == plain.returncode == 0, ended.stderr[-3000:]
    losses = logged(out / "checkpoint-6", "loss")
    assert len(losses) == 6 and np.isfinite(losses).all()
    # The first step has eight clips where the plain run has four; both start at about ln 2.
    assert losses[0] == pytest.approx(
        logged(tmp_path / "plain" / "checkpoint-6", "loss")[0], rel=0.1
    )
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_run_is_pushed_with_its_own_card(base, data, tmp_path):
    """To a stand-in of the Hub: everything of the folder but the checkpoints."""
    out = tmp_path / "my-sounds"
    words = ["--model", base, "--data", data, "--output_dir", out, *TINY_RUN, "--push_to_hub"]
    words += ["--hub_model_id", "me/my-sounds", "--hub_strategy", "end", "--average_from", 1]
    with HubStandIn(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(home=tmp_path / "home")}
        ended = subprocess.run(
            command(*words), capture_output=True, text=True, check=False, env=environment
        )
    assert ended.returncode == 0, ended.stderr[-3000:]
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
    model, extractor = finetune.load_model(arguments, classes)
    assert model.config.patch_grid() == (1, 50) and model.config.hidden_size == 24
    assert model.config.patchout_time == 20
    assert (extractor.mean, extractor.std) == (model.config.mean, model.config.std) == (-6.5, 5.5)
    stored = ASTForAudioClassification.from_pretrained(base).state_dict()
    own = model.state_dict()
    name = "audio_spectrogram_transformer.layers.0.mlp.fc1.weight"
    assert not torch.equal(own[name], stored[name])


def test_a_directory_written_anew_is_read_anew(tmp_path):
    """datasets' own cache knows a local directory by its last name alone."""
    first, second = tmp_path / "a" / "data", tmp_path / "b" / "data"
    for folder, clips in ((first, 14), (second, 28)):
        write_data_set(folder, num_train=clips, num_test=14, seconds=1.0, progress=False)
        train, _ = load_data(DataArguments(data=str(folder)))
        assert len(train) == clips
    write_data_set(first, num_train=15, num_test=14, seconds=1.0, progress=False, force=True)
    assert len(load_data(DataArguments(data=str(first)))[0]) == 15


def test_gradient_accumulation_equals_a_larger_batch(base, data, tmp_path):
    """With several labels, where BCE ignores the number of items that Trainer counts."""
    arguments = DataArguments(data=str(data))
    splits = load_data(arguments)
    classes = read_classes(arguments, splits[0])
    steps = []
    for batch, accumulation in ((8, 1), (4, 2)):
        model, extractor = finetune.load_model(ModelArguments(model=str(base)), classes)
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
        judge = Judge([name for _, name in classes], exclusive=False)
        everything = Arguments(
            ModelArguments(),
            arguments,
            Augmentation(0.0, frequency_mask=0, time_mask=0),
            OptimizerArguments(),
            SamplingArguments(),
            training,
        )
        trainer = finetune.build_trainer(model, extractor, classes, splits, everything, judge)
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
    metrics = json.loads((out / "model" / "metrics.json").read_text())
    assert metrics["average_mAP"] >= metrics["eval_mAP"] >= 0.95
