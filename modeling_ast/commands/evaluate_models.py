"""`modeling-ast evaluate`: judges a model, or an ensemble of models, on held-out clips.

    modeling-ast evaluate MODEL... --data DATA [--eval-split test] [--output-dir OUT] [--json]

If finetune wrote the folder of the first model, its run.json gives the data, the split and the
columns for which there is no flag. A warning counts the clips that a model was trained on.

The work is in `training/evaluation.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..labels import printable
from ..outputs import check_output_file, leaving_no_empty_folder
from ..training.answers import summary_lines
from ..training.arguments import RUN_FILE, LengthArguments, ResultArguments
from ..training.bad_clip_search import listing_all_bad_clips
from ..training.data_arguments import DataArguments
from ..training.evaluation import (
    Evaluation,
    EvaluationArguments,
    evaluate_models,
    save_evaluation,
)
from ..training.held_out import HeldOut
from ..training.length_report import draw_lengths, length_table
from ..training.results import results_json, write_table
from ..training.training_clips import count_training_clips, defaults_of_run
from .dataclass_parser import DataclassParser
from .output import fail, print_json, print_report, quiet_libraries

DESCRIPTION = """
Judge a model, or an ensemble of several models, on the held-out clips of DATA: a data set on the
Hub, a directory with one folder of audio files per label, or a CSV, JSON lines or parquet file. If
finetune wrote the first model, its run.json gives the data, the split and the columns for which
there is no flag.
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
        options, data, lengths, results, rest = parse_arguments(arguments)
        for file in filter(None, (rest.per_class, rest.length_plot)):
            check_output_file(file)
        with output_directory(rest.output_dir) as folder:
            with listing_all_bad_clips(data, options.bad_clips, rest.models[0], train=False):
                result = evaluate_models(rest.models, options, data, lengths.length_clips)
            if rest.per_class:
                write_table(result.answers.classes, Path(rest.per_class))
            if rest.length_plot and result.lengths:
                draw_lengths(result.lengths, result.metric, Path(rest.length_plot))
            if folder is not None:
                save_evaluation(folder, rest.models, str(data.data), result, results.worst_clips)
            result.data.save_missing(options.missing_clips)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    print_report(result.data.lines(listed_in=options.missing_clips))
    print_report(training_clip_warnings(rest.models, result.clips))
    if rest.json:
        print_json(
            {
                "clips": result.num_clips,
                "models": result.models,
                **results_json(result.answers),
                "lengths": {
                    name: judged.as_json(result.metric) for name, judged in result.lengths.items()
                },
            }
        )
    else:
        summary = "\n".join(summary_lines(result.answers))
        sys.stdout.write(f"{table(result)}\n\n{summary}\n")
        if result.lengths:
            sys.stdout.write("\n" + length_table(result.lengths, result.metric))
        if folder is not None:
            sys.stdout.write(f"pictures, tables and the worst clips: {printable(folder)}\n")
    return 0


def training_clip_warnings(models: Sequence[str], clips: HeldOut) -> Iterator[str]:
    """A line for each model that was trained on some of the clips."""
    for model in dict.fromkeys(models):
        if again := count_training_clips(model, clips):
            yield (
                f"WARNING: {again} of {len(clips.clips)} clips are among those that {model} was "
                f"trained on; the scores are too good"
            )


@contextmanager
def output_directory(name: str | None) -> Iterator[Path | None]:
    """Makes the directory for the files of the evaluation, and removes it again if it stays empty.

    Args:
        name: Its path; None if no directory is wanted.
    Raises:
        ValueError: It holds a model, whose card would be replaced, or it cannot be made.
    """
    if name is None:
        yield None
        return
    folder = Path(name)
    if (folder / "config.json").exists():
        raise ValueError(
            f"--output-dir {name} holds a model, whose card and figures would be replaced; give "
            f"another directory"
        )
    with ExitStack() as stack:
        try:
            stack.enter_context(leaving_no_empty_folder(folder))
        except OSError as error:
            raise ValueError(
                f"cannot make the directory {name} ({error.strerror}); give another --output-dir"
            ) from error
        check_output_file(folder / "README.md")
        yield folder


def parse_arguments(
    arguments: Sequence[str],
) -> tuple[
    EvaluationArguments, DataArguments, LengthArguments, ResultArguments, argparse.Namespace
]:
    """Reads the flags; the namespace has `models`, `per_class`, `length_plot`, `output_dir`
    and `json`.

    Raises:
        ValueError: A value is impossible.
    """
    parser = DataclassParser(
        "evaluate",
        (EvaluationArguments, DataArguments, LengthArguments, ResultArguments),
        usage="modeling-ast evaluate MODEL... [--data DATA] [flags]",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="name on the Hub, or a directory"
    )
    parser.add_argument("--per-class", metavar="CSV", help="file for a row of each class")
    parser.add_argument(
        "--length-plot", metavar="PNG", help="picture of the scores at several lengths"
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="directory for figures, pictures, tables and the page of the worst clips",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options, data, lengths, results, rest = parser.read(arguments)
    # Flags on the command line win over these.
    names = parser.given_names(arguments)
    parser.set_defaults(**defaults_of_run(rest.models[0], data.data, names))
    options, data, lengths, results, rest = parser.read(arguments)
    if data.data is None:
        parser.error(
            f"--data is missing, and {rest.models[0]} has no {RUN_FILE} that says it; give a name "
            f"on the Hub, a directory or a file"
        )
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
    return options, data, lengths, results, rest


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
