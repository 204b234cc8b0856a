"""average_checkpoints: judged by means that are worked out on transformers' own AST models."""

import json
import shutil
import weakref

import average_checkpoints
import pytest
import torch
import transformers
from checkpoint_files import read_source
from key_maps import ConversionError
from safetensors.torch import load_file, save_file

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.position_ast import resize_position_grid
from tests.conftest import TINY, randomise
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
    assert run(average_checkpoints, *folders, "--output", tmp_path / "mean", *flags) == 0
    shares = [weight / 8 for weight in weights] if weights else [1 / 3] * 3
    # Loaded by plain transformers, too.
    mean = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "mean").state_dict()
    assert mean.keys() == models[0].keys()
    for name, tensor in mean.items():
        stack = torch.stack([model[name].double() * s for model, s in zip(models, shares)])
        torch.testing.assert_close(tensor.double(), stack.sum(0), atol=1e-6, rtol=1e-6)
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "mean")
    assert (extractor.mean, extractor.std, extractor.max_length) == (-5.0, 3.0, 97)


def test_half_precision_is_averaged_in_float32(three, tmp_path):
    folders, _ = three
    files = []
    for folder in folders:
        weights = load_file(folder / "model.safetensors")
        files.append({name: tensor.bfloat16() for name, tensor in weights.items()})
        save_file(files[-1], folder / "model.safetensors", metadata={"format": "pt"})
    assert run(average_checkpoints, *folders, "--output", tmp_path / "mean") == 0
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
    conversion = average_checkpoints.convert(folders)
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
        average_checkpoints.convert([one, two])
    conversion = average_checkpoints.convert([one, two], refit_grid=True)
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
        (lambda f: make(f, 9, num_hidden_layers=2), "checkpoint 2 has no layers.2."),
        (lambda f: make(f, 9, num_hidden_layers=4), "checkpoint 2 has an unknown layers.3."),
        (
            lambda f: make(f, 9, intermediate_size=44),
            "layers.0.mlp.fc1.bias is (44,) in checkpoint",
        ),
        (lambda f: make(f, 9, num_attention_heads=2), "num_attention_heads is 2 in"),
        (lambda f: make(f, 9, layer_norm_eps=1e-6), "layer_norm_eps is 1e-06 in"),
        (lambda f: make(f, 9, max_length=98), "max_length is 98 in"),
        (lambda f: edit(f, "preprocessor_config.json", std=4.0), "std of the extractor is 4.0 in"),
        (lambda f: edit(f, "config.json", model_type="vit"), "is a 'vit' but must be an 'audio-"),
        (lambda f: (f / "config.json").unlink(), "two has no config.json; give directories"),
        (lambda f: (f / "model.safetensors").write_text("x"), "is truncated or no safetensors"),
        (drop_a_tensor, "checkpoint 2 has no classifier.dense.bias"),
        (poison, "classifier.dense.bias holds NaN or infinity in 1 of 5"),
        (shutil.rmtree, "two has no config.json; give directories"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_name(tmp_path, capsys, change, message):
    one, two = tmp_path / "one", tmp_path / "two"
    make(one, 0)
    shutil.copytree(one, two)
    change(two)
    assert run(average_checkpoints, one, two, "--output", tmp_path / "mean") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", 1, 2], "--weights has 2 numbers but there are 3 checkpoints"),
        (["--weights", 1, -2, 3], "all must be 0 or more, and one above 0"),
        (["--weights", 0, 0, 0], "all must be 0 or more, and one above 0"),
        (["--weights", 1, "nan", 3], "all must be 0 or more, and one above 0"),
    ],
)
def test_weights_that_are_no_shares(three, tmp_path, capsys, flags, message):
    assert run(average_checkpoints, *three[0], "--output", tmp_path / "mean", *flags) == 1
    assert message in capsys.readouterr().err


def test_one_checkpoint_is_no_mean(three, tmp_path, capsys):
    assert run(average_checkpoints, three[0][0], "--output", tmp_path / "mean") == 1
    assert "there is 1 checkpoint, " in capsys.readouterr().err


def test_a_source_is_not_overwritten(three, capsys):
    folders, _ = three
    assert run(average_checkpoints, *folders, "--output", folders[1], "--force") == 1
    assert "which would be lost" in capsys.readouterr().err
    assert ASTForAudioClassification.from_pretrained(folders[1])


def test_the_card_names_the_sources(three, tmp_path):
    folders, _ = three
    (folders[0] / "README.md").write_text("---\nlicense: mit\nbase_model: me/ast\n---\n")
    assert run(average_checkpoints, *folders, "--output", tmp_path / "mean") == 0
    card = (tmp_path / "mean" / "README.md").read_text()
    assert "license: mit" in card and "base_model: me/ast" in card
    assert "checkpoint-1, checkpoint-2, checkpoint-3" in card and "averaged" in card


def test_a_checkpoint_is_let_go_before_the_next_is_read(three, monkeypatch):
    """Memory holds the sum and one checkpoint, however many there are."""
    earlier, alive = [], []

    def read(path):
        alive.append(sum(reference() is not None for reference in earlier))
        source = read_source(path)
        earlier.extend(weakref.ref(tensor) for tensor in source.weights.values())
        return source

    monkeypatch.setattr(average_checkpoints, "read_source", read)
    average_checkpoints.convert(three[0])
    # Once for the shapes, then once each.
    assert alive == [0, 0, 0, 0] and len(earlier) > 4
