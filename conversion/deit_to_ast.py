"""Converts a DeiT or ViT trained on pictures into an AST for sounds.

    python conversion/deit_to_ast.py facebook/deit-base-distilled-patch16-384 my-ast

The patch kernel becomes one-channel, the position grid is cut or interpolated, the head is fresh.
Follows Gong et al. 2021, section 2.2, and the authors' src/models/ast_models.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from architecture import find_source_grid, need, read_architecture
from checkpoint_files import read_source
from delivery import Origin, add_output_flags, check_output, deliver, exit_code
from key_maps import (
    CLS,
    DISTILLATION,
    KERNEL,
    POSITIONS,
    ConversionError,
    Weights,
    check_finite,
    refuse_other_families,
    rename,
    split_qkv,
)
from label_names import NUM_AUDIOSET_LABELS, describe_labels, read_label_csv
from result import Conversion, build_config, complete
from torch import Tensor
from transformers.utils import logging

from modeling_ast import ASTConfig
from modeling_ast.position_ast import resize_position_grid

logger = logging.get_logger(__name__)

# The paper's: patches of 16 overlap by 6.
STRIDE = 10


def convert(
    weights: Mapping[str, Tensor],
    source_config: Mapping[str, Any] | None = None,
    *,
    patch_size: tuple[int, int] | None = None,
    max_length: int = ASTConfig.max_length,
    num_mel_bins: int = ASTConfig.num_mel_bins,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    channel_reduction: str = "mean",
    labels: int | dict[int, str] = NUM_AUDIOSET_LABELS,
    num_attention_heads: int | None = None,
    source_grid: tuple[int, int] | None = None,
) -> Conversion:
    """Turns the state dict of a DeiT or ViT into that of an AST.

    Args:
        weights: Of timm, facebookresearch or transformers, with any head.
        source_config: The model's config.json, if it has one.
        patch_size: (frequency, time); the source's by default, else its kernel is resampled.
        max_length, num_mel_bins: Frames and mel bins of the input.
        frequency_stride, time_stride: 10 by default, or the patch where that is smaller.
        channel_reduction: "mean" or "sum" of the colours' kernels.
        labels: How many, or their names.
        num_attention_heads: Of a width that DeiT and ViT never had.
        source_grid: (rows, columns) of the source's patches, where it is not square.
    Raises:
        ConversionError: The model is no plain ViT, incomplete, or the numbers do not fit.
    """
    source_config = source_config or {}
    refuse_ast(weights, source_config)
    refuse_other_families(weights)
    before, dropped = rename(weights)
    before = split_qkv(before)
    check_finite(before)
    old_grid = find_source_grid(before, source_config, source_grid)
    patch = patch_size or tuple(need(before, KERNEL, 4).shape[2:])
    config = build_config(
        **read_architecture(before, source_config, num_attention_heads),
        patch_size=patch,
        max_length=max_length,
        num_mel_bins=num_mel_bins,
        frequency_stride=min(STRIDE, patch[0]) if frequency_stride is None else frequency_stride,
        time_stride=min(STRIDE, patch[1]) if time_stride is None else time_stride,
        **describe_labels(labels),
    )
    after = {name: tensor.float() for name, tensor in before.items()}
    after = add_distillation_token(after)
    after[KERNEL] = resample_kernel(reduce_channels(after[KERNEL], channel_reduction), patch)
    after[POSITIONS] = fit_positions(after[POSITIONS], old_grid, config.patch_grid())
    return complete(config, before, after | fresh_head(config), dropped, old_grid)


def refuse_ast(weights: Mapping[str, Tensor], source_config: Mapping[str, Any]) -> None:
    """Refuses what is an AST already.

    Raises:
        ConversionError: It is.
    """
    if any(name.endswith("mlp_head.1.weight") for name in weights):
        raise ConversionError(
            "this is an AST of the authors, no DeiT; convert it with conversion/original_to_ast.py"
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
    """Gives a model without distillation token a copy of CLS and of its position.

    The result has the two prefix tokens that AST has everywhere.
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

    The paper averages the colours' kernels; the authors' released code sums them, which equals
    feeding the spectrogram to all three.
    """
    if how not in ("mean", "sum"):
        raise ConversionError(f"channel_reduction is {how!r}; it must be mean or sum")
    return kernel.mean(1, keepdim=True) if how == "mean" else kernel.sum(1, keepdim=True)


def resample_kernel(kernel: Tensor, patch: tuple[int, int]) -> Tensor:
    """Fits a patch kernel to another patch, so that a resized picture gives the same embeddings.

    With B the matrix that resizes a patch bilinearly, the new kernel is pinv(B^T) w: exact where
    the patch grows, the best in the mean where it shrinks.

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
    # float64: the pseudo-inverse of a matrix that shrinks amplifies rounding.
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
    """The classifier as the model itself would draw it, but always the same."""
    generator = torch.Generator().manual_seed(0)
    size = (config.num_labels, config.hidden_size)
    dense = torch.empty(size).normal_(std=config.initializer_range, generator=generator)
    return {
        "classifier.layernorm.weight": torch.ones(config.hidden_size),
        "classifier.layernorm.bias": torch.zeros(config.hidden_size),
        "classifier.dense.weight": dense,
        "classifier.dense.bias": torch.zeros(config.num_labels),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Converts a DeiT or ViT trained on pictures into an AST for sounds.",
        epilog="example: python conversion/deit_to_ast.py facebook/deit-base-distilled-patch16-384 "
        "my-ast --label-csv class_labels_indices.csv",
    )
    add = parser.add_argument
    number = {"type": int, "metavar": "N"}
    add("source", help="Hub id, directory (transformers or timm), .pth or .safetensors")
    add("output_dir", type=Path, help="new directory for the AST")
    add("--max-length", **number, default=ASTConfig.max_length, help="frames (default 1024)")
    add("--num-mel-bins", **number, default=ASTConfig.num_mel_bins, help="default 128")
    add("--frequency-stride", **number, help="mel bins from patch to patch (default 10)")
    add("--time-stride", **number, help="frames from patch to patch (default 10)")
    add(
        "--patch-size",
        type=int,
        nargs=2,
        metavar=("F", "T"),
        help="mel bins and frames of a patch (default: the source's)",
    )
    add("--channel-reduction", choices=("mean", "sum"), default="mean", help="default mean")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--num-labels", **number, default=NUM_AUDIOSET_LABELS, help="default 527, AudioSet's"
    )
    labels.add_argument("--label-csv", type=Path, metavar="FILE", help="index,mid,display_name")
    add("--num-attention-heads", **number, help="for a model of unusual width")
    add(
        "--source-grid",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="patches of the source, if not square",
    )
    add_output_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    check_output(args, args.output_dir, [Path(args.source)])
    labels = read_label_csv(args.label_csv) if args.label_csv else args.num_labels
    source = read_source(args.source)
    conversion = convert(
        source.weights,
        source.config,
        patch_size=args.patch_size and tuple(args.patch_size),
        max_length=args.max_length,
        num_mel_bins=args.num_mel_bins,
        frequency_stride=args.frequency_stride,
        time_stride=args.time_stride,
        channel_reduction=args.channel_reduction,
        labels=labels,
        num_attention_heads=args.num_attention_heads,
        source_grid=args.source_grid and tuple(args.source_grid),
    )
    origin = Origin(
        name=source.repo or Path(args.source).name,
        base_model=source.repo,
        license=source.card.get("license", "apache-2.0"),
        how="A picture model made ready for sounds. Its head is fresh: fine-tune it before use.",
    )
    deliver(conversion, origin, args.output_dir, args)


if __name__ == "__main__":
    sys.exit(exit_code(main))
