"""`modeling-ast finetune`: fine-tunes an AST on any data set.

    modeling-ast finetune --model MODEL --data DATA --output-dir OUT [Trainer's arguments]
    modeling-ast finetune --recipe esc50 [flags that win over the recipe]
    modeling-ast finetune ... --folds 5 [--group-by COLUMN]

The work is in `training/finetuning.py`, that of --folds in `training/folds.py`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from ..audio_files import by_reason
from ..errors import one_line
from ..training.answers import summary_lines
from ..training.arguments import (
    KINDS,
    Arguments,
    AutoArguments,
    LengthArguments,
    ResultArguments,
    contradiction,
    defaults,
    prepare,
)
from ..training.cheap_tuning import CheapArguments
from ..training.finetuning import Outcome, finetune
from ..training.folds import FOLDS_FILE, CrossValidation, cross_validate, is_cross_validation
from ..training.recipe_files import read_recipe, recipe_names
from ..training.results import WORST_PAGE
from ..training.search import SearchResult, search
from .dataclass_parser import DataclassParser, Group
from .output import fail, print_json, print_report

DESCRIPTION = f"""
Fine-tune an AST on any data set, with one or several labels to a clip. MODEL is an AST on the Hub,
or a directory; DATA is a data set on the Hub, a directory with one folder of audio files per label,
or a CSV, JSON lines or parquet file. A recipe sets many flags at once: the path of a YAML file, or
one of {", ".join(recipe_names())}. If a run is interrupted, run the same command again: it resumes
from the last checkpoint. All flags of transformers' TrainingArguments can be given too;
--help-all shows them.
"""
EXAMPLE = """
example: modeling-ast finetune --recipe my_folder --model quickstart/model --data my_sounds
--output-dir runs/mine
"""
# Headings of --help, for those kinds of arguments whose names say too little.
TITLES = {
    CheapArguments: "train a part",
    AutoArguments: "chosen numbers",
    LengthArguments: "short clips",
    ResultArguments: "report",
}
# The arguments of TrainingArguments that --help shows, with a help of ours, because
# transformers' own is for readers who know Trainer.
USUAL = {
    "output_dir": "directory for the model, its checkpoints and all results",
    "num_train_epochs": "how often the training goes through all clips",
    "max_steps": "stop after this many steps, whatever the number of epochs; -1: no such limit",
    "per_device_train_batch_size": "clips of a batch, on each GPU",
    "gradient_accumulation_steps": "batches that are added up to one step",
    "learning_rate": "highest learning rate",
    "lr_scheduler_type": "how the learning rate falls over the run",
    "warmup_steps": "steps in which the learning rate rises from 0; below 1, a share of the run",
    "weight_decay": "pulls the weights towards 0, by this share of the learning rate at each step",
    "bf16": "compute with bfloat16 where this is safe: faster on recent GPUs",
    "gradient_checkpointing": "compute activations twice instead of keeping them: takes less "
    "memory and more time",
    "logging_steps": "steps from one line of the log to the next; below 1, a share of the run",
    "report_to": "where the log goes: tensorboard, wandb, none, ...",
    "eval_strategy": "when held-out clips are judged: at --eval-steps, each epoch, never",
    "eval_steps": "steps from one evaluation to the next; below 1, a share of the run",
    "per_device_eval_batch_size": "clips of a batch of an evaluation, on each GPU",
    "save_strategy": "when a checkpoint is saved: after --save-steps, each epoch, or the best "
    "evaluation so far, or never",
    "save_steps": "steps from one checkpoint to the next; below 1, a share of the run",
    "save_total_limit": "checkpoints that are kept; older ones are deleted (default: all)",
    "push_to_hub": "upload the model, its card and its pictures to the Hub",
    "hub_model_id": "name of the model on the Hub, such as me/my-ast",
    "seed": "of all random numbers",
    "use_cpu": "train on the CPU even if there is a GPU",
    "dataloader_num_workers": "processes that decode clips",
    "resume_from_checkpoint": "folder of the checkpoint to resume from (default: the newest in "
    "--output-dir, if there is one)",
}


def main(arguments: list[str]) -> int:
    """Runs the verb.

    Args:
        arguments: Those behind it.
    Returns:
        The exit status.
    """
    try:
        chosen, as_json = parse_arguments(arguments)
        transformers_logging.disable_progress_bar()  # files are read and written in a moment
        # Trainer prints its logs to standard output, which is for the result alone.
        with redirect_stdout(sys.stderr):
            result = run(chosen)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    if chosen.training.process_index == 0:
        report(result, str(chosen.training.output_dir), as_json)
    return 0


def run(arguments: Arguments) -> Outcome | CrossValidation | SearchResult:
    """One fine-tuning, one for each fold, or one for each trial of a search."""
    if arguments.search.search_trials is not None:
        return search(arguments, announce=print_report)
    if is_cross_validation(arguments.data):
        return cross_validate(arguments, announce=print_report)
    return finetune(arguments, announce=print_report)


def report(result: Outcome | CrossValidation | SearchResult, folder: str, as_json: bool) -> None:
    """Prints the result."""
    if isinstance(result, SearchResult):
        report_search(result, as_json)
    elif isinstance(result, CrossValidation):
        report_folds(folder, result, as_json)
    else:
        report_outcome(result, as_json)


def parse_arguments(arguments: Sequence[str]) -> tuple[Arguments, bool]:
    """Reads the recipe, if there is one, and the flags, which win; and whether JSON is wanted.

    Raises:
        ValueError: The recipe has no known name and is no file, or a value is impossible.
    """
    parser = DataclassParser(
        "finetune",
        KINDS,
        help_groups(),
        usage="modeling-ast finetune --model MODEL --data DATA --output-dir OUT [flags]\n"
        "       modeling-ast finetune --recipe RECIPE [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLE,
    )
    parser.set_defaults(**defaults())
    parser.add_argument("--recipe", help="path of a YAML file of arguments, or a known name")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    recipe = parser.parse_known_args(arguments)[0].recipe
    names = parser.given_names(arguments)
    if recipe:
        try:
            settings = read_recipe(recipe)
        except ValueError as error:
            parser.error(str(error))
        # A fold that the user gives replaces the share that a recipe holds out.
        if names & {"folds", "eval_fold"}:
            settings.pop("eval_share", None)
        parser.set_defaults(**settings)
        names |= settings.keys()
    given = parser.parse_known_args(arguments)[0]
    for name in ("model", "data", "output_dir"):
        if not getattr(given, name):
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} is missing; give it here or in the recipe")
    try:
        *kinds, rest = parser.read(arguments)
    # A value of a recipe has a type that its flag does not accept.
    except (AttributeError, OverflowError, TypeError) as error:
        parser.error(f"a value has the wrong type: {one_line(error)}")
    chosen = Arguments(*kinds)
    chosen.given = names
    if mistake := contradiction(chosen):
        parser.error(mistake)
    prepare(chosen.training)
    return chosen, rest.json


def help_groups() -> dict[type, Group]:
    """A part of --help for each kind of arguments, with the first line of its docstring."""
    groups: dict[type, Group] = {
        kind: Group(
            TITLES.get(kind, kind.__name__.removesuffix("Arguments").lower()), summary(kind)
        )
        for kind in KINDS
    }
    sentence = "The usual ones of transformers' TrainingArguments; --help-all shows all."
    groups[TrainingArguments] = Group("training", sentence, USUAL)
    return groups


def summary(kind: type) -> str:
    """The first line of a class's docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def report_search(found: SearchResult, as_json: bool) -> None:
    """Prints the best trial of a search, and how to train with its numbers."""
    if as_json:
        print_json({**found._asdict(), "recipe": str(found.recipe)})
        return
    values = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.values.items()
    )
    sys.stdout.write(
        f"best of {found.num_trials} trials: {values}; {found.metric} {found.score:.4f} of "
        f"{found.num_clips} validation clips\n"
        f"train with it: modeling-ast finetune --recipe {shlex.quote(str(found.recipe))}\n"
    )


def report_outcome(outcome: Outcome, as_json: bool) -> None:
    """Prints what became of the data, the weights that were kept, the score and the place."""
    # Printed again, because clips that turned out to be bad are skipped by now.
    print_report([*outcome.data.lines()[:1], *by_reason(outcome.data.bad)])
    folder, metric = outcome.trainer.args.output_dir, outcome.metric
    if as_json:
        print_json({"output_dir": folder, "metric": metric, "metrics": outcome.metrics})
        return
    if outcome.answers is not None:
        sys.stdout.writelines(f"{line}\n" for line in summary_lines(outcome.answers))
    print_report([str(outcome.choices[-1]), f"pictures and card: {folder}/README.md"])
    page = Path(str(folder)) / WORST_PAGE
    if page.is_file():
        sys.stdout.write(f"listen to the mistakes: {page}\n")
    sys.stdout.write(f"the model is in {folder}\n")


def report_folds(folder: str, folds: CrossValidation, as_json: bool) -> None:
    """Prints the scores of each fold, then their mean and standard deviation."""
    metric = folds.metric
    if as_json:
        results = {name: value for name, value in folds._asdict().items() if name != "division"}
        print_json({"output_dir": folder, **results})
        return
    # The other metrics are in folds.json.
    names = [name for name in folds.mean if name.startswith("eval_")]
    width = max(map(len, names))
    heads = "".join(f"{f'fold {number}':>10}" for number in folds.results)
    lines = [f"{'':<{width}}{heads}{'mean':>10}{'std':>10}"]
    for name in names:
        own = [results.get(name) for results in folds.results.values()]
        values = [*own, folds.mean[name], folds.std[name]]
        lines.append(f"{name:<{width}}" + "".join(map(cell, values)))
    lines.append(
        f"{metric} {cell(folds.mean[f'eval_{metric}']).strip()} +- "
        f"{cell(folds.std[f'eval_{metric}']).strip()} over {len(folds.results)} folds; the models "
        f"are in {folder}/fold_*"
    )
    print_report([f"all figures: {folder}/{FOLDS_FILE}"])
    sys.stdout.write("\n".join(lines) + "\n")


def cell(value: float | None) -> str:
    """A number of the table; a dash where it is undefined."""
    return f"{'-':>10}" if value is None else f"{value:>10.4f}"


__all__ = ["main", "parse_arguments"]
