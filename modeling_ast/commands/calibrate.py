"""`modeling-ast calibrate MODEL [--data DATA]`: thresholds per label, and scores as probabilities.

They are written to calibration.json in the model's folder. classify, tag, detect and evaluate use
this file if it exists; plain transformers ignores it. They are found with the held-out clips of
DATA. If finetune wrote the folder, its run.json gives the data, the split and the columns for which
there is no flag. Clips that the model was trained on are refused, if the folder says which they
are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..calibration import CALIBRATION_FILE
from ..training.arguments import RUN_FILE
from ..training.calibrating import CalibrationArguments, Fit, calibrate
from ..training.data_arguments import DataArguments
from ..training.evaluation import RunningArguments
from ..training.training_clips import defaults_of_run
from .dataclass_parser import DataclassParser
from .output import fail, print_json, quiet_libraries

DESCRIPTION = """
Fit thresholds and probabilities to the held-out clips of DATA and write calibration.json into the
model's folder; classify, tag, detect and evaluate use that file. If finetune wrote the model, its
run.json gives the data, the split and the columns for which there is no flag.
"""


def main(arguments: list[str]) -> int:
    """Runs the verb."""
    quiet_libraries()
    options, running, data, rest = parse_arguments(arguments)
    folder = rest.output or Path(rest.model)
    if not folder.is_dir():
        return fail(
            f"there is no folder at {str(folder)!r} to write {CALIBRATION_FILE} to; name one with "
            f"--output; for a model on the Hub, name the folder that you will push"
        )
    try:
        result = calibrate(rest.model, options, running, data)
        path = result.calibration.save(folder)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    if rest.json:
        print_json(
            {
                "output": str(path),
                "clips": result.calibration.num_clips,
                "before": result.before,
                "after": result.after,
                "fallback": fallbacks(result),
                "thresholds": {
                    name: label.threshold for name, label in result.calibration.labels.items()
                },
            }
        )
    else:
        sys.stdout.write(report(result, path))
    return 0


def parse_arguments(
    arguments: Sequence[str],
) -> tuple[CalibrationArguments, RunningArguments, DataArguments, argparse.Namespace]:
    """Reads the flags; the namespace has `model`, `output` and `json`."""
    parser = DataclassParser(
        "calibrate",
        (CalibrationArguments, RunningArguments, DataArguments),
        usage="modeling-ast calibrate MODEL [--data DATA] [flags]",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a directory, or a name on the Hub together with --output"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for calibration.json (default: that of the model)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    try:
        options, running, data, rest = parser.read(arguments)
        # Flags on the command line win over these.
        names = parser.given_names(arguments)
        parser.set_defaults(**defaults_of_run(rest.model, data.data, names))
        options, running, data, rest = parser.read(arguments)
    except ValueError as error:
        parser.error(str(error))
    if data.data is None:
        parser.error(
            f"--data is missing, and {rest.model} has no {RUN_FILE} that says it; give a name "
            f"on the Hub, a directory or a file"
        )
    if data.streaming:
        parser.error("--streaming is for modeling-ast finetune; leave it out")
    return options, running, data, rest


def fallbacks(result: Fit) -> list[str]:
    """The labels with too few clips."""
    return [name for name, label in result.calibration.labels.items() if label.fallback]


def report(result: Fit, path: Path) -> str:
    """The result as text, with a line for each label."""
    labels = result.calibration.labels
    width = max(map(len, labels))
    lines = [
        f"{path}: {result.calibration.num_clips} clips of {result.calibration.data['name']}, "
        f"{result.calibration.method}, {result.calibration.criterion}",
        f"{'':<{width}}  clips  threshold",
    ]
    for name, label in labels.items():
        note = "  of all labels: too few clips" if label.fallback else ""
        lines.append(f"{name:<{width}}  {label.positives:>5}  {label.threshold:>9.4f}{note}")
    for metric in ("F1", "ECE"):
        before, after = result.before[metric], result.after[metric]
        lines.append(f"{metric} on these clips: {before:.4f} before, {after:.4f} after")
    lines.append("(on the clips that it was fitted to: modeling-ast evaluate judges it on others)")
    return "\n".join(lines) + "\n"


__all__ = ["main", "parse_arguments"]
