"""`modeling-ast convert-original`: a checkpoint of the authors' own AST code becomes ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..configuration_ast import ASTConfig
from ..conversion import (
    fetch_original_labels,
    original_config,
    original_conversion,
    read_label_names,
    read_weights,
    rename_original,
)
from ..conversion.card import Origin
from .delivery import Made, add_output_flags, run
from .output import CommandParser

VERB = "convert-original"


def build_parser() -> CommandParser:
    """The arguments of the verb."""
    parser = CommandParser(
        VERB,
        usage=f"modeling-ast {VERB} SOURCE OUT [flags]",
        description="Converts a checkpoint of the authors' own AST code (a .pth file).",
        epilog=f"example: modeling-ast {VERB} audioset_10_10_0.4593.pth my-ast "
        "--label-csv class_labels_indices.csv",
    )
    add = parser.add_argument
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    add("source", metavar="SOURCE", help="the authors' .pth file")
    add("output_dir", metavar="OUT", type=Path, help="new directory for the AST")
    add(
        "--label-csv",
        type=Path,
        metavar="FILE",
        help="names of the labels, in the columns index,mid,display_name (default: the list on the "
        "Hub)",
    )
    unknown = "if the shapes of the weights do not determine it"
    add("--frequency-stride", **number, help=f"mel bins from patch to patch, {unknown}")
    add("--time-stride", **number, help=f"frames from patch to patch, {unknown}")
    add("--max-length", **number, help=f"number of frames, {unknown}")
    add("--num-mel-bins", **number, default=ASTConfig.num_mel_bins, help="of a frame (default 128)")
    add("--num-attention-heads", **number, help="of each layer, for a model of unusual width")
    add("--mean", type=float, metavar="X", help="of the log-mel values of an unknown data set")
    add("--std", type=float, metavar="X", help="standard deviation of these values")
    add_output_flags(parser)
    return parser


def convert(args: argparse.Namespace) -> Made:
    """Converts the source; `delivery` does the rest.

    Raises:
        ConversionError: The source cannot be read or converted.
    """
    labels = read_label_names(args.label_csv) if args.label_csv else None
    renamed = rename_original(read_weights(args.source))
    config = original_config(
        renamed,
        labels=labels or fetch_original_labels(renamed),
        num_mel_bins=args.num_mel_bins,
        frequency_stride=args.frequency_stride,
        time_stride=args.time_stride,
        max_length=args.max_length,
        mean=args.mean,
        std=args.std,
        num_attention_heads=args.num_attention_heads,
    )
    origin = Origin(
        name=Path(args.source).name,
        base_model=None,
        license="bsd-3-clause",
        how="A checkpoint of the authors' code (https://github.com/YuanGongND/ast), head included.",
    )
    return Made(original_conversion(renamed, config), origin)


def main(arguments: list[str]) -> int:
    """Runs the verb and returns the exit status."""
    args = build_parser().parse_args(arguments)
    return run(convert, args, [args.source], ["modeling-ast", VERB, *arguments])


__all__ = ["build_parser", "convert", "main"]
