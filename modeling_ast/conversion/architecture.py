"""A ViT's weights and config.json -> the fields of ASTConfig that describe its network.

Names of weights are ours (see key_maps.py). If shapes and config.json differ, the shapes decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration_ast import ASTConfig
from .key_maps import CLS, DISTILLATION, KERNEL, POSITIONS, ConversionError

# Published width of DeiT and ViT -> number of attention heads, which weights do not show.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
# timm and the authors trained with 1e-6; transformers' DeiT and ViT have the same weights but the
# default 1e-12. The authors' head uses 1e-5, so that their logits differ by about 1e-5.
LAYER_NORM_EPS = 1e-6
TRANSFORMERS_EPS = 1e-12


def read_architecture(
    weights: Mapping[str, Tensor],
    source_config: Mapping[str, Any],
    num_attention_heads: int | None = None,
) -> dict[str, Any]:
    """Width, depth, number of heads and the other fields of the network.

    Args:
        weights: With our names, and qkv split.
        source_config: config.json of transformers or timm, or empty.
        num_attention_heads: Needed if neither source_config nor a usual width shows it.
    Raises:
        ConversionError: The number of heads is unknown, or a tensor is missing.
    """
    width = need(weights, KERNEL, 4).shape[0]
    stated = source_config.get("num_attention_heads")
    stated = stated or (source_config.get("model_args") or {}).get("num_heads")
    heads = num_attention_heads or stated or HEADS.get(width)
    if heads is None:
        raise ConversionError(
            f"neither the weights nor config.json show how many attention heads this model of "
            f"width {width} has (known widths: {', '.join(map(str, HEADS))}); give "
            f"num_attention_heads (--num-attention-heads N)"
        )
    numbers = [re.match(r"layers\.(\d+)\.", name) for name in weights]
    eps = source_config.get("layer_norm_eps", TRANSFORMERS_EPS)
    return {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(number[1]) for number in numbers if number),
        "num_attention_heads": heads,
        "intermediate_size": need(weights, "layers.0.mlp.fc1.weight", 2).shape[0],
        "hidden_act": source_config.get("hidden_act", ASTConfig.hidden_act),
        "layer_norm_eps": LAYER_NORM_EPS if eps == TRANSFORMERS_EPS else eps,
        "qkv_bias": "layers.0.attention.q_proj.bias" in weights,
    }


def find_source_grid(
    weights: Mapping[str, Tensor],
    source_config: Mapping[str, Any],
    given: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """The grid (rows, columns) of patches that an image model's position table was learned for.

    Raises:
        ConversionError: There is no table or no CLS token, `given` does not fit the table, or
            the grid is unknown.
    """
    if CLS not in weights:
        raise ConversionError(
            "the model has no CLS token but pools its patches, which AST cannot do; choose a plain "
            "DeiT or ViT with a CLS token"
        )
    if POSITIONS not in weights:
        raise ConversionError(
            "the model has no learned positions, which AST needs; choose a plain DeiT or ViT with "
            "a position table"
        )
    prefix = 2 if DISTILLATION in weights else 1
    count = need(weights, POSITIONS, 3).shape[1] - prefix
    stated = given or _stated_grid(source_config, need(weights, KERNEL, 4))
    if stated and stated[0] * stated[1] == count:
        return stated
    side = math.isqrt(max(count, 0))
    if given or side * side != count:
        grid = "no square grid has this number"
        if given:
            grid = f"a source grid of {given[0]} x {given[1]} has another number"
        raise ConversionError(
            f"the position table has {count} patches but {grid}; give its rows and columns as "
            f"source_grid (--source-grid ROWS COLUMNS)"
        )
    return side, side


def need(weights: Mapping[str, Tensor], name: str, ndim: int) -> Tensor:
    """`weights[name]`, which has `ndim` axes.

    Raises:
        ConversionError: The tensor is missing, or has another number of axes.
    """
    if name not in weights:
        raise ConversionError(
            f"the checkpoint has no {name}, which every DeiT and ViT has; it is incomplete or of "
            f"another family, so choose another checkpoint"
        )
    if weights[name].ndim != ndim:
        raise ConversionError(
            f"{name} has shape {tuple(weights[name].shape)} but must have {ndim} axes; the model "
            f"is of another family, so choose another checkpoint"
        )
    return weights[name]


def _stated_grid(source_config: Mapping[str, Any], kernel: Tensor) -> tuple[int, int] | None:
    """The grid that a config.json of transformers or timm states, if it does."""
    timm_input = (source_config.get("pretrained_cfg") or {}).get("input_size") or ()
    size = source_config.get("image_size")
    size = size or (source_config.get("model_args") or {}).get("img_size") or timm_input[1:]
    match size:
        case int():
            return size // kernel.shape[2], size // kernel.shape[3]
        case [int(height), int(width)]:
            return height // kernel.shape[2], width // kernel.shape[3]
    return None


__all__ = ["find_source_grid", "need", "read_architecture"]
