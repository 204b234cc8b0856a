"""`modeling-ast evaluate`: judges a model, or an ensemble of models, on held-out clips.

    modeling-ast evaluate MODEL... --data DATA [--eval-split test] [--json]

The work is in `training/evaluation.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..labels import printable
from ..outputs import check_output_file
from ..training.arguments import LengthArguments
from ..training.data_arguments import DataArguments
from ..training.evaluation import Evaluation, EvaluationArguments, evaluate_models
from ..training.lengths import PLAIN_TRANSFORMERS, SHARES, length_rows
from ..training.results import write_table
from .dataclass_parser import DataclassParser
from .output import fail, print_json, print_report, quiet_libraries

DESCRIPTION = """
Judge a model, or an ensemble of several models, on the held-out clips of DATA: a data set on the
Hub, a directory with one folder of audio files per label, or a CSV, JSON lines or parquet file.
"""


def main(arguments: list[str]) -> int:
    """Runs the verb.

    Args:
        arguments: Those behind it.
    Returns:
        The exit status.
    """
    quiet_libraries()
    try:
        options, data, lengths, rest = parse_arguments(arguments)
        if rest.per_class:
            check_output_file(rest.per_class)
        result = evaluate_models(rest.models, options, data, lengths.length_clips)
        if rest.per_class:
            write_table(result.classes, Path(rest.per_class))
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    print_report(result.data.lines())
    if rest.json:
        print_json(
            {
                "clips": result.num_clips,
                "models": result.models,
                "classes": [row._asdict() for row in result.classes],
                "lengths": {
                    name: {
                        "clips": judged.num_clips,
                        "results": [scores._asdict() for scores in judged.results],
                    }
                    for name, judged in result.lengths.items()
                },
            }
        )
    else:
        sys.stdout.write(f"{table(result)}\n{length_table(result)}")
    return 0


def parse_arguments(
    arguments: Sequence[str],
) -> tuple[EvaluationArguments, DataArguments, LengthArguments, argparse.Namespace]:
    """Reads the flags; the namespace has `models`, `per_class` and `json`.

    Raises:
        ValueError: A value is impossible.
    """
    parser = DataclassParser(
        "evaluate",
        (EvaluationArguments, DataArguments, LengthArguments),
        usage="modeling-ast evaluate MODEL... --data DATA [flags]",
        description=DESCRIPTION,
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="on the Hub, or a directory")
    parser.add_argument("--per-class", metavar="CSV", help="file to write a row for each class to")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options, data, lengths, rest = parser.read(arguments)
    if data.data is None:
        parser.error("--data is missing; give a name on the Hub, a directory or a file")
    if data.streaming:
        parser.error("--streaming is for modeling-ast finetune; leave it out")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size is {options.batch_size}; give at least 1")
    if options.num_workers < 0:
        parser.error(f"--num-workers is {options.num_workers}; give 0 or more")
    if lengths.length_clips < 0:
        parser.error(f"--length-clips is {lengths.length_clips}; give 0 or more")
    return options, data, lengths, rest


def table(result: Evaluation) -> str:
    """The number of clips, then a line for each model and for the ensemble."""
    names = list(result.models[0])[1:]
    width = max(len(printable(row["model"])) for row in result.models)
    lines = [f"{result.num_clips} clips", " " * width + "".join(f"{name:>19}" for name in names)]
    for row in result.models:
        numbers = "".join(
            f"{row[name]:>19.4f}" if isinstance(row[name], float) else f"{row[name]:>19}"
            for name in names
        )
        lines.append(f"{printable(row['model']):<{width}}{numbers}")
    return "\n".join(lines)


def length_table(result: Evaluation) -> str:
    """The main metric of each model under both paddings, at the three lengths."""
    if not result.lengths:
        return ""
    metric = list(result.models[0])[1]
    width = max(map(len, result.lengths))
    num_clips = min(lengths.num_clips for lengths in result.lengths.values())
    heads = "".join(f"{f'{share:g} of it':>12}" for share in SHARES)
    lines = [
        "",
        f"{metric} of {num_clips} clips by padding and by the share of each clip",
        f"{'':<{width}}  {'padding':<10}{heads}",
    ]
    for name, lengths in result.lengths.items():
        for padding, values in length_rows(lengths, metric):
            numbers = "".join(f"{value:>12.4f}" for value in values)
            lines.append(f"{name:<{width}}  {padding:<10}{numbers}")
    lines.append(f"({PLAIN_TRANSFORMERS})")
    return "\n".join(lines) + "\n"


__all__ = ["main", "parse_arguments"]
