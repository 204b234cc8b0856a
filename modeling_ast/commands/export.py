"""`modeling-ast export`: a checkpoint -> ONNX files for other runtimes, checked.

    modeling-ast export MODEL OUT [--data DATA] [--opset N] [--leave-out int8] [--force] [--json]

The work is in `exporting/`.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..conversion import ConversionError
from ..errors import need_extra
from ..exporting.export import Judge, as_rows, export_model
from ..exporting.onnx_files import OPSET, OPSETS, OPTIONAL, check_opset
from .output import CommandParser, fail, print_json, quiet_libraries

VERB = "export"
DESCRIPTION = """
Write a checkpoint with ONNX files for runtimes without torch: onnxruntime, OpenVINO,
transformers.js and browsers. Every file is compared with torch before OUT appears, whole or not at
all.
"""
EPILOG = """
With --data, the flags of `modeling-ast evaluate` that say where clips and labels are can be given
too, such as --eval-split, --audio-column, --label-column and --label-csv.
"""
# Columns that the table always has; the columns after them are metrics.
COLUMNS = {
    "file": "file",
    "megabytes": "MB",
    "error": "error",
    "limit": "limit",
    "ms_per_clip": "ms per clip",
}


def build_parser() -> CommandParser:
    """The arguments of the verb, except for those of the data."""
    parser = CommandParser(
        VERB,
        usage="modeling-ast export MODEL OUT [--data DATA ...] [flags]",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint on the Hub, or a directory")
    add("output_dir", metavar="OUT", type=Path, help="new directory")
    add("--data", metavar="DATA", help="data set whose held-out clips judge each file")
    possible = f"of ONNX, {OPSETS[0]} to {OPSETS[-1]} ({OPSET}: most runtimes)"
    add("--opset", type=int, default=OPSET, metavar="N", help=possible)
    add(
        "--leave-out",
        nargs="+",
        choices=OPTIONAL,
        default=(),
        metavar="PRECISION",
        help=f"write no files of this precision: {' or '.join(OPTIONAL)}",
    )
    add("--force", action="store_true", help="replace an older export")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(arguments: list[str]) -> int:
    """Runs the verb and returns the exit status."""
    quiet_libraries()
    try:
        args, judge = parse_arguments(arguments)
        export = export_model(
            args.model, args.output_dir, judge, args.opset, args.force, args.leave_out
        )
    except ConversionError as error:
        return fail(str(error))
    rows = as_rows(export)
    if args.json:
        print_json({"output": str(args.output_dir), "files": rows})
    else:
        sys.stdout.write(f"{table(rows)}\nwrote {args.output_dir}\n")
    return 0


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, Judge | None]:
    """Reads the flags, and makes the judge if there is --data.

    Raises:
        ValueError: A flag of the data has an impossible value.
        MissingExtra: --data needs the extra `train`.
    """
    parser = build_parser()
    args, others = parser.parse_known_args(arguments)
    try:
        check_opset(args.opset)
    except ValueError as error:
        parser.error(str(error))
    if args.data is None:
        if others:
            parser.refuse(others)
        return args, None
    judging = need_extra("modeling_ast.exporting.judging", "train", "modeling-ast export --data")
    return args, partial(judging.judge_files, data=_data(["--data", args.data, *others]))


def _data(arguments: list[str]) -> Any:
    from ..training.data_sources import DataArguments
    from .dataclass_parser import DataclassParser

    parser = DataclassParser(VERB, (DataArguments,), usage="modeling-ast export MODEL OUT [flags]")
    (data,) = parser.read(arguments)
    if data.streaming:
        parser.error("--streaming is for modeling-ast finetune; leave it out")
    return data


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each file, with its metrics if it was judged."""
    heads = COLUMNS | {name: name for row in rows for name in row if name not in COLUMNS}
    cells = [list(heads.values())]
    cells += [
        [_shown(row.get(name), 3 if name in COLUMNS else 4) for name in heads] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for first, *others in cells:
        numbers = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:]))
        lines.append("  ".join((f"{first:<{widths[0]}}", *numbers)))
    return "\n".join(lines)


def _shown(value: Any, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


__all__ = ["build_parser", "main", "parse_arguments", "table"]
