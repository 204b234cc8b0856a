"""conversion/averaging.py, against means in float64, on transformers' own AST models."""

import json
import os
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import average
from modeling_ast.conversion import (
    ConversionError,
    WeightMean,
    average_checkpoints,
    averaging,
    read_source,
)
from modeling_ast.position import resize_position_grid
from tests.conftest import TINY, randomise
from tests.hub_stand_in import HubStandIn
from tests.made_up_checkpoints import run

POSITIONS = "audio_spectrogram_transformer.embeddings.position_embeddings"


def make(folder, seed, **changes):
    """A checkpoint as plain transformers saves it."""
    config = transformers.ASTConfig(**{**TINY, **changes})
    model = randomise(transformers.ASTForAudioClassification(config), seed)
    model.save_pretrained(folder)
    size = {"num_mel_bins": config.num_mel_bins, "max_length": config.max_length}
    transformers.ASTFeatureExtractor(mean=-5.0, std=3.0, **size).save_pretrained(folder)
    return model.state_dict()


@pytest.fixture
def three(tmp_path):
    folders = [tmp_path / f"checkpoint-{number}" for number in (1, 2, 3)]
    return folders, [make(folder, seed) for seed, folder in enumerate(folders)]


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_the_mean_of_three(three, tmp_path, weights):
    folders, models = three
    flags = ["--weights", *weights] if weights else []
    assert run(average, *folders, "--output-dir", tmp_path / "mean", *flags) == 0
    shares = [weight / 8 for weight in weights] if weights else [1 / 3] * 3
    # Plain transformers loads the result, too.
    mean = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "mean").state_dict()
    assert mean.keys() == models[0].keys()
    for name, tensor in mean.items():
        stack = torch.stack([model[name].double() * s for model, s in zip(models, shares)])
        torch.testing.assert_close(tensor.double(), stack.sum(0), atol=1e-6, rtol=1e-6)
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "mean")
    assert (extractor.mean, extractor.std, extractor.max_length) == (-5.0, 3.0, 97)


def test_the_model_and_the_old_name_of_the_flag(three, tmp_path):
    folders, models = three
    conversion = average_checkpoints(folders)
    model = conversion.build_model()
    assert isinstance(model, ASTForAudioClassification) and not model.training
    for name, tensor in model.state_dict().items():
        want = torch.stack([state_dict[name].double() for state_dict in models]).mean(0)
        torch.testing.assert_close(tensor.double(), want, atol=1e-6, rtol=1e-6)
    conversion.save(tmp_path / "python")
    assert run(average, *folders, "--output", tmp_path / "command") == 0
    python, command = (
        load_file(tmp_path / name / "model.safetensors") for name in ("python", "command")
    )
    assert python.keys() == command.keys()
    assert all(torch.equal(python[name], tensor) for name, tensor in command.items())


AVERAGE_OF_THE_HUB = """
import json, sys
from modeling_ast.conversion import average_checkpoints
conversion = average_checkpoints(["someone/one", "someone/two"])
print(conversion.weights["classifier.dense.bias"].tolist(), conversion.extractor.mean)
"""


def test_checkpoints_on_the_hub(tmp_path):
    """In a new process, because huggingface_hub reads its endpoint when it is imported."""
    folders = [tmp_path / "hub" / "models" / "someone" / name for name in ("one", "two")]
    biases = [make(folder, seed)["classifier.dense.bias"] for seed, folder in enumerate(folders)]
    with HubStandIn(tmp_path / "hub") as hub:
        done = subprocess.run(
            [sys.executable, "-c", AVERAGE_OF_THE_HUB],
            env={**os.environ, **hub.environment(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    numbers, mean = done.stdout.rsplit(maxsplit=1)
    assert json.loads(numbers) == pytest.approx(sum(biases).div(2).tolist(), abs=1e-6)
    assert float(mean) == -5.0


def test_half_precision_is_averaged_in_float32(three, tmp_path):
    folders, _ = three
    files = []
    for folder in folders:
        weights = load_file(folder / "model.safetensors")
        files.append({name: tensor.bfloat16() for name, tensor in weights.items()})
        save_file(files[-1], folder / "model.safetensors", metadata={"format": "pt"})
    assert run(average, *folders, "--output-dir", tmp_path / "mean") == 0
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    for name, tensor in mean.items():
        assert tensor.dtype == torch.float32
        want = torch.stack([weights[name].double() for weights in files]).mean(0)
        torch.testing.assert_close(tensor.double(), want, atol=1e-6, rtol=1e-6)


def test_both_layouts_and_old_files_are_read(three, tmp_path):
    folders, models = three
    save_file(models[1], folders[1] / "model.safetensors", metadata={"format": "pt"})
    (folders[2] / "model.safetensors").unlink()
    torch.save(models[2], folders[2] / "pytorch_model.bin")
    conversion = average_checkpoints(folders)
    for name, tensor in conversion.weights.items():
        want = torch.stack([model[name] for model in models]).mean(0)
        torch.testing.assert_close(tensor, want, atol=1e-6, rtol=1e-6)


def test_other_strides_are_refitted_on_demand(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = make(one, 0), make(two, 1, time_stride=11, frequency_stride=12)
    assert first[POSITIONS].shape != second[POSITIONS].shape
    with pytest.raises(
        ConversionError, match=r"frequency_stride is 12 in .*two but 9 in .*--refit"
    ):
        average_checkpoints([one, two])
    conversion = average_checkpoints([one, two], refit_grid=True)
    assert conversion.config.patch_grid() == (3, 12) and conversion.config.time_stride == 7
    fitted = resize_position_grid(second[POSITIONS][:, 2:], (3, 8), (3, 12))
    want = (first[POSITIONS][:, 2:] + fitted) / 2
    torch.testing.assert_close(conversion.weights[POSITIONS][:, 2:], want)
    prefix = (first[POSITIONS][:, :2] + second[POSITIONS][:, :2]) / 2
    torch.testing.assert_close(conversion.weights[POSITIONS][:, :2], prefix)


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("classifier.dense.bias")
    save_file(weights, folder / "model.safetensors")


def poison(folder):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.dense.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")


OTHER_NAMES = {str(index): f"word {index}" for index in range(5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: make(f, 9, num_labels=4), "two has 4 labels but"),
        (lambda f: make(f, 9, id2label=OTHER_NAMES), "label 0 is 'word 0' in"),
        (lambda f: make(f, 9, num_hidden_layers=2), "before (missing layers.2.attention."),
        (lambda f: make(f, 9, num_hidden_layers=4), "before (unexpected layers.3.attention."),
        (
            lambda f: make(f, 9, intermediate_size=44),
            "of wrong shape: layers.0.mlp.fc1.bias is (44,) but must be (50,),",
        ),
        (lambda f: make(f, 9, num_attention_heads=2), "num_attention_heads is 2 in"),
        (lambda f: make(f, 9, layer_norm_eps=1e-6), "layer_norm_eps is 1e-06 in"),
        (lambda f: make(f, 9, max_length=98), "max_length is 98 in"),
        (lambda f: edit(f, "preprocessor_config.json", std=4.0), "std of the extractor is 4.0 in"),
        (lambda f: edit(f, "config.json", model_type="vit"), "is a 'vit' but must be an 'audio-"),
        (lambda f: (f / "config.json").unlink(), "two has no config.json; give directories or"),
        (lambda f: (f / "model.safetensors").write_text("x"), "is truncated or not a safetensors"),
        (drop_a_tensor, "two does not fit {one}: the weights differ from those averaged before "),
        (drop_a_tensor, "before (missing classifier.dense.bias); average checkpoints of one"),
        (poison, "two cannot be averaged: classifier.dense.bias holds NaN or infinity in 1 of 5"),
        (shutil.rmtree, "two; give a checkpoint file, a directory with config.json, or a Hub id"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_name(tmp_path, capsys, change, message):
    one, two = tmp_path / "one", tmp_path / "two"
    make(one, 0)
    shutil.copytree(one, two)
    change(two)
    assert run(average, one, two, "--output-dir", tmp_path / "mean") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message.format(one=one) in error
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", 1, 2], "there are 2 weights (--weights) but 3 checkpoints; give one for"),
        (["--weights", 1, -2, 3], "all must be 0 or more, and one above 0"),
        (["--weights", 0, 0, 0], "all must be 0 or more, and one above 0"),
        (["--weights", 1, "nan", 3], "all must be 0 or more, and one above 0"),
    ],
)
def test_weights_that_are_no_shares(three, tmp_path, capsys, flags, message):
    assert run(average, *three[0], "--output-dir", tmp_path / "mean", *flags) == 1
    assert message in capsys.readouterr().err


def test_one_checkpoint_is_no_mean(three, tmp_path, capsys):
    assert run(average, three[0][0], "--output-dir", tmp_path / "mean") == 1
    assert "number of checkpoints is 1 but a mean needs at least 2" in capsys.readouterr().err


def test_a_source_is_not_overwritten(three, capsys):
    folders, _ = three
    assert run(average, *folders, "--output-dir", folders[1], "--force") == 1
    assert "which would be lost" in capsys.readouterr().err
    assert ASTForAudioClassification.from_pretrained(folders[1])


def test_the_card_names_the_sources(three, tmp_path):
    folders, _ = three
    (folders[0] / "README.md").write_text("---\nlicense: mit\nbase_model: me/ast\n---\n")
    assert run(average, *folders, "--output-dir", tmp_path / "mean") == 0
    card = (tmp_path / "mean" / "README.md").read_text()
    assert "license: mit" in card and "base_model: me/ast" in card
    assert "checkpoint-1, checkpoint-2, checkpoint-3" in card and "averaged" in card


def test_a_checkpoint_is_let_go_before_the_next_is_read(three, monkeypatch):
    """Only the sum and one checkpoint are in memory, for any number of checkpoints."""
    earlier, alive = [], []

    def read(path):
        alive.append(sum(reference() is not None for reference in earlier))
        source = read_source(path)
        earlier.extend(weakref.ref(tensor) for tensor in source.weights.values())
        return source

    monkeypatch.setattr(averaging, "read_source", read)
    average_checkpoints(three[0])
    assert alive == [0, 0, 0] and len(earlier) > 3


def assert_is_mean(weights, members) -> None:
    """There is one rounding to float32 for each addend, and one for the quotient."""
    assert set(weights) == set(members[0])
    for name, value in weights.items():
        stacked = np.stack([member[name].double().numpy() for member in members])
        scale = np.abs(stacked).mean(0)
        error = np.abs(value.double().numpy() - stacked.mean(0))
        assert (error <= 2.0**-23 * (len(members) + 1) * scale).all(), name


def draw_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(30, 7, generator=generator), "b": torch.randn(9, generator=generator)}


def test_the_mean_of_weights_is_exact():
    members = [draw_weights(seed) for seed in range(5)]
    mean = WeightMean()
    for member in members:
        mean.add(member)
    assert mean.count == 5
    assert_is_mean(mean.mean(), members)


def test_shares_count_as_often():
    one, two = draw_weights(0), draw_weights(1)
    weighted, repeated = WeightMean(), WeightMean()
    weighted.add(one, share=0.25)
    weighted.add(two, share=0.75)
    weighted.add(draw_weights(2), share=0)
    for member in (one, two, two, two):
        repeated.add(member)
    assert (weighted.count, repeated.count) == (3, 4)
    for name, tensor in repeated.mean().items():
        torch.testing.assert_close(weighted.mean()[name], tensor, atol=1e-6, rtol=1e-6)


def test_half_precision_is_summed_in_float32_and_counters_are_the_last():
    mean = WeightMean()
    for i in range(300):
        mean.add({"w": torch.tensor([1.0 + i % 2]).bfloat16(), "steps": torch.tensor(i)})
    # A sum in bfloat16 would stop at 256.
    result = mean.mean()
    assert result["w"].dtype == torch.bfloat16 and result["w"].item() == 1.5
    assert result["steps"].item() == 299 and result["steps"].dtype == torch.int64
    result = mean.mean(torch.float32)
    assert result["w"].dtype == torch.float32 and result["steps"].dtype == torch.int64


@pytest.mark.parametrize("version", ["now", "0.1.0"])
def test_a_mean_is_saved_and_goes_on(tmp_path, version):
    members = [{"w": torch.randn(3, 2), "h": torch.randn(2).half(), "n": torch.tensor(3)}] * 2
    mean, share = WeightMean(), 3.0 if version == "now" else 1.0
    mean.add(members[0], share)
    mean.save(file := tmp_path / "mean.safetensors")
    if version == "0.1.0":
        with safe_open(file, "pt") as content:
            old = content.metadata()
        assert old.pop("sum_of_shares") == "1.0" and old["count"] == "1"
        save_file(load_file(file), file, metadata=old)
    loaded = WeightMean.load(file)
    for running in (mean, loaded):
        running.add(members[1])
    assert loaded.count == 2
    for name, value in mean.mean().items():
        assert torch.equal(loaded.mean()[name], value)
        assert loaded.mean()[name].dtype == members[0][name].dtype


def test_each_bad_argument_is_named():
    mean = WeightMean()
    with pytest.raises(ValueError, match="add a state dict first"):
        mean.mean()
    for share in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"share is {share}; it must be a finite number of 0"):
            mean.add({"a": torch.zeros(2)}, share)
    mean.add({"a": torch.zeros(2), "b": torch.zeros(3)}, share=0)
    with pytest.raises(ValueError, match="add a state dict first"):
        mean.mean()
    for other, difference in (
        ({"a": torch.zeros(2)}, "missing b"),
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, r"b is \(4,\) but must be \(3,\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "unexpected c"),
    ):
        with pytest.raises(ValueError, match=rf"differ from those .* \(.*{difference}\); average"):
            mean.add(other)
    for checkpoints in ([], ["one"]):
        with pytest.raises(ConversionError, match=f"is {len(checkpoints)} but a mean needs at"):
            average_checkpoints(checkpoints)
