"""Mean and standard deviation over runs of finetune.py, such as the folds of a cross-validation.

    python examples/summarize_runs.py RUN... [--json]

RUN is an output directory with metrics.json. The deviation is that of a sample (n - 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

# Words in the names of metrics that describe the machine, not the model.
LEFT_OUT = ("runtime", "per_second", "epoch", "_time")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Mean and deviation over runs of finetune.py.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="directory of a run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def read_metrics(run: Path) -> dict[str, float]:
    """The metrics of a finished run."""
    file = run / "metrics.json"
    if not file.is_file():
        raise ValueError(
            f"there is no {file}, so {run} is not a finished run; finish it with finetune.py"
        )
    metrics = json.loads(file.read_text(encoding="utf-8"))
    # Leaves out the curves of `lengths`, and undefined numbers (null).
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not any(word in name for word in LEFT_OUT)
    }


def summarize(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """For each metric that all runs have: mean, standard deviation, lowest, highest."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    rows = {}
    for name in names:
        values = [run[name] for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        rows[name] = {
            "mean": statistics.fmean(values),
            "std": deviation,
            "min": min(values),
            "max": max(values),
        }
    return rows


def main() -> None:
    """Reads all runs and prints one table."""
    options = parse_arguments()
    try:
        rows = summarize([read_metrics(run) for run in options.runs])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        sys.stdout.write(json.dumps({"runs": len(options.runs), "metrics": rows}, indent=2) + "\n")
        return
    sys.stdout.write(
        f"{'of ' + str(len(options.runs)) + ' runs':<26}  mean     std      min     max\n"
    )
    for name, row in rows.items():
        numbers = "  ".join(f"{value:7.4f}" for value in row.values())
        sys.stdout.write(f"{name:<24}  {numbers}\n")


if __name__ == "__main__":
    main()
