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
from ..training.length_report import draw_lengths, length_table
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
        for file in filter(None, (rest.per_class, rest.length_plot)):
            check_output_file(file)
        result = evaluate_models(rest.models, options, data, lengths.length_clips)
        if rest.per_class:
            write_table(result.classes, Path(rest.per_class))
        if rest.length_plot and result.lengths:
            draw_lengths(result.lengths, result.metric, Path(rest.length_plot))
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
                    name: judged.as_json(result.metric) for name, judged in result.lengths.items()
                },
            }
        )
    else:
        sys.stdout.write(f"{table(result)}\n")
        if result.lengths:
            sys.stdout.write("\n" + length_table(result.lengths, result.metric))
    return 0


def parse_arguments(
    arguments: Sequence[str],
) -> tuple[EvaluationArguments, DataArguments, LengthArguments, argparse.Namespace]:
    """Reads the flags; the namespace has `models`, `per_class`,
    `length_plot` and `json`.

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
    parser.add_argument(
        "--length-plot", metavar="PNG", help="picture of the scores at several lengths to write"
    )
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
    if rest.length_plot and not lengths.length_clips:
        parser.error("--length-plot shows the scores of --length-clips, which is 0; give more")
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


__all__ = ["main", "parse_arguments"]
