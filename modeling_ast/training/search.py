"""A hyperparameter search for a fine-tuning, by Trainer's hyperparameter_search with optuna.

Each trial trains with other values and is scored on validation clips, which are set aside from the
training clips; the held-out clips are never read. The trials are stored in `search.log` of the
output directory, so that an interrupted search resumes when it is run again. The results are
`trials.csv` and `best.yaml`, a recipe with all the arguments.
"""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..errors import need_extra, one_line
from ..outputs import leaving_no_empty_folder, one_run_at_a_time
from ..strict_json import to_json
from .arguments import KINDS, RUN_FILE, Arguments
from .batches import AudioCollator, LabelEncoder
from .building import build_trainer, load_model, mixes_labels, published_parts
from .cheap_tuning import train_a_part
from .classes import Clips, check_labels, is_exclusive, read_classes
from .data_sources import load
from .kept_weights import VALIDATION, judged_by
from .results import Judge
from .run_record import check_same_run, deciding_arguments
from .small_data import choose, measure
from .trainer import ASTTrainer, output_folder

if TYPE_CHECKING:
    import optuna

LOG_FILE, TRIALS_FILE, RECIPE_FILE = "search.log", "trials.csv", "best.yaml"
STUDY = "search"
# Default share of the training clips for validation; it is large, as many trials choose by them.
VALIDATION_SHARE = 0.2
# Kinds of arguments that may differ from trial to trial; the data and its reading may not.
SEARCHED = ("optimizer", "augmentation", "cheap")
# Arguments of the model that may differ from trial to trial.
SEARCHED_OF_MODEL = ("patchout_frequency", "patchout_time", "drop_path_rate")
# The default space has learning rates from the given one divided by this to it times this.
RATE_FACTOR = 10


class SearchResult(NamedTuple):
    """The result of a search."""

    metric: str
    score: float  # of the validation clips, in the best trial
    values: dict[str, Any]  # of the best trial
    num_trials: int  # number of trials that were finished or stopped early
    num_clips: int  # number of validation clips
    recipe: Path


def default_space(arguments: Arguments) -> dict[str, Any]:
    """The default search space: rates, mixup, and the rank of an adapter.

    Args:
        arguments: The arguments of the run; learning rates around theirs are searched.
    """
    rate = arguments.training.learning_rate
    space: dict[str, Any] = {
        "learning_rate": {"low": rate / RATE_FACTOR, "high": rate * RATE_FACTOR, "log": True},
        "head_rate": {"low": 1.0, "high": 30.0, "log": True},
        "mixup_rate": [0.0, 0.5],
    }
    if arguments.cheap.lora_rank is not None:
        space["lora_rank"] = [4, 8, 16, 32]
    return space


def read_space(path: str | Path, arguments: Arguments) -> dict[str, Any]:
    """A space in a YAML file: for each argument a list of values, or `low`, `high` and `log`.

    Raises:
        ValueError: The file cannot be read, or names arguments that cannot be searched.
    """
    try:
        space = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the search space {path}: {one_line(error)}") from error
    if not isinstance(space, dict) or not space:
        raise ValueError(
            f"the search space {path} has no lines such as 'lora_rank: [4, 8, 16]' or "
            f"'learning_rate: {{low: 1e-5, high: 1e-3, log: true}}'; add some"
        )
    known = searchable(arguments)
    if unknown := sorted(map(str, space.keys() - known)):
        raise ValueError(
            f"the search space {path} has {unknown}, which cannot be searched; give arguments of "
            f"training, optimizer, augmentation or adapter, such as learning_rate, head_rate, "
            f"mixup_rate, lora_rank"
        )
    return {name: _checked(path, name, values) for name, values in space.items()}


def _checked(path: str | Path, name: str, values: Any) -> Any:
    """A list of values, or numbers for `low` and `high`: YAML reads 1e-3 as a string."""
    if isinstance(values, list) and values:
        plain = [_number(value) for value in values]
        if all(isinstance(value, str | int | float | bool | None) for value in plain):
            return plain
    elif isinstance(values, dict) and {"low", "high"} <= values.keys() <= {"low", "high", "log"}:
        low, high = _number(values["low"]), _number(values["high"])
        log = values.get("log", False)
        are_numbers = all(isinstance(x, int | float) and math.isfinite(x) for x in (low, high))
        if are_numbers and low < high and isinstance(log, bool) and (low > 0 or not log):
            return {"low": low, "high": high, "log": log}
    raise ValueError(
        f"the search space {path} has {name}: {values!r}; give a list of values, or low < high and "
        f"log: true or false (low above 0 with log)"
    )


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def searchable(arguments: Arguments) -> set[str]:
    """The names of the arguments that may differ from trial to trial."""
    kinds = [getattr(arguments, name) for name in SEARCHED]
    names = {entry.name for kind in kinds for entry in fields(kind)} - {"merge"}
    names |= {name for name in SEARCHED_OF_MODEL if hasattr(arguments.model, name)}
    return names | {entry.name for entry in fields(TrainingArguments) if entry.init}


def suggest(space: Mapping[str, Any], trial: optuna.Trial) -> dict[str, Any]:
    """The values of a trial."""
    values: dict[str, Any] = {}
    for name, choice in space.items():
        if isinstance(choice, list):
            values[name] = trial.suggest_categorical(name, choice)
        elif isinstance(choice["low"], int) and isinstance(choice["high"], int):
            values[name] = trial.suggest_int(name, **choice)
        else:
            values[name] = trial.suggest_float(name, **choice)
    return values


def search(
    arguments: Arguments, announce: Callable[[Iterable[str]], None] = lambda lines: None
) -> SearchResult:
    """Starts or resumes a search, until `search_trials` trials are done.

    Args:
        arguments: The arguments of the run, including `search_trials`.
        announce: Called with the lines of the report on the files, before the first trial.
    Raises:
        MissingExtra: optuna is not installed.
        OSError, ValueError: As `finetune`; or the directory holds another search; or no trial has a
            score.
    """
    need_extra("optuna", "search", "--search-trials")
    folder = output_folder(arguments.training)
    with leaving_no_empty_folder(folder), one_run_at_a_time(folder):
        return _search(arguments, announce)


def _search(arguments: Arguments, announce: Callable[[Iterable[str]], None]) -> SearchResult:
    path = arguments.search.search_space
    space = default_space(arguments) if path is None else read_space(path, arguments)
    recipe = given_arguments(arguments)
    trainer, metric = build_search(arguments, space, announce)
    folder = output_folder(trainer.args)
    study, storage = open_study(folder, space, arguments.training.seed)
    wanted = arguments.search.search_trials or 0
    missing = wanted - len(finished(study))
    if missing > 0:
        with judged_by(trainer, trainer.eval_dataset):
            trainer.hyperparameter_search(
                hp_space=partial(_of_trainer, space),
                compute_objective=lambda metrics: metrics[f"eval_{VALIDATION}_{metric}"],
                n_trials=missing,
                direction="maximize",
                backend="optuna",
                study_name=STUDY,
                storage=storage,
                load_if_exists=True,
                sampler=study.sampler,
                catch=(RuntimeError,),  # e.g. too little memory for one trial; the others still run
            )
    write_trials(study, folder / TRIALS_FILE, metric)
    good = [trial for trial in finished(study) if trial.state.name == "COMPLETE"]
    if not good:
        raise ValueError(
            f"none of the {len(study.trials)} trials has a score ({metric}); see {TRIALS_FILE} in "
            f"{folder}, and the errors above"
        )
    best = study.best_trial
    assert best.value is not None
    file = write_recipe(recipe | best.params, folder, metric, best.value)
    clips: Any = trainer.eval_dataset
    return SearchResult(metric, best.value, best.params, len(finished(study)), len(clips), file)


def build_search(
    arguments: Arguments, space: Mapping[str, Any], announce: Callable[[Iterable[str]], None]
) -> tuple[ASTTrainer, str]:
    """A trainer that starts each trial with a new model and the values of that trial.

    Returns:
        The trainer, whose held-out clips are the validation clips, and the metric.
    """
    training = arguments.training
    if training.world_size > 1:
        raise ValueError(
            f"--search-trials runs in one process and this run has {training.world_size}; start it "
            f"without torchrun and accelerate launch"
        )
    training.eval_strategy, training.save_strategy = IntervalStrategy.EPOCH, SaveStrategy.NO
    training.load_best_model_at_end = training.push_to_hub = False
    training.report_to = []
    set_seed(training.seed)
    loaded = load(arguments.data)
    if loaded.validation is None:
        arguments.change("validation_share", VALIDATION_SHARE)
        loaded = load(arguments.data)
    validation = loaded.validation
    if validation is None:
        raise ValueError(
            "--search-trials needs validation clips, but there are too few training clips to set "
            "some aside; give more clips, or a split with --validation-split"
        )
    classes = read_classes(arguments.data, loaded.train, loaded.held_out)
    check_labels(loaded.report, classes, loaded.train_name, loaded.held_out_name)
    announce(loaded.report.lines())
    exclusive = is_exclusive(arguments.data, loaded.train)
    with_softmax = arguments.data.loss == "cross_entropy" or (
        arguments.data.loss == "auto" and exclusive
    )
    if arguments.auto.auto:
        choose(arguments, measure(arguments, loaded.train, exclusive))
    arguments.change("average_from", None)
    judge = Judge(classes, exclusive)
    deciding = deciding_arguments(arguments)
    folder = output_folder(training)
    if (folder / LOG_FILE).exists():
        check_same_run(folder, deciding)

    def new_model(given: Arguments) -> Any:
        model, _ = load_model(given.model, classes, with_softmax)
        return train_a_part(model, given.cheap)

    _, extractor = load_model(arguments.model, classes, with_softmax)
    splits = (loaded.train, validation)
    trainer = build_trainer(new_model(arguments), extractor, classes, splits, arguments, judge)
    (folder / RUN_FILE).write_text(to_json(deciding) + "\n", encoding="utf-8")

    def begin(trial: optuna.Trial) -> Any:
        own = of_trial(arguments, suggest(space, trial))
        set_parts(trainer, own, loaded.train)
        return new_model(own)

    # Set afterwards, because Trainer's constructor takes either a model or this function, which it
    # calls at the start of each trial.
    trainer.model_init = begin
    return trainer, judge.metric


def of_trial(arguments: Arguments, values: Mapping[str, Any]) -> Arguments:
    """A copy of the arguments with the values of a trial."""
    own = copy.copy(arguments)
    own.training = copy.copy(arguments.training)
    for name, value in values.items():
        own.change(name, value)
    return own


def set_parts(trainer: ASTTrainer, own: Arguments, train: Clips) -> None:
    """Sets the parts of ASTTrainer by a trial's arguments; Trainer sets those of its own."""
    parts = published_parts(own, train)
    trainer.make_optimizer = parts.get("make_optimizer")
    trainer.epoch_decay = parts.get("epoch_decay")
    trainer.augmentation = own.augmentation
    collate = trainer.data_collator
    # `build_trainer` made both.
    assert isinstance(collate, AudioCollator) and isinstance(collate.encode_labels, LabelEncoder)
    collate.augmentation = own.augmentation
    collate.encode_labels.shares = mixes_labels(own.augmentation)


def _of_trainer(space: Mapping[str, Any], trial: optuna.Trial) -> dict[str, Any]:
    """Those values of a trial that are TrainingArguments; Trainer warns about others."""
    names = {entry.name for entry in fields(TrainingArguments)}
    return {name: value for name, value in suggest(space, trial).items() if name in names}


def open_study(
    folder: Path, space: Mapping[str, Any], seed: int
) -> tuple[optuna.Study, optuna.storages.BaseStorage]:
    """The search in a folder, new or resumed, and the storage of its trials.

    Trials that were running when it was interrupted are run again with the same values.

    Raises:
        ValueError: The search in the folder has another space.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    # optuna's warnings about failed trials are tracebacks; trials.csv lists these trials instead.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / LOG_FILE)))
    study = optuna.create_study(
        study_name=STUDY, storage=storage, direction="maximize", load_if_exists=True
    )
    # With the same seed a resumed search would draw the values of the first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    text = json.dumps(dict(space), sort_keys=True)
    before = study.user_attrs.get("space", text)
    if before != text:
        raise ValueError(
            f"{folder} holds a search in another space, {before}; give another --output-dir, or "
            f"the same arguments to resume it"
        )
    study.set_user_attr("space", text)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params.keys() == space.keys():
            study.enqueue_trial(trial.params)
    return study, storage


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: those with a score, and those stopped early because of a low one."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def given_arguments(arguments: Arguments) -> dict[str, Any]:
    """The arguments that the user has set, as in a recipe, without those of the search."""
    known = {entry.name for kind in KINDS for entry in fields(kind)}
    known -= {entry.name for entry in fields(arguments.search)}
    values = {name: arguments.value(name) for name in sorted(arguments.given & known)}
    plain = json.loads(to_json(values))
    return {name: value for name, value in plain.items() if value is not None}


def write_recipe(values: Mapping[str, Any], folder: Path, metric: str, score: float) -> Path:
    """Writes the recipe of the best trial, with the folder `best` as its output directory."""
    recipe = {**values, "output_dir": str(folder / "best")}
    head = (
        f"# The best trial of {TRIALS_FILE}: {metric} {score:.4f} on the validation clips.\n"
        f"# Run it with: modeling-ast finetune --recipe {folder / RECIPE_FILE}\n"
    )
    path = folder / RECIPE_FILE
    path.write_text(head + yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def write_trials(study: optuna.Study, path: Path, metric: str) -> None:
    """Writes a CSV file with a row for each trial: its state, score, seconds and values."""
    names = sorted({name for trial in study.trials for name in trial.params})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("trial", "state", metric, "seconds", *names))
        for trial in study.trials:
            seconds = "" if trial.duration is None else round(trial.duration.total_seconds(), 1)
            values = (trial.params.get(name, "") for name in names)
            score = "" if trial.value is None else trial.value
            writer.writerow((trial.number, trial.state.name.lower(), score, seconds, *values))


__all__ = ["SearchResult", "default_space", "open_study", "read_space", "search", "suggest"]
