"""Adapters of peft with their base model, against peft itself and against the formula of LoRA."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file, save_file

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    AudioTagger,
)
from modeling_ast.adapters import find_adapter
from modeling_ast.commands import main
from modeling_ast.pretrained import load_config, load_extractor, load_model
from tests.conftest import TINY, randomise

peft = pytest.importorskip("peft", reason="the extra lora is not installed")

LABELS = {0: "dog", 1: "cat"}


def frames(count=2, length=97):
    return torch.randn(count, length, 40, generator=torch.Generator().manual_seed(0))


def train_adapter(base, folder, **settings):
    """An adapter with random weights and a head for two labels, saved as by a user of peft."""
    model = ASTForAudioClassification.from_pretrained(
        base, id2label=LABELS, label2id={"dog": 0, "cat": 1}, ignore_mismatched_sizes=True
    )
    given = {"r": 4, "target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**given | settings))
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    randomise(torch.nn.ParameterList(trained), seed=1)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.fixture
def adapted(tiny_folder, tmp_path):
    return train_adapter(tiny_folder, tmp_path / "adapter")


@pytest.fixture
def adapter(adapted, tmp_path):
    """The folder of an adapter that also has the config of the whole model."""
    folder = tmp_path / "adapter"
    adapted.config.save_pretrained(folder)
    extractor = ASTFeatureExtractor.from_config(adapted.config, padding="longest")
    extractor.save_pretrained(folder)
    return folder


def difference(model, other, values=None):
    values = frames() if values is None else values
    with torch.no_grad():
        return (model(values).logits - other(values).logits).abs().max()


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"r": 3, "lora_alpha": 7}]
)
def test_the_merged_model_is_the_unmerged_one(settings, tiny_folder, tmp_path):
    adapted = train_adapter(tiny_folder, tmp_path / "adapter", **settings)
    adapted.config.save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path / "adapter")
    assert type(model) is ASTForAudioClassification and not model.training
    # A tolerance for float32, because the products are summed in another order.
    assert difference(model, adapted) < 1e-5 * adapted(frames()).logits.abs().max()
    with torch.no_grad(), adapted.disable_adapter():
        plain = adapted.base_model.model.audio_spectrogram_transformer(frames()).pooler_output
        learned = model.audio_spectrogram_transformer(frames()).pooler_output
    assert (learned - plain).abs().max() > 0.01


def test_the_merged_weights_are_those_of_the_formula(adapter, tiny_model):
    weights = load_file(adapter / "adapter_model.safetensors")
    merged = load_model(adapter).state_dict()
    for name, stored in tiny_model.state_dict().items():
        if name.startswith("classifier."):
            stored = weights.pop(f"base_model.model.{name}")
        elif "q_proj.weight" in name or "fc1.weight" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            up, down = weights.pop(f"{stem}.lora_B.weight"), weights.pop(f"{stem}.lora_A.weight")
            stored = stored + 8 / 4 * up @ down  # lora_alpha is 8 by default
        torch.testing.assert_close(merged[name], stored, atol=1e-6, rtol=1e-5)
    assert not weights


def test_auto_classes_and_pipelines_take_the_folder(adapter, adapted):
    auto = transformers.AutoModelForAudioClassification.from_pretrained(adapter).eval()
    assert auto.config.id2label == LABELS and auto.name_or_path == str(adapter)
    assert difference(auto, adapted) < 1e-5
    classify = transformers.pipeline("audio-classification", str(adapter))
    assert classify.feature_extractor.padding == "longest"
    assert {row["label"] for row in classify(np.zeros(9000, np.float32))} == {"dog", "cat"}
    encoder = transformers.AutoModel.from_pretrained(adapter).eval()
    assert type(encoder) is ASTModel
    with torch.no_grad():
        expected = adapted.base_model.model.audio_spectrogram_transformer(frames()).pooler_output
        torch.testing.assert_close(encoder(frames()).pooler_output, expected, atol=1e-5, rtol=1e-4)


def test_plain_transformers_with_peft_takes_it(adapter, adapted, tiny_folder):
    """The code of docs/cheap_tuning.md for users without this package."""
    config = transformers.ASTConfig.from_pretrained(adapter)
    base = transformers.ASTForAudioClassification.from_pretrained(
        tiny_folder, config=config, ignore_mismatched_sizes=True
    )
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    assert difference(theirs, adapted) < 1e-5


def test_what_may_differ_may_differ(adapter, adapted):
    """The options of every other checkpoint work, too: dtype, grid, head."""
    assert load_model(adapter, dtype="bfloat16").dtype == torch.bfloat16
    half = load_model(adapter, dtype=torch.bfloat16).float()
    # Each weight is rounded to 8 bits once, not before and after the sum.
    whole = load_model(adapter)
    for name, weight in half.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name].bfloat16().float()), name
    assert load_model(adapter, max_length=60).config.patch_grid() == (3, 7)
    model = load_model(adapter, fresh_head=True, id2label={0: "a"}, label2id={"a": 0})
    assert model.classifier.dense.weight.shape == (1, 36)
    with pytest.raises(ValueError, match="it lacks 2 of the weights"):
        load_model(adapter, id2label={0: "a"}, label2id={"a": 0})
    model.save_pretrained(adapter.parent / "whole")
    assert find_adapter(adapter.parent / "whole") is None


def test_without_config_and_extractor_those_of_the_base_model_hold(tiny_folder, tmp_path):
    base = ASTForAudioClassification.from_pretrained(tiny_folder)
    settings = peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, settings).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    assert load_config(tmp_path / "adapter").num_labels == 5
    assert load_extractor(tmp_path / "adapter").max_length == TINY["max_length"]
    assert difference(load_model(tmp_path / "adapter"), adapted) < 1e-5
    assert AudioTagger.from_pretrained(tmp_path / "adapter").names == [
        f"LABEL_{index}" for index in range(5)
    ]


def test_an_adapter_of_an_adapter(adapter, adapted, tmp_path):
    model = load_model(adapter)
    settings = peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False)
    second = peft.get_peft_model(model, settings).eval()
    second.save_pretrained(tmp_path / "second")
    expected = second(frames()).logits
    torch.testing.assert_close(load_model(tmp_path / "second")(frames()).logits, expected)


def test_a_base_model_is_found_from_the_adapters_folder_too(adapter, tmp_path, monkeypatch):
    change(adapter, base_model_name_or_path="../tiny")
    shutil.move(tmp_path / "tiny", tmp_path / "moved" / "tiny")
    shutil.move(adapter, tmp_path / "moved" / "adapter")
    assert load_model(tmp_path / "moved" / "adapter").config.id2label == LABELS
    change(tmp_path / "moved" / "adapter", base_model_name_or_path="tiny")
    monkeypatch.chdir(tmp_path / "moved")
    assert load_model("adapter").config.id2label == LABELS


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def weights(change):
    def damage(folder):
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return damage


def without_one(stored):
    return {name: stored[name] for name in sorted(stored)[1:]}


def wider(stored):
    return {name: torch.cat((tensor, tensor)) for name, tensor in stored.items()}


def base(**fields):
    def damage(folder):
        config = ASTConfig(**TINY | fields)
        ASTForAudioClassification(config).save_pretrained(folder.parent / "tiny")

    return damage


def base_of_llama(folder):
    path = folder.parent / "tiny" / "config.json"
    path.write_text(json.dumps({"model_type": "llama"}))


def other_head(folder):
    (folder / "config.json").unlink()


DAMAGES = {
    "base gone": (
        lambda folder: shutil.rmtree(folder.parent / "tiny"),
        "is not there; put it there, or correct base_model_name_or_path in its adapter_config.json",
    ),
    "base on the Hub": (
        lambda folder: change(folder, base_model_name_or_path="someone/nothing"),
        "it is an adapter whose base model 'someone/nothing' cannot be loaded",
    ),
    "no base": (
        lambda folder: change(folder, base_model_name_or_path=None),
        "it is an adapter whose base model is None; correct base_model_name_or_path",
    ),
    "itself": (
        lambda folder: change(folder, base_model_name_or_path=str(folder)),
        "it is an adapter that names itself as its base model",
    ),
    "narrow base": (base(hidden_size=24), "has other weights than it was trained on: 52 differ"),
    "shallow base": (base(num_hidden_layers=2), "it was trained on: 16 differ in name or shape"),
    "deep base": (base(num_hidden_layers=4), "it was trained on: 16 differ in name or shape"),
    "base of words": (base_of_llama, "it is an adapter of another kind of model: the model_type"),
    "other head": (other_head, "classifier.dense.bias is (2,) in the adapter and (5,) for the"),
    "one weight lost": (weights(without_one), "q_proj.lora_A.weight is missing in the adapter and"),
    "other shapes": (weights(wider), "it is an adapter that does not fit"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "it is an adapter without adapter_model.safetensors",
    ),
    "cut weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\0" * 30),
        "its weights are truncated or no safetensors file",
    ),
    "lfs": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            b"version https://git-lfs.github.com"
        ),
        "run `git lfs pull`",
    ),
    "no JSON": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        "its adapter_config.json is damaged or names no base_model_name_or_path",
    ),
    "a list": (
        lambda folder: (folder / "adapter_config.json").write_text("[]"),
        "its adapter_config.json is damaged or names no base_model_name_or_path",
    ),
    "unknown kind": (lambda folder: change(folder, peft_type="X"), "is damaged (KeyError: 'X')"),
    "wrong value": (lambda folder: change(folder, r="four"), "an adapter"),
    "prompts": (
        lambda folder: change(folder, peft_type="PROMPT_TUNING", num_virtual_tokens=3),
        "it is an adapter of the kind 'PROMPT_TUNING', which adds tokens of text",
    ),
    "other targets": (
        lambda folder: change(folder, target_modules=["query"]),
        "it is an adapter of another kind of model (No modules were targeted for adaptation)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_cannot_be_loaded(kind, adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, words = DAMAGES[kind]
    damage(adapter)
    with pytest.raises((OSError, ValueError), match=re.escape(words)) as error:
        AudioTagger.from_pretrained(adapter)
    assert str(error.value).startswith(f"cannot load the model '{adapter}': ")
    soundfile.write("a.wav", np.zeros(16000), 16000)
    capsys.readouterr()
    assert main(["classify", str(adapter), "a.wav"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and words in line


def test_without_peft_a_sentence_says_what_to_install(adapter, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    assert main(["classify", str(adapter), str(tmp_path / "a.wav")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert 'needs peft, which is not installed; install it with: pip install "modeling-' in message
