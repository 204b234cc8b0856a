"""`modeling-ast convert-deit`: a DeiT or ViT trained on pictures becomes an AST for sounds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..configuration_ast import ASTConfig
from ..conversion import deit_config, deit_conversion, read_label_names, read_source, rename_deit
from ..conversion.card import Origin
from ..labels import NUM_AUDIOSET_LABELS
from .delivery import Made, add_output_flags, run
from .output import CommandParser

VERB = "convert-deit"


def build_parser() -> CommandParser:
    """The arguments of the verb."""
    parser = CommandParser(
        VERB,
        usage=f"modeling-ast {VERB} SOURCE OUT [flags]",
        description="Converts a DeiT or ViT trained on pictures into an AST for sounds.",
        epilog=f"example: modeling-ast {VERB} facebook/deit-base-distilled-patch16-384 my-ast "
        "--label-csv class_labels_indices.csv",
    )
    add = parser.add_argument
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    add(
        "source",
        metavar="SOURCE",
        help="Hub id, directory (transformers or timm), .pth or .safetensors",
    )
    add("output_dir", metavar="OUT", type=Path, help="new directory for the AST")
    add("--max-length", **number, default=ASTConfig.max_length, help="frames (default 1024)")
    add("--num-mel-bins", **number, default=ASTConfig.num_mel_bins, help="of a frame (default 128)")
    add("--frequency-stride", **number, help="mel bins from patch to patch (default 10)")
    add("--time-stride", **number, help="frames from patch to patch (default 10)")
    add(
        "--patch-size",
        type=int,
        nargs=2,
        metavar=("F", "T"),
        help="mel bins and frames of a patch (default: the source's)",
    )
    add(
        "--channel-reduction",
        choices=("mean", "sum"),
        default="mean",
        help="how the filters of the three colours become one (default mean)",
    )
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--num-labels", **number, default=NUM_AUDIOSET_LABELS, help="default 527, as AudioSet"
    )
    labels.add_argument(
        "--label-csv",
        type=Path,
        metavar="FILE",
        help="names of the labels, in the columns index,mid,display_name",
    )
    add("--num-attention-heads", **number, help="of each layer, for a model of unusual width")
    add(
        "--source-grid",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="patch grid of the source, if it is not square",
    )
    add_output_flags(parser)
    return parser


def convert(args: argparse.Namespace) -> Made:
    """Converts the source; `delivery` does the rest.

    Raises:
        ConversionError: The source cannot be read or converted.
    """
    labels = read_label_names(args.label_csv) if args.label_csv else args.num_labels
    source = read_source(args.source)
    renamed = rename_deit(source.weights, source.config)
    config = deit_config(
        renamed,
        source.config,
        patch_size=args.patch_size and tuple(args.patch_size),
        max_length=args.max_length,
        num_mel_bins=args.num_mel_bins,
        frequency_stride=args.frequency_stride,
        time_stride=args.time_stride,
        labels=labels,
        num_attention_heads=args.num_attention_heads,
    )
    conversion = deit_conversion(
        renamed,
        config,
        source_config=source.config,
        source_grid=args.source_grid and tuple(args.source_grid),
        channel_reduction=args.channel_reduction,
    )
    origin = Origin(
        name=source.repo or Path(args.source).name,
        base_model=source.repo,
        license=source.card.get("license", "apache-2.0"),
        how="A picture model made ready for sounds. Its head is fresh: fine-tune it before use.",
    )
    return Made(conversion, origin)


def main(arguments: list[str]) -> int:
    """Runs the verb and returns the exit status."""
    args = build_parser().parse_args(arguments)
    return run(convert, args, [args.source], ["modeling-ast", VERB, *arguments])


__all__ = ["build_parser", "convert", "main"]
