"""Damaged checkpoints: broken files, missing weights, impossible sizes; each gives one sentence."""

import json
import os
import re
import shutil
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, AudioTagger, loading
from modeling_ast.commands import main
from modeling_ast.pretrained import load_config, load_extractor, load_model


def change(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def config(**fields):
    return lambda folder: change(folder, "config.json", **fields)


def extractor(**fields):
    return lambda folder: change(folder, "preprocessor_config.json", **fields)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_weights(folder):
    os.truncate(folder / "model.safetensors", 3000)


def weights(change):
    def damage(folder):
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    return damage


def without_three(stored):
    return {name: tensor for i, (name, tensor) in enumerate(stored.items()) if i not in (3, 9, 20)}


def with_nan(stored):
    name = next(name for name in stored if name.endswith("layernorm_before.bias"))
    return stored | {name: torch.full_like(stored[name], torch.nan)}


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")


def cut_pickle(folder):
    pickled(folder)
    os.truncate(folder / "pytorch_model.bin", 100)


def shard_missing(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES = {
    "truncated": (cut_weights, "its weights are truncated or no safetensors file"),
    "empty": (write("model.safetensors", b""), "its weights are truncated or no safetensors"),
    "noise": (write("model.safetensors", b"\xfe" * 99), "its weights are truncated or no"),
    "lfs": (
        write("model.safetensors", b"version https://git-lfs.github.com"),
        "run `git lfs pull`",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model"),
    "pickle": (pickled, "its pickle of weights was refused, because it would run posix.system"),
    "cut pickle": (cut_pickle, "one of its files is damaged (RuntimeError"),
    "shard": (shard_missing, "model-00001-of-00001.safetensors"),
    "three weights": (weights(without_three), "it lacks 3 of the weights that its config.json"),
    "no head": (
        weights(lambda stored: {name: stored[name] for name in stored if "classif" not in name}),
        "it lacks 4 of the weights that its config.json describes, which would be random",
    ),
    "a layer too many": (
        config(num_hidden_layers=2),
        "it has encoder weights that its config.json does not describe (audio_spectrogram_transf",
    ),
    "biases too many": (
        config(qkv_bias=False),
        "layers.0.attention.v_proj.bias and 6 more), so that",
    ),
    "no label": (config(id2label={}, label2id={}), "it has no label: id2label in its config.json"),
    "other head": (config(id2label={"0": "a"}, label2id={}), "dense.bias is (5,) but must be (1,)"),
    "cut config": (write("config.json", b'{"hidden'), "its config.json is no JSON"),
    "null config": (write("config.json", b"null"), "its config.json does not hold a JSON object"),
    "binary config": (write("config.json", b"\xff\xfe\0"), "its config.json is no JSON"),
    "other model": (config(model_type="wav2vec2"), "its model_type is 'wav2vec2'"),
    "list of labels": (config(id2label=["a"] * 5), "id2label is ['a', 'a'"),
    "dtype": (config(dtype="float99"), "dtype is 'float99'"),
    "labels": (config(num_labels=10**9, id2label=None), "num_labels is 1000000000"),
    "layers": (config(num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
    "null mean": (extractor(mean=None), "Field 'mean'"),
    "std 0": (extractor(std=0), "std is 0"),
    "padding": (extractor(padding=[1]), "padding is [1]"),
    "long": (extractor(max_length=10**9), "max_length is 1000000000"),
    "no extractor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "it has no preprocessor_config.json; save ASTFeatureExtractor.from_config",
    ),
    "weights with NaN": (weights(with_nan), "holds NaN or infinity, as after a training that"),
    "weights of integers": (
        weights(lambda stored: {name: stored[name].to(torch.int8) for name in stored}),
        "has the type I8, and not floating-point numbers; get model.safetensors again",
    ),
    "problem type": (config(problem_type="nonsense"), "its problem_type is 'nonsense'; it must be"),
    "other extractor": (extractor(feature_extractor_type="X"), "is that of a 'X'"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_checkpoints(kind, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, words = DAMAGES[kind]
    damage(tiny_folder)
    with pytest.raises((OSError, ValueError), match=re.escape(words)) as error:
        AudioTagger.from_pretrained(tiny_folder)
    assert str(error.value).startswith(f"cannot load the model '{tiny_folder}': ")
    soundfile.write("a.wav", np.zeros(16000), 16000)
    capsys.readouterr()
    assert main(["classify", str(tiny_folder), "a.wav"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and words in line
    assert not (tmp_path / "evil").exists()


@pytest.fixture
def sounds(tmp_path):
    for split in ("train", "test"):
        for label in ("high", "low"):
            (tmp_path / "sounds" / split / label).mkdir(parents=True)
            path = tmp_path / "sounds" / split / label / "0.wav"
            soundfile.write(path, np.sin(np.arange(16000) / 9), 16000)
    return tmp_path / "sounds"


def test_every_command_refuses_by_name(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    """Three missing weights: even a fine-tuning, which may have a new head, refuses them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "whole")
    DAMAGES["three weights"][0](tiny_folder)
    model, data = str(tiny_folder), str(sounds)
    for words in (
        ["classify", model, f"{data}/test/low/0.wav"],
        ["tag", model, data, "--output", "tags.jsonl"],
        ["evaluate", model, "--data", data],
        ["average", str(tmp_path / "whole"), model, "--output-dir", "mean"],
        ["finetune", "--model", model, "--data", data, "--output-dir", "run"],
    ):
        assert main(words) == 1, words
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and ("it lacks 3" in line or "missing" in line), line
        assert not (tmp_path / "mean").exists()
    extractor(std=0)(tiny_folder)
    assert main(["stats", model, "--data", data]) == 1
    assert f"cannot load the model '{model}': std is 0" in capsys.readouterr().err


def test_swapped_arguments(tiny_folder, sounds, capsys):
    clip = str(sounds / "test" / "low" / "0.wav")
    assert main(["classify", clip, str(tiny_folder)]) == 1
    assert (
        "it is a file; give the directory of a model, as the first argument"
        in capsys.readouterr().err
    )


def test_only_the_head_may_be_fresh(tiny_folder, tiny_model):
    """For a checkpoint without a head, or with one of another size; the body is loaded."""
    names = {0: "a", 1: "b"}
    for damage in ("other head", "no head"):
        model = load_model(tiny_folder, fresh_head=True, id2label=names)
        assert model.classifier.dense.weight.shape == (2, 36)
        body = "audio_spectrogram_transformer.layernorm.weight"
        assert torch.equal(model.state_dict()[body], tiny_model.state_dict()[body])
        DAMAGES[damage][0](tiny_folder)
    with pytest.raises(ValueError, match="fine-tune it first, or give a model with a head"):
        load_model(tiny_folder)


def test_surplus_weights_of_an_encoder_alone(tiny_folder, tiny_model):
    """Without a head; the names of its weights lack the prefix."""
    tiny_model.base_model.save_pretrained(tiny_folder)
    load_model(tiny_folder, fresh_head=True)
    config(num_hidden_layers=2)(tiny_folder)
    with pytest.raises(ValueError, match=r"encoder weights that .* does not describe \(layers.2"):
        load_model(tiny_folder, fresh_head=True)


def test_other_surplus_weights_are_left_out(tiny_folder):
    more = {"teacher.head.weight": torch.ones(2, 3), "classifier.old.bias": torch.ones(2)}
    weights(lambda stored: stored | more)(tiny_folder)
    load_model(tiny_folder)


def test_a_model_without_labels_can_get_a_head(tiny_folder):
    config(id2label={}, label2id={})(tiny_folder)
    assert load_config(tiny_folder).num_labels == 0
    assert load_model(tiny_folder, fresh_head=True, id2label={0: "a", 1: "b"}).num_labels == 2


def test_a_whole_checkpoint(tiny_folder, tiny_model):
    assert load_config(tiny_folder).num_labels == 5
    assert load_extractor(tiny_folder).to_dict() == (
        ASTFeatureExtractor.from_config(tiny_model.config).to_dict()
    )
    for name, tensor in load_model(tiny_folder).state_dict().items():
        assert torch.equal(tensor, tiny_model.state_dict()[name])


def test_sizes_beyond_the_files_are_refused_before_memory_is_taken(tiny_folder, monkeypatch):
    """Also by from_pretrained, which otherwise behaves as in transformers."""
    config(hidden_size=40000, num_hidden_layers=2)(tiny_folder)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"describes \d+ weights but its files hold \d+ bytes"):
        ASTForAudioClassification.from_pretrained(tiny_folder)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    # The rule itself, where a whole file of the right size is small enough to write.
    config(hidden_size=36, num_hidden_layers=3)(tiny_folder)
    monkeypatch.setattr(loading, "FEW_WEIGHTS", 0)
    assert load_model(tiny_folder).config.num_weights() > 10_000


def test_transformers_classes_keep_their_ways(tiny_folder):
    """A model without a head still loads, with a report, because it may be wanted."""
    DAMAGES["no head"][0](tiny_folder)
    model = ASTForAudioClassification.from_pretrained(tiny_folder)
    assert model.classifier.dense.weight.shape == (5, 36)


def test_a_device_that_is_not_there(tiny_folder):
    with pytest.raises(ValueError, match="cannot use the device 'foo'"):
        AudioTagger.from_pretrained(tiny_folder, "foo")
