"""Turns a DeiT or ViT trained on images into an AST for sounds: state dict in, state dict out.

The patch kernel gets one channel, the position grid is cut or interpolated, and the head is new.
Follows Gong et al. 2021, section 2.2, and the authors' src/models/ast_models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from ..configuration_ast import ASTConfig
from ..labels import NUM_AUDIOSET_LABELS
from ..position import resize_position_grid
from .architecture import find_source_grid, need, read_architecture
from .key_maps import (
    CLS,
    DISTILLATION,
    KERNEL,
    POSITIONS,
    ConversionError,
    Renamed,
    Weights,
    check_finite,
    refuse_other_families,
    rename,
    unwrap,
)
from .label_names import describe_labels
from .result import Conversion, build_config, complete

logger = logging.get_logger(__name__)

# The paper's stride: patches of 16 overlap by 6.
STRIDE = 10


def convert_deit(
    weights: Mapping[str, Tensor] | Renamed,
    config: ASTConfig | None = None,
    *,
    source_config: Mapping[str, Any] | None = None,
    source_grid: tuple[int, int] | None = None,
    channel_reduction: str = "mean",
) -> Weights:
    """Turns the state dict of a DeiT or ViT into that of an AST.

        weights = timm.create_model("deit_base_distilled_patch16_384", pretrained=True).state_dict()
        config = deit_config(weights, max_length=512, labels=50)
        model = ASTForAudioClassification(config)
        model.load_state_dict(convert_deit(weights, config))

    Args:
        weights: The weights of timm, facebookresearch or transformers, with any head, as
            `torch.load` or `read_weights` returns them; or the result of `rename_deit`.
        config: The config of the AST; by default `deit_config(weights, source_config)`. Make it
            with `deit_config`, because weights do not show the number of heads and the epsilon.
        source_config: The model's config.json, if it has one.
        source_grid: (rows, columns) of the source's patches, if the grid is not square.
        channel_reduction: "mean" or "sum" of the colours' kernels.
    Returns:
        The state dict of `ASTForAudioClassification(config)`, in float32; tensors that did not
        change share the memory of `weights`. The head has new weights, which are always the same.
    Raises:
        ConversionError: The model is not a plain ViT, is incomplete, or does not fit `config`.
    Source: Gong et al. 2021, section 2.2; channels and positions as in the authors'
        src/models/ast_models.py.
    """
    conversion = deit_conversion(
        weights,
        config,
        source_config=source_config,
        source_grid=source_grid,
        channel_reduction=channel_reduction,
    )
    return conversion.weights


def deit_config(
    weights: Mapping[str, Tensor] | Renamed,
    source_config: Mapping[str, Any] | None = None,
    *,
    patch_size: tuple[int, int] | None = None,
    max_length: int = ASTConfig.max_length,
    num_mel_bins: int = ASTConfig.num_mel_bins,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    labels: int | Mapping[int, str] = NUM_AUDIOSET_LABELS,
    num_attention_heads: int | None = None,
) -> ASTConfig:
    """The config of the AST that a DeiT or ViT becomes.

    Args:
        weights, source_config: See `convert_deit`.
        patch_size: (frequency, time); by default the source's. For another size the kernel is
            resampled.
        max_length, num_mel_bins: Number of frames and of mel bins of the input.
        frequency_stride, time_stride: By default 10, or the size of the patch if that is smaller.
        labels: The number of labels, or index -> name.
        num_attention_heads: Needed for a width that no published DeiT or ViT has.
    Raises:
        ConversionError: The model is not a plain ViT, is incomplete, or the numbers do not fit.
    """
    source_config = source_config or {}
    ours = rename_deit(weights, source_config).weights
    patch = patch_size or tuple(need(ours, KERNEL, 4).shape[2:])
    return build_config(
        **read_architecture(ours, source_config, num_attention_heads),
        **describe_labels(labels),
        patch_size=patch,
        max_length=max_length,
        num_mel_bins=num_mel_bins,
        frequency_stride=min(STRIDE, patch[0]) if frequency_stride is None else frequency_stride,
        time_stride=min(STRIDE, patch[1]) if time_stride is None else time_stride,
    )


def deit_conversion(
    weights: Mapping[str, Tensor] | Renamed,
    config: ASTConfig | None = None,
    *,
    source_config: Mapping[str, Any] | None = None,
    source_grid: tuple[int, int] | None = None,
    channel_reduction: str = "mean",
) -> Conversion:
    """As `convert_deit`, with everything that the table, the picture and the card show.

    Args:
        weights, config, source_config, source_grid, channel_reduction: See `convert_deit`.
    Raises:
        ConversionError: See `convert_deit`.
    """
    source_config = source_config or {}
    source = rename_deit(weights, source_config)
    before = source.weights
    check_finite(before)
    old_grid = find_source_grid(before, source_config, source_grid)
    config = config or deit_config(source, source_config)
    patch = config.patch_shape

    kernel = need(before, KERNEL, 4).float()  # (D, channels, P, P)
    kernel = resample_kernel(reduce_channels(kernel, channel_reduction), patch)  # (D, 1, *patch)
    after = {name: tensor.float() for name, tensor in before.items()}
    after = add_distillation_token(after)
    positions = fit_positions(after[POSITIONS], old_grid, config.patch_grid())  # (1, 2 + N, D)
    after |= {KERNEL: kernel, POSITIONS: positions, **fresh_head(config)}
    return complete(config, before, after, source.dropped, old_grid)


def rename_deit(
    weights: Mapping[str, Tensor] | Renamed, source_config: Mapping[str, Any] | None = None
) -> Renamed:
    """A DeiT or ViT under our names, with qkv split: the first step of the functions above.

    They accept its result instead of `weights`, so that several of them can share this step.

    Raises:
        ConversionError: The model is not a plain ViT, or has an unknown parameter.
    """
    if isinstance(weights, Renamed):
        return weights
    weights = unwrap(weights)
    refuse_ast(weights, source_config or {})
    refuse_other_families(weights)
    return rename(weights)


def refuse_ast(weights: Mapping[str, Tensor], source_config: Mapping[str, Any]) -> None:
    """Refuses a model that is an AST already.

    Raises:
        ConversionError: The model is an AST.
    """
    if any(name.endswith("mlp_head.1.weight") for name in weights):
        raise ConversionError(
            "this is an AST of the authors, not a DeiT; convert it with convert_original "
            "(modeling-ast convert-original)"
        )
    if (
        source_config.get("model_type") == ASTConfig.model_type
        or "classifier.dense.weight" in weights
    ):
        raise ConversionError(
            "this is an AST already; change its size with ASTForAudioClassification."
            "from_pretrained(path, max_length=..., time_stride=...)"
        )


def add_distillation_token(weights: Weights) -> Weights:
    """Gives a model without a distillation token a copy of the CLS token and of its position.

    The result has the two prefix tokens that every AST has.
    """
    if DISTILLATION in weights:
        return weights
    logger.warning(
        "the model has no distillation token: it gets a copy of the CLS token and of its position"
    )
    positions = weights[POSITIONS]  # (1, 1 + N, D)
    doubled = torch.cat((positions[:, :1], positions), dim=1)  # (1, 2 + N, D)
    return {**weights, DISTILLATION: weights[CLS].clone(), POSITIONS: doubled}


def reduce_channels(kernel: Tensor, how: str) -> Tensor:
    """(D, channels, P, P) -> (D, 1, P, P).

    The paper averages the colours' kernels. The authors' released code sums them, which is the same
    as feeding the spectrogram to all three colours.
    """
    if how not in ("mean", "sum"):
        raise ConversionError(f"channel_reduction is {how!r}; it must be mean or sum")
    return kernel.mean(1, keepdim=True) if how == "mean" else kernel.sum(1, keepdim=True)


def resample_kernel(kernel: Tensor, patch: tuple[int, int]) -> Tensor:
    """Fits a patch kernel to another patch, so that a resized picture gives the same embeddings.

    Let B be the matrix that resizes a patch bilinearly and w the old kernel. The new kernel is
    pinv(B^T) w: exact if the patch grows, a least-squares fit if it shrinks.

    Args:
        kernel: (D, 1, P, P).
        patch: (frequency, time).
    Returns:
        (D, 1, *patch).
    Source: Beyer et al. 2023, "FlexiViT: One Model for All Patch Sizes", section 3.4.
    """
    old = tuple(kernel.shape[2:])
    if old == tuple(patch):
        return kernel
    # In float64, because the pseudo-inverse of a shrinking matrix amplifies rounding errors.
    pixels = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    resize = F.interpolate(pixels, patch, mode="bilinear", align_corners=False).flatten(1)  # B^T
    kernel64 = kernel.double().flatten(2)  # (D, 1, P * P)
    new = kernel64 @ torch.linalg.pinv(resize).T  # (D, 1, F * T)
    return new.unflatten(2, patch).to(kernel.dtype)


def fit_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Fits a table (1, 2 + N, D) to another grid; the prefix tokens keep their positions."""
    patches = resize_position_grid(table[:, 2:], old, new)
    return torch.cat((table[:, :2], patches), dim=1)


def fresh_head(config: ASTConfig) -> Weights:
    """A new classifier, drawn as the model itself does, but with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    size = (config.num_labels, config.hidden_size)
    dense = torch.empty(size).normal_(std=config.initializer_range, generator=generator)
    return {
        "classifier.layernorm.weight": torch.ones(config.hidden_size),
        "classifier.layernorm.bias": torch.zeros(config.hidden_size),
        "classifier.dense.weight": dense,
        "classifier.dense.bias": torch.zeros(config.num_labels),
    }


__all__ = [
    "add_distillation_token",
    "convert_deit",
    "deit_config",
    "deit_conversion",
    "fit_positions",
    "fresh_head",
    "reduce_channels",
    "refuse_ast",
    "rename_deit",
    "resample_kernel",
]
