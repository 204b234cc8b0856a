"""original.py, against the paper's equations, written out below with the authors' names."""

import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import convert_original as command
from modeling_ast.conversion import (
    ConversionError,
    convert_original,
    fetch_original_labels,
    original,
    original_config,
    original_conversion,
    rename_original,
)
from tests.made_up_checkpoints import TOLERANCE, make_authors, make_timm, run

# Stride -> number of patches of the released AudioSet models, for 1024 frames and 128 mels.
RELEASED = {10: 1212, 12: 850, 14: 657, 16: 512}


def layer_norm(x, weight, bias, eps):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def paper_logits(weights, frames, stride):
    """Gong et al. 2021, section 2.1; the epsilons are those of timm (1e-6) and of torch (1e-5)."""
    w = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    width, heads = w["v.cls_token"].shape[-1], w["v.cls_token"].shape[-1] // 64
    image = frames.transpose(1, 2)  # (B, F, T)
    patches = image.unfold(1, 16, stride).unfold(2, 16, stride)  # (B, Gf, Gt, 16, 16)
    x = torch.einsum("bftij,dij->bftd", patches, w["v.patch_embed.proj.weight"][:, 0])
    x = (x + w["v.patch_embed.proj.bias"]).reshape(len(frames), -1, width)
    cls, dist = (w[f"v.{name}_token"].expand(len(frames), -1, -1) for name in ("cls", "dist"))
    x = torch.cat((cls, dist, x), 1) + w["v.pos_embed"]
    depth = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("v.blocks."))
    for layer in range(depth):
        b = {
            name.removeprefix(f"v.blocks.{layer}."): tensor
            for name, tensor in w.items()
            if name.startswith(f"v.blocks.{layer}.")
        }
        y = layer_norm(x, b["norm1.weight"], b["norm1.bias"], 1e-6)
        qkv = y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        q, k, v = qkv.reshape(*y.shape[:2], 3, heads, 64).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-1, -2)) / 64**0.5).softmax(-1) @ v  # (B, H, N, 64)
        y = y.transpose(1, 2).reshape(*x.shape)
        x = x + y @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        y = layer_norm(x, b["norm2.weight"], b["norm2.bias"], 1e-6)
        y = y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = x + y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x = layer_norm(x, w["v.norm.weight"], w["v.norm.bias"], 1e-6)
    x = (x[:, 0] + x[:, 1]) / 2
    x = layer_norm(x, w["mlp_head.0.weight"], w["mlp_head.0.bias"], 1e-5)
    return x @ w["mlp_head.1.weight"].T + w["mlp_head.1.bias"]


def convert(weights, **fields):
    """Converts as the command does."""
    renamed = rename_original(weights)
    return original_conversion(renamed, original_config(renamed, **fields))


def clip(frames):
    return torch.randn(2, frames, 128, generator=torch.Generator().manual_seed(5)) * 0.5


@pytest.mark.parametrize(("stride", "patches"), RELEASED.items())
def test_released_audioset_models(stride, patches):
    weights = make_authors(patches, labels=527, depth=1)
    conversion = convert(weights)
    config = conversion.config
    assert (config.frequency_stride, config.time_stride, config.max_length) == (
        stride,
        stride,
        1024,
    )
    assert (config.mean, config.std) == (-4.2677393, 4.5689974)
    assert config.problem_type == "multi_label_classification"
    with torch.no_grad():
        got = conversion.build_model()(clip(1024)).logits
    torch.testing.assert_close(got, paper_logits(weights, clip(1024), stride), **TOLERANCE)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_the_released_speech_commands_model(prefix):
    weights = make_authors(144, labels=35, depth=3, prefix=prefix)
    conversion = convert(weights)
    config = conversion.config
    assert (config.frequency_stride, config.time_stride, config.max_length) == (10, 10, 128)
    assert (config.mean, config.std) == (-6.845978, 5.5654526)
    assert config.problem_type is None
    with torch.no_grad():
        got = conversion.build_model()(clip(128)).logits
    torch.testing.assert_close(got, paper_logits(weights, clip(128), 10), **TOLERANCE)


def test_own_models_need_their_numbers():
    weights = make_authors(144, labels=10)
    with pytest.raises(ConversionError) as error:
        convert(weights)
    assert "144 patches, which fit strides 10 10 with 126-135 frames; strides 14 14 with" in str(
        error.value
    )
    with pytest.raises(ConversionError, match="no data set of the paper has 10 labels"):
        convert(weights, max_length=290)
    with pytest.raises(ConversionError, match=r"mean is 1\.0 and std is None; give both mean and"):
        convert(weights, max_length=290, mean=1.0)
    config = convert(weights, max_length=290, mean=1.0, std=2.0).config
    assert (config.frequency_stride, config.time_stride, config.max_length) == (16, 16, 290)
    assert (config.mean, config.std) == (1.0, 2.0)


def test_unequal_strides_are_said_by_flag():
    """12 rows with stride 10, and 8 columns with stride 16."""
    weights = make_authors(12 * 8, labels=10)
    known = {"frequency_stride": 10, "time_stride": 16, "mean": 0.0, "std": 1.0}
    config = convert(weights, max_length=128, **known).config
    assert config.patch_grid() == (12, 8)
    with pytest.raises(ConversionError, match=r"fit no usual stride; give .*\(--frequency-stride"):
        convert(weights, max_length=150, **known)
    with pytest.raises(ConversionError, match="97 patches, which fit no usual stride"):
        convert(make_authors(97, labels=10), mean=0.0, std=1.0)


def test_a_standard_length_is_found_without_a_known_head():
    """657 patches fit only one stride and one of the authors' lengths."""
    config = convert(make_authors(657, labels=10), mean=0.0, std=1.0).config
    assert (config.frequency_stride, config.time_stride, config.max_length) == (14, 14, 1024)


def test_labels_are_carried_and_counted():
    names = {0: "dog", 1: "cat", 2: "owl"}
    known = {"max_length": 128, "mean": 0.0, "std": 1.0}
    assert convert(make_authors(144), labels=names, **known).config.id2label == names
    with pytest.raises(ConversionError, match="are 3 label names but the checkpoint's head has 4"):
        convert(make_authors(144, labels=4), labels=names, **known)


def test_other_models_are_refused():
    with pytest.raises(
        ConversionError, match=r"no mlp_head\.1\.weight, so it is not an AST of the"
    ):
        convert(make_timm().state_dict())


@pytest.fixture
def speech_commands(tmp_path):
    path = tmp_path / "speechcommands_10_10_0.9812.pth"
    torch.save(make_authors(144, labels=35), path)
    return path


def test_round_trip_through_plain_transformers(speech_commands, tmp_path):
    """Authors -> ours (a directory in the Hub's layout) -> transformers -> ours, bit-equal."""
    assert run(command, speech_commands, tmp_path / "ours") == 0
    theirs, info = transformers.ASTForAudioClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ASTForAudioClassification.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "again")
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert first.keys() == last.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, last[name]), name
    original = torch.load(speech_commands)["module.mlp_head.1.weight"]
    assert torch.equal(ours.classifier.dense.weight, original)


def test_the_directory_has_statistics_and_names(speech_commands, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "index,mid,display_name\n" + "\n".join(f"{i},/m/x{i},word {i}" for i in range(35))
    )
    target = tmp_path / "ast"
    assert run(command, speech_commands, target, "--label-csv", labels) == 0
    extractor = ASTFeatureExtractor.from_pretrained(target)
    assert (extractor.mean, extractor.std, extractor.max_length) == (-6.845978, 5.5654526, 128)
    assert ASTForAudioClassification.from_pretrained(target).config.id2label[34] == "word 34"
    assert "license: bsd-3-clause" in (target / "README.md").read_text()


def test_names_come_from_the_hub_or_a_warning_says_that_they_do_not(monkeypatch, caplog):
    weights = make_authors(144, labels=35)
    with caplog.at_level(logging.WARNING):
        assert fetch_original_labels(weights) is None
    assert "speech-commands-v2-id2label.json cannot be fetched from the Hub" in caplog.text
    assert (
        "the labels are named LABEL_0, LABEL_1, ...; give their names as --label-csv" in caplog.text
    )
    asked = []
    monkeypatch.setattr(original, "fetch_label_names", lambda name: asked.append(name) or {})
    assert fetch_original_labels(weights) == {}
    assert asked == ["speech-commands-v2-id2label.json"]
    assert fetch_original_labels(make_authors(labels=7)) is None


def test_the_command_takes_the_hub_s_names(speech_commands, tmp_path, monkeypatch):
    names = {index: f"word {index}" for index in range(35)}
    monkeypatch.setattr(original, "fetch_label_names", lambda name: names)
    assert run(command, speech_commands, tmp_path / "ast") == 0
    assert ASTForAudioClassification.from_pretrained(tmp_path / "ast").config.id2label == names


def test_state_dict_in_state_dict_out():
    weights = make_authors(144, labels=35)
    config = original_config(weights)
    ours = convert_original(weights, config)
    model = ASTForAudioClassification(config).eval()
    model.load_state_dict(ours, strict=True)
    with torch.no_grad():
        got = model(clip(128)).logits
    torch.testing.assert_close(got, paper_logits(weights, clip(128), 10), **TOLERANCE)
    assert all(
        torch.equal(ours[name], tensor) for name, tensor in convert_original(weights).items()
    )


def test_an_unusual_width_needs_its_number_of_heads(tmp_path, capsys):
    """128 wide, which no published DeiT is."""
    path, weights = tmp_path / "narrow.pth", make_authors(144, labels=35, width=128)
    torch.save(weights, path)
    assert run(command, path, tmp_path / "ast") == 1
    error = capsys.readouterr().err
    assert "how many attention heads this model of width 128 has (known widths: 192, " in error
    assert "give num_attention_heads (--num-attention-heads N)" in error
    assert "give num_attention_heads (--num-attention-heads N)" in error
    assert run(command, path, tmp_path / "ast", "--num-attention-heads", 2) == 0
    model = ASTForAudioClassification.from_pretrained(tmp_path / "ast")
    with torch.no_grad():
        got = model(clip(128)).logits
    torch.testing.assert_close(got, paper_logits(weights, clip(128), 10), **TOLERANCE)


@pytest.mark.parametrize("name", ["frequency_stride", "time_stride", "max_length"])
def test_impossible_numbers_are_refused_and_not_taken_for_none(name):
    with pytest.raises(ConversionError, match=f"{name} is 0; it must be 1 or more"):
        convert(make_authors(144, labels=35), **{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("module.v.blocks.1.norm2.bias"), "missing audio_spectrogram_transformer."),
        (lambda w: w.pop("module.v.pos_embed"), "has no embeddings.position_embeddings, which"),
        (lambda w: w.pop("module.mlp_head.1.weight"), "so it is not an AST of the authors"),
        (lambda w: w["module.mlp_head.1.bias"].fill_(float("inf")), "NaN or infinity in 35 of 35"),
        (
            lambda w: w.update({"module.v.extra": torch.zeros(1)}),
            "the parameter v.extra, which AST does not have",
        ),
    ],
)
def test_bad_input_is_one_line(speech_commands, tmp_path, capsys, change, message):
    weights = torch.load(speech_commands)
    change(weights)
    torch.save(weights, speech_commands)
    assert run(command, speech_commands, tmp_path / "ast") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert [path.name for path in tmp_path.iterdir()] == [speech_commands.name]
