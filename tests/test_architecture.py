"""architecture.py: the fields read from weights and config.json, against timm's models."""

import pytest
import timm
import torch

from modeling_ast.conversion.architecture import find_source_grid, need, read_architecture
from modeling_ast.conversion.key_maps import ConversionError, rename
from tests.made_up_checkpoints import make_timm


def shapes_of(name, **changes):
    """The weights of a model of full size without values (on "meta"), and the model."""
    with torch.device("meta"):
        model = timm.create_model(name, **changes)
    return rename(model.state_dict()).weights, model


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("deit_tiny_patch16_224", 14),
        ("deit_tiny_distilled_patch16_224", 14),
        ("deit_small_distilled_patch16_224", 14),
        ("deit_base_patch16_384", 24),
        ("deit_base_distilled_patch16_384", 24),
        ("vit_small_patch32_384", 12),
        ("vit_base_patch8_224", 28),
        ("vit_large_patch16_384", 24),
        ("vit_huge_patch14_224", 16),
    ],
)
def test_sizes_are_read_from_the_weights(name, grid):
    weights, model = shapes_of(name)
    assert read_architecture(weights, {}) == {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "intermediate_size": model.blocks[0].mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm.eps,
        "qkv_bias": True,
    }
    assert find_source_grid(weights, {}) == (grid, grid) == model.patch_embed.grid_size


def test_a_model_without_qkv_bias():
    weights, _ = shapes_of("vit_tiny_patch16_224", qkv_bias=False)
    assert read_architecture(weights, {})["qkv_bias"] is False


def test_heads_of_an_unusual_model_are_asked_for():
    weights, _ = shapes_of("vit_tiny_patch16_224", embed_dim=160, num_heads=5)
    with pytest.raises(ConversionError, match=r"model of width 160 .*--num-attention-heads N\)"):
        read_architecture(weights, {})
    for config, given in (
        ({}, 5),
        ({"num_attention_heads": 5}, None),
        ({"model_args": {"num_heads": 5}}, None),
    ):
        assert read_architecture(weights, config, given)["num_attention_heads"] == 5


@pytest.mark.parametrize(("stated", "written"), [(1e-12, 1e-6), (1e-6, 1e-6), (1e-5, 1e-5)])
def test_epsilon_is_the_one_of_the_training(stated, written):
    weights, _ = shapes_of("vit_tiny_patch16_224")
    assert read_architecture(weights, {"layer_norm_eps": stated})["layer_norm_eps"] == written


@pytest.mark.parametrize(
    "config",
    [
        {"image_size": [64, 96]},
        {"model_args": {"img_size": [64, 96]}},
        {"pretrained_cfg": {"input_size": [3, 64, 96]}},
    ],
)
def test_an_oblong_grid_is_told_by_the_config(config):
    weights, _ = shapes_of("deit_tiny_distilled_patch16_224", img_size=(64, 96))
    assert find_source_grid(weights, config) == (4, 6)
    assert find_source_grid(weights, {}, (4, 6)) == (4, 6)


def test_a_config_of_another_size_is_not_believed():
    """Checkpoints for images of 384 pixels often keep the config for 224."""
    weights, _ = shapes_of("deit_base_distilled_patch16_384")
    for config in ({"image_size": 224}, {"image_size": {"height": 384}}, {"image_size": None}):
        assert find_source_grid(weights, config) == (24, 24)


def test_need():
    weights = make_timm().state_dict()
    assert need(weights, "norm.weight", 1) is weights["norm.weight"]
    with pytest.raises(ConversionError, match="has no norm_scale, which every DeiT and ViT has"):
        need(weights, "norm_scale", 1)
    with pytest.raises(ConversionError, match=r"norm.weight has shape \(192,\) but must have 2"):
        need(weights, "norm.weight", 2)
