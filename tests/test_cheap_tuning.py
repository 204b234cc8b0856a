"""Frozen layers and adapters: what is trained, what is saved, and that runs resume."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file

from examples.embedded_data import write_data_set
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import main
from modeling_ast.pretrained import load_model
from modeling_ast.training.cheap_tuning import CheapArguments, freeze, how_trained, train_a_part
from tests.conftest import TINY, randomise
from tests.hub_stand_in import HubStandIn

TINY_RUN = [
    *("--max-steps", "4", "--per-device-train-batch-size", "4", "--save-steps", "2"),
    *("--learning-rate", "0.01", "--length-clips", "2", "--report-to", "none", "--seed", "3"),
]
ENCODER = "audio_spectrogram_transformer"


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
    given = ["finetune", "--model", base, "--data", data, "--output-dir", out, *TINY_RUN, *words]
    assert main([str(word) for word in given]) == status
    return out


@pytest.fixture(scope="module")
def adapter(base, data, tmp_path_factory):
    """The folder of a run that trained an adapter."""
    pytest.importorskip("peft", reason="the extra lora is not installed")
    return run(base, data, tmp_path_factory.mktemp("lora") / "run", "--lora-rank", 3)


def changed(folder, base):
    """Names of the weights that differ from the base model's."""
    after, before = load_model(folder).state_dict(), load_model(base).state_dict()
    return {name for name in after if not torch.equal(after[name], before.get(name))}


@pytest.mark.parametrize(("given", "layers"), [("0", (0, 1, 2)), ("2", (2,)), ("all", ())])
def test_frozen_weights_stay(given, layers, base, data, tmp_path):
    out = run(base, data, tmp_path / "run", "--freeze", given)
    learned = changed(out, base)
    own = load_model(out).state_dict()
    expected = {name for name in own if name.startswith("classifier.")}
    if given != "all":
        expected |= {f"{ENCODER}.layernorm.weight", f"{ENCODER}.layernorm.bias"}
    starts = tuple(f"{ENCODER}.layers.{layer}." for layer in layers)
    expected |= {name for name in own if name.startswith(starts)}
    # The bias of the keys has no gradient, because a shift of all keys does not change softmax.
    assert {name for name in expected - learned if "k_proj.bias" not in name} == set()
    assert learned <= expected
    assert " frozen" in (out / "README.md").read_text()
    assert json.loads((out / "run.json").read_text())["freeze"] == given


def test_frozen_layers_have_no_gradient_and_no_dropout():
    config = ASTConfig(**TINY, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model = randomise(ASTForAudioClassification(config))
    freeze(model, 2)
    outputs = []
    layers = model.audio_spectrogram_transformer.layers
    for layer in (layers[1], layers[2]):
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    values = torch.randn(2, 97, 40)
    for _ in range(2):
        model.train()
        loss = model(values, labels=torch.zeros(2, 5)).loss
    first, second, again, second_again = outputs
    assert not first.requires_grad and second.requires_grad
    assert torch.equal(first, again) and not torch.equal(second, second_again)
    loss.backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    starts = (f"{ENCODER}.layers.2.", f"{ENCODER}.layernorm.", "classifier.")
    assert with_gradient == {
        name for name, _ in model.named_parameters() if name.startswith(starts)
    }


def test_patchout_drops_patches_of_frozen_embeddings_too():
    model = randomise(ASTForAudioClassification(ASTConfig(**TINY, patchout_time=5)))
    freeze(model, 1)
    model.train()
    tokens, _ = model.audio_spectrogram_transformer.embeddings(torch.randn(2, 97, 40))
    assert tokens.shape[1] == 2 + 3 * (12 - 5)


def test_an_adapters_run_leaves_a_small_folder(adapter, base):
    assert not (adapter / "model.safetensors").exists()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    assert (settings["r"], settings["lora_alpha"]) == (3, 6)
    weights = load_file(adapter / "adapter_model.safetensors")
    # Six linear layers of three layers, two matrices each, and the head's four tensors.
    assert len(weights) == 3 * 6 * 2 + 4
    assert changed(adapter, base) == {
        name
        for name in load_model(base).state_dict()
        if name.startswith("classifier.")
        or (name.endswith(("proj.weight", "fc1.weight", "fc2.weight")) and "layers" in name)
    }
    card = (adapter / "README.md").read_text()
    assert "A LoRA adapter of rank 3 and the head were trained" in card
    assert 'pip install "modeling-ast[lora]"' in card and "peft_version" not in card


def test_a_run_resumes_to_the_same_adapter(adapter, base, data, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(adapter, out)
    shutil.rmtree(out / "checkpoint-4")
    (out / "adapter_model.safetensors").unlink()
    run(base, data, out, "--lora-rank", 3)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, out))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    state = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_damaged_checkpoints_of_adapters_are_passed_over(adapter, base, data, tmp_path, caplog):
    out = tmp_path / "run"
    shutil.copytree(adapter, out)
    os.truncate(out / "checkpoint-4" / "adapter_model.safetensors", 500)
    run(base, data, out, "--lora-rank", 3)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, out))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_arguments_are_another_run(adapter, base, data, tmp_path, capsys):
    shutil.copytree(adapter, tmp_path / "run")
    run(base, data, tmp_path / "run", "--lora-rank", 2, status=1)
    assert "holds a run with --lora-rank 3, not 2" in capsys.readouterr().err


def test_merged_is_the_same_model_and_a_whole_one(adapter, base, data, tmp_path):
    out = tmp_path / "run"
    # A run that has not ended: its checkpoints and its metrics are missing.
    shutil.copytree(adapter, out, ignore=shutil.ignore_patterns("checkpoint-*", "metrics.json"))
    run(base, data, out, "--lora-rank", 3, "--merge", "--save-strategy", "no")
    names = {path.name for path in out.iterdir()}
    assert "model.safetensors" in names and not any("adapter" in name for name in names)
    merged, adapted = load_model(out), load_model(adapter)
    values = torch.randn(2, 97, 40)
    with torch.no_grad():
        assert torch.equal(merged(values).logits, adapted(values).logits)
    plain = transformers.ASTForAudioClassification.from_pretrained(out)
    with torch.no_grad():
        torch.testing.assert_close(
            plain(values).logits, merged(values).logits, rtol=1e-4, atol=1e-5
        )
    # The other way round: the weights of the whole model do not stay beside the adapter.
    (out / "metrics.json").unlink()
    run(base, data, out, "--lora-rank", 3, "--save-strategy", "no")
    assert not (out / "model.safetensors").exists()
    assert changed(out, base)


@pytest.mark.parametrize("kept", ["best", "average"])
def test_the_best_epoch_and_the_average_of_adapters(kept, base, data, tmp_path):
    pytest.importorskip("peft", reason="the extra lora is not installed")
    words = ("--lora-rank", 2, "--eval-strategy", "epoch", "--save-strategy", "epoch")
    words += ("--keep-weights", kept, "--average-from", 1, "--validation-share", 0.3)
    # The first epoch is the best one, because the later ones make the model worse.
    out = run(base, data, tmp_path / "run", *words, "--learning-rate", 3, "--max-grad-norm", 0)
    last = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-1]
    state = json.loads((last / "trainer_state.json").read_text())
    folder = {"best": state["best_model_checkpoint"], "average": out / "average"}[kept]
    chosen = load_file(os.path.join(folder, "adapter_model.safetensors"))
    saved = load_file(out / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], chosen[name]) for name in saved)
    assert not (out / "model.safetensors").exists()
    assert load_model(out / "average").config.num_labels == 14


def test_every_command_takes_an_adapter(adapter, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = str(adapter)
    clip = np.random.default_rng(0).standard_normal(40000) / 10
    (tmp_path / "clips").mkdir()
    soundfile.write("clips/a.wav", clip, 16000)
    for words in (
        ["classify", folder, "clips/a.wav", "--int8"],
        ["tag", folder, "clips", "--output", "tags.jsonl"],
        ["detect", folder, "clips/a.wav"],
        ["evaluate", folder, "--data", str(data), "--length-clips", "0"],
        ["stats", folder, "--data", str(data)],
        ["finetune", "--model", folder, "--data", str(data), "--output-dir", "more", *TINY_RUN],
    ):
        assert main(words) == 0, (words, capsys.readouterr().err)
    first = capsys.readouterr().out.splitlines()[1]
    assert first.split("  ")[-1].strip() in load_model(folder).config.id2label.values()
    assert (tmp_path / "more" / "model.safetensors").is_file()


def test_an_adapter_is_pushed_and_loaded_from_the_hub(base, data, tmp_path):
    """From a Hub that has the base model too, by everything that loads a model."""
    pytest.importorskip("peft", reason="the extra lora is not installed")
    models = tmp_path / "hub" / "models"
    shutil.copytree(base, models / "someone" / "base")
    words = ["finetune", "--model", "someone/base", "--data", str(data), "--output-dir", "small"]
    words += [*TINY_RUN, "--lora-rank", "2", "--push-to-hub", "--hub-model-id", "someone/small"]
    code = f"""
import sys
import numpy as np
from modeling_ast import ASTForAudioClassification, AudioTagger
from modeling_ast.commands import main
from transformers import AutoModelForAudioClassification, pipeline
assert main({words!r}) == 0
clip = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
names = ("small", "someone/small")
local, hub = (next(AudioTagger.from_pretrained(name)([clip])) for name in names)
assert local.labels == hub.labels and len(hub.labels) == 5
own = ASTForAudioClassification.from_pretrained("someone/small")
auto = AutoModelForAudioClassification.from_pretrained("someone/small")
for name, weight in own.state_dict().items():
    assert (weight == auto.state_dict()[name]).all()
assert own.config.id2label == auto.config.id2label and len(auto.config.id2label) == 14
name = "someone/small"
classify = pipeline("audio-classification", model=name, feature_extractor=name, device="cpu")
scores = {{row["label"]: row["score"] for row in classify(clip, top_k=5)}}
assert scores.keys() == hub.labels.keys()
assert all(abs(scores[label] - hub.labels[label]) < 1e-5 for label in scores)
"""
    with HubStandIn(tmp_path / "hub") as hub:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **hub.environment(home=tmp_path / "home")},
        )
    assert ended.returncode == 0, ended.stderr[-3000:]
    pushed = {path.name for path in (models / "someone" / "small").iterdir()}
    assert {"adapter_model.safetensors", "config.json", "preprocessor_config.json"} <= pushed
    assert "model.safetensors" not in pushed
    card = (models / "someone" / "small" / "README.md").read_text()
    assert "base_model: someone/base\n" in card and "base_model_relation: adapter\n" in card


MISTAKES = {
    "--freeze is 'some'; it must be a number of layers, or 'all'": ("--freeze", "some"),
    "--freeze is '-1'": ("--freeze=-1",),
    "--lora-rank is 0; it must be at least 1": ("--lora-rank", 0),
    "--lora-alpha is 0.0; it must be above 0": ("--lora-rank", 2, "--lora-alpha", 0),
    "--lora-alpha needs an adapter; give --lora-rank too": ("--lora-alpha", 4),
    "--merge needs an adapter; give --lora-rank too": ("--merge",),
    "--freeze all leaves no layer to adapt": ("--freeze", "all", "--lora-rank", 2),
    "--freeze is 3, which is all layers of the model": ("--freeze", 3, "--lora-rank", 2),
    "--freeze is 4 but the model has 3 layers; give at most that": ("--freeze", 4),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_in_a_sentence(message, base, data, tmp_path, capsys):
    pytest.importorskip("peft", reason="the extra lora is not installed")
    run(base, data, tmp_path / "run", *MISTAKES[message], status=1)
    assert f"error: {message}" in capsys.readouterr().err


def test_a_part_of_random_weights_is_no_start(base, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(base, data, tmp_path / "run", "--freeze", 1, "--from-scratch")
    assert ended.value.code == 2
    assert "--freeze and --lora-rank need trained weights" in capsys.readouterr().err


def test_layers_below_the_frozen_ones_are_not_adapted(base):
    pytest.importorskip("peft", reason="the extra lora is not installed")
    arguments = CheapArguments(freeze="2", lora_rank=4)
    model = train_a_part(load_model(base), arguments)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split("layers.")[1][0] for name in trained if "layers." in name} == {"2"}
    sizes = {36 * 4 * 2: 4, (36 + 50) * 4: 2}  # q, k, v, o; the two of the MLP
    numbers = sum(size * count for size, count in sizes.items()) + 2 * 36 + 5 * 37
    sentence = how_trained(model, arguments)
    assert f"({numbers:,} of " in sentence and sentence.startswith("The embeddings and the first 2")
