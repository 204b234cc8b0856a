"""`modeling-ast average`: the mean of the weights of several AST checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..conversion import average_checkpoints
from ..conversion.card import Origin
from ..conversion.checkpoint_files import read_card
from .delivery import Made, add_output_flags, run
from .output import CommandParser

VERB = "average"


def build_parser() -> CommandParser:
    """The arguments of the verb."""
    parser = CommandParser(
        VERB,
        usage=f"modeling-ast {VERB} CHECKPOINT... --output-dir DIR [flags]",
        description="Averages the weights of AST checkpoints of one architecture.",
        epilog=f"example: modeling-ast {VERB} run/checkpoint-100 run/checkpoint-200 "
        "--output-dir my-ast",
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="directory or Hub id of an AST")
    add(
        "--output-dir",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="new directory for the mean",
    )
    add("--weights", type=float, nargs="+", metavar="W", help="one for each (default: equal)")
    add("--refit-grid", action="store_true", help="fit position grids to the first checkpoint's")
    add_output_flags(parser)
    return parser


def convert(args: argparse.Namespace) -> Made:
    """Averages the checkpoints; `delivery` does the rest.

    Raises:
        ConversionError: A checkpoint cannot be read, or does not fit the others.
    """
    conversion = average_checkpoints(args.checkpoints, args.weights, args.refit_grid)
    card = read_card(args.checkpoints[0])
    names = [Path(name).name if Path(name).is_dir() else name for name in args.checkpoints]
    origin = Origin(
        name=f"{len(names)} checkpoints",
        base_model=card.get("base_model"),
        license=card.get("license", "other"),
        how=f"The mean of the weights of {', '.join(names)}.",
    )
    return Made(conversion, origin)


def main(arguments: list[str]) -> int:
    """Runs the verb and returns the exit status."""
    args = build_parser().parse_args(arguments)
    return run(convert, args, args.checkpoints, ["modeling-ast", VERB, *arguments])


__all__ = ["build_parser", "convert", "main"]
