"""key_maps.py: names against transformers' modules and files, steps on made-up tensors."""

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DeiTForImageClassificationWithTeacher, DeiTModel, ViTModel

from modeling_ast.conversion import key_maps
from modeling_ast.conversion.key_maps import ConversionError
from tests.made_up_checkpoints import make_authors, make_timm, make_transformers


def renamed(weights):
    return key_maps.rename(key_maps.unwrap(weights))


@pytest.mark.parametrize(
    ("name", "cls"),
    [("deit_tiny_distilled_patch16_224", DeiTModel), ("vit_tiny_patch16_224", ViTModel)],
)
def test_timms_names_become_those_of_transformers_modules(name, cls):
    ours, dropped = renamed(make_timm(name).state_dict())
    theirs = make_transformers(cls, add_pooling_layer=False).state_dict()
    shapes = {name: tensor.shape for name, tensor in theirs.items() if "pooler" not in name}
    assert {name: tensor.shape for name, tensor in ours.items()} == shapes
    assert {name.split(".")[0] for name in dropped} <= {"head", "head_dist"}


def test_both_layouts_of_transformers_become_the_same(tmp_path):
    model = make_transformers(DeiTForImageClassificationWithTeacher)
    model.save_pretrained(tmp_path)
    file, dropped = renamed(load_file(tmp_path / "model.safetensors"))
    modules, _ = renamed(model.state_dict())
    assert set(dropped) == {
        f"{head}_classifier.{kind}"
        for head in ("cls", "distillation")
        for kind in ("weight", "bias")
    }
    assert file.keys() == modules.keys() == model.base_model.state_dict().keys()
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(file[name], tensor) and torch.equal(modules[name], tensor), name


def test_the_authors_names_become_ours_with_their_head():
    weights = make_authors()
    ours, dropped = key_maps.rename(key_maps.unwrap(weights), key_maps.AUTHORS_HEAD)
    assert torch.equal(ours["classifier.dense.weight"], weights["module.mlp_head.1.weight"])
    assert torch.equal(ours["classifier.layernorm.bias"], weights["module.mlp_head.0.bias"])
    assert set(dropped) == {
        f"v.{head}.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")
    }


def test_qkv_is_split_in_this_order():
    fused = torch.arange(12.0).view(6, 2)
    split = key_maps.split_qkv({"layers.0.attention.qkv.weight": fused, "x": fused})
    assert split["x"] is fused
    for letter, rows in zip("qkv", ([0, 1], [2, 3], [4, 5])):
        assert torch.equal(split[f"layers.0.attention.{letter}_proj.weight"], fused[rows])


def test_parts_of_qkv_can_be_saved_side_by_side(tmp_path):
    split = key_maps.split_qkv({"layers.0.attention.qkv.bias": torch.arange(6.0)})
    save_file(split, tmp_path / "split.safetensors")
    assert load_file(tmp_path / "split.safetensors").keys() == split.keys()


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"state_dict": w}])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_unwrap(wrap, prefix):
    weights = {"cls_token": torch.zeros(1), "norm.weight": torch.ones(2)}
    got = key_maps.unwrap(wrap({prefix + name: tensor for name, tensor in weights.items()}))
    assert got.keys() == weights.keys()


@pytest.mark.parametrize(
    ("checkpoint", "what"),
    [
        ([torch.zeros(1)], "a list"),
        (torch.zeros(1), "a Tensor"),
        ({}, "a dict with nothing in it"),
        ({"epoch": 3, "best": 0.1, "a": 1, "b": 2}, "a dict with epoch, best, a and 1 more"),
    ],
)
def test_unwrap_refuses_what_is_no_state_dict(checkpoint, what):
    with pytest.raises(ConversionError, match="must hold a state dict") as error:
        key_maps.unwrap(checkpoint)
    assert f"it holds {what} but" in str(error.value)


@pytest.mark.parametrize(
    ("cls", "part"),
    [
        ("Dinov2", "LayerScale (encoder.layer.0.layer_scale1.lambda1)"),
        ("Dinov2WithRegisters", "register tokens (embeddings.register_tokens)"),
        ("Data2VecVision", "relative positions"),
        ("Beit", "LayerScale"),
    ],
)
def test_other_families_of_transformers_are_refused_by_name(cls, part, tmp_path):
    config = getattr(transformers, f"{cls}Config")(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        use_relative_position_bias=True,
    )
    getattr(transformers, f"{cls}Model")(config).save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="which AST does not have") as error:
        key_maps.refuse_other_families(load_file(tmp_path / "model.safetensors"))
    assert part in str(error.value)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
def test_plain_models_are_not_refused(name):
    key_maps.refuse_other_families(timm.create_model(name, depth=1).state_dict())
    key_maps.refuse_other_families(make_transformers(ViTModel).state_dict())
    key_maps.refuse_other_families(make_authors())


def test_unknown_names_are_refused():
    weights = make_timm().state_dict()
    with pytest.raises(
        ConversionError, match=r"the parameter blocks\.0\.extra, which AST does not"
    ):
        key_maps.rename({**weights, "blocks.0.extra": torch.zeros(1)})
    with pytest.raises(
        ConversionError, match=r"two parameters, one of them vit\.norm\.weight, would become"
    ):
        key_maps.rename({**weights, "vit.norm.weight": torch.zeros(1)})
    with pytest.raises(ConversionError, match=r"\(conv1\.weight\) have no known layout"):
        key_maps.rename({"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor([1.0, float("nan"), float("nan")]), "x holds NaN or infinity in 2 of 3"),
        (torch.tensor([1.0, float("-inf")]), "x holds NaN or infinity in 1 of 2"),
        (torch.tensor([1, 2], dtype=torch.int8), "x holds torch.int8 values but must hold"),
        (torch.ones(2).to(torch.float8_e5m2), "x holds torch.float8_e5m2 values but must hold"),
    ],
)
def test_broken_numbers_are_refused(tensor, message):
    with pytest.raises(ConversionError, match=message):
        key_maps.check_finite({"fine": torch.ones(1), "x": tensor})


def test_load_exactly():
    model, weights = nn.Linear(2, 3), {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    key_maps.load_exactly(model, weights)
    assert model.weight.data_ptr() == weights["weight"].data_ptr()
    for changed, message in (
        ({"weight": torch.ones(3, 2)}, "does not fit AST: missing bias"),
        ({**weights, "scale": torch.ones(1)}, "does not fit AST: unexpected scale"),
        ({**weights, "bias": torch.ones(4)}, r"of wrong shape: bias is \(4,\) but must be \(3,\)"),
    ):
        with pytest.raises(ConversionError, match=message):
            key_maps.load_exactly(model, changed)


WORDS = st.sampled_from(
    ["module", "v", "blocks", "0", "attn", "qkv", "weight", "cls_token", "layers", "head", "#", "*"]
)
NAMES = st.one_of(st.lists(WORDS, max_size=5).map(".".join), st.text(max_size=8))
ANY_VALUE = st.one_of(
    st.none(), st.integers(), st.text(max_size=3), st.builds(torch.zeros, st.integers(0, 4))
)


@settings(deadline=None)
@given(st.one_of(ANY_VALUE, st.dictionaries(st.one_of(NAMES, st.integers()), ANY_VALUE)))
def test_any_content_of_a_file_is_renamed_or_refused_as_documented(content):
    try:
        weights = key_maps.unwrap(content)
        key_maps.refuse_other_families(weights)
        ours, dropped = key_maps.rename(weights)
    except ConversionError as error:
        assert str(error)
    else:
        assert len(ours) + len(dropped) >= len(weights)
