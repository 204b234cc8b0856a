"""Fine-tunes an AST on any data set, with one or several labels per clip.

If clips may have several labels, the loss is the binary cross-entropy and the metric is the mean
average precision (mAP). If each clip has exactly one label, the loss is the cross-entropy and the
metric is the accuracy. The published optimiser, schedule, sampling and averaging of epochs are off
by default; see `arguments.py` and the recipes. The output directory has the model, its extractor
and the files that `results.py` describes, ready for push_to_hub; `average/` has the model with the
averaged weights. If a run is interrupted, run it again: it resumes from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import set_seed

from ..outputs import leaving_no_empty_folder, one_run_at_a_time
from ..strict_json import to_json
from ..tagging import AudioTagger
from .answers import Answers
from .arguments import RUN_FILE, Arguments
from .bad_clip_search import listing_all_bad_clips
from .batches import AudioCollator
from .building import BAD_LIST, build_trainer, load_model, start_line
from .cheap_tuning import as_saved, how_trained, train_a_part
from .choices import GIVEN, Choice, choice_lines
from .classes import check_labels, is_exclusive, read_classes
from .clips import BadClips, ClipReader
from .data_report import DataReport
from .data_sources import Loaded, load
from .held_out import HeldOut
from .kept_weights import (
    VALIDATION,
    Weights,
    all_weights,
    choose_weights,
    judged_by,
    prepare_choice,
    using,
    validation_scores,
)
from .lengths import Lengths, judge_lengths, spread
from .progress import bars_closed
from .results import Judge
from .run_card import CHOSEN_FILE
from .run_record import (
    CLIPS,
    check_not_ended,
    check_same_run,
    deciding_arguments,
    find_resumed,
    has_ended,
    naming_unwritable,
)
from .run_results import evaluate_training_clips, judged_answers, judged_clips, save_run
from .small_data import choose, measure, validation_share
from .trainer import ASTTrainer, output_folder


class Outcome(NamedTuple):
    """The result of a fine-tuning, besides the files in its output directory."""

    trainer: ASTTrainer
    # `eval_*` of the weights that were kept, `last_*`, `best_*` and `average_*` of the others,
    # `training_*` of training clips and, in the first process, `lengths`, the scores on shorter
    # clips.
    metrics: dict[str, Any]
    metric: str  # the main metric, "mAP" or "accuracy"
    data: DataReport  # the report on each file
    choices: list[Choice]  # the weights that were kept and, with --auto, all chosen numbers
    answers: Answers | None  # of the held-out clips; None except in the first process


class Kept(NamedTuple):
    """The weights that a run ends with."""

    metrics: dict[str, float]  # of the held-out clips, and `validation_*` of the validation clips
    weights: Weights
    choice: Choice  # why these weights were chosen


def smooth_in_batches(arguments: Arguments) -> None:
    """Moves label smoothing from Trainer's loss, which cannot smooth mixed labels, to batches."""
    amount = arguments.augmentation.label_smoothing or arguments.training.label_smoothing_factor
    arguments.augmentation = replace(arguments.augmentation, label_smoothing=amount)
    arguments.training.label_smoothing_factor = 0.0


def judge_saved_model(trainer: ASTTrainer, held_out: HeldOut, num_clips: int) -> Lengths:
    """The scores of the saved model under both paddings, on some of the held-out clips."""
    if num_clips == 0:
        return Lengths([], 0, 0.0)
    tagger = AudioTagger.from_pretrained(output_folder(trainer.args), trainer.args.device)
    return judge_lengths(tagger, spread(held_out, num_clips))


def load_divided(arguments: Arguments) -> tuple[Loaded, list[Choice]]:
    """Loads the data; `--auto` takes a split named validation for this, or sets some training clips
    aside if there are enough.

    Returns:
        The data, and the choice that was made for it, if any.
    """
    loaded = load(arguments.data)
    is_divided = loaded.validation is not None or "validation_share" in arguments.given
    if not arguments.auto.auto or is_divided:
        return loaded, []
    assert isinstance(loaded.train, Dataset)  # --auto refuses a stream
    choice = validation_share(len(loaded.train))
    if loaded.validation_split is not None:
        choice = Choice("validation_split", loaded.validation_split, "the data has this split")
    if choice.value is not None:
        arguments.change(choice.name, choice.value)
        loaded = load(arguments.data)
    return loaded, [choice]


def train(
    arguments: Arguments, announce: Callable[[Iterable[str]], None] = lambda lines: None
) -> tuple[ASTTrainer, Judge, Loaded, list[Choice]]:
    """Trains the model that the arguments describe, from its last checkpoint if there is one.

    Args:
        arguments: The arguments of the run. With `auto`, those that are not given are set here.
        announce: Called in the first process before the training, with lines for the user: the
            report on the files, what the run starts from and what was chosen.
    Returns:
        The trainer, the judge of the held-out clips, the data, and what was chosen.
    Raises:
        OSError, ValueError: As `finetune`.
    """
    training = arguments.training
    say = announce if training.process_index == 0 else lambda lines: None
    set_seed(training.seed)
    loaded, choices = load_divided(arguments)
    splits = (loaded.train, loaded.held_out)
    classes = read_classes(arguments.data, *splits)
    check_labels(loaded.report, classes, loaded.train_name, loaded.held_out_name)
    say(loaded.report.lines())
    exclusive = is_exclusive(arguments.data, splits[0])
    with_softmax = arguments.data.loss == "cross_entropy"
    if with_softmax and not exclusive:
        raise ValueError(
            "--loss cross_entropy needs exactly one label per clip, but the label column holds "
            "lists; use --loss bce"
        )
    with_softmax |= arguments.data.loss == "auto" and exclusive
    judge = Judge(classes, exclusive)
    prepare_choice(arguments, judge.metric, loaded.validation is not None)
    if arguments.auto.auto:
        choices += choose(arguments, measure(arguments, loaded.train, exclusive))
    deciding = deciding_arguments(arguments) | {CLIPS: loaded.fingerprint(arguments.data)}
    smooth_in_batches(arguments)
    model, extractor = load_model(arguments.model, classes, with_softmax)
    say([start_line(arguments.model, model), *choice_lines(choices)])
    to_train = train_a_part(model, arguments.cheap)
    resumed = find_resumed(training, to_train)
    if resumed:
        chosen = {choice.name for choice in choices if choice.reason != GIVEN}
        check_same_run(output_folder(training), deciding, chosen, loaded.report.found)
        ended = "; that run has ended, and is only judged again unless it gets more epochs"
        how = ended if has_ended(output_folder(training)) else ""
        say([f"resumes from {resumed}{how}; for a new run give another --output-dir"])
    else:
        check_not_ended(output_folder(training))
        if training.process_index == 0:
            BadClips.of_new_run(output_folder(training) / BAD_LIST, num_clips=1)
    trainer = build_trainer(
        to_train, extractor, classes, splits, arguments, judge, loaded.validation
    )
    if trainer.is_world_process_zero():
        file = output_folder(training) / RUN_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_json(deciding) + "\n", encoding="utf-8")
        loaded.report.save(output_folder(training))
    with judged_by(trainer, trainer.validation_dataset), bars_closed(trainer):
        trainer.train(resume_from_checkpoint=resumed)
    return trainer, judge, loaded, choices


def keep_best_weights(arguments: Arguments, trainer: ASTTrainer, judge: Judge) -> Kept:
    """Evaluates all weights that the run could end with, chooses among them and saves the model.

    The validation clips decide the choice. On the held-out clips the kept weights are evaluated
    last and give `eval_*`; the others give `last_*`, `best_*` and `average_*`, for the record.
    """
    candidates = all_weights(trainer, arguments.sampling)
    validation, metric = trainer.validation_dataset, judge.metric
    scores = {}
    if validation is not None and len(candidates) > 1:
        scores = validation_scores(trainer, candidates, validation, metric)
    num_clips = len(validation or ())
    kept, choice = choose_weights(arguments, candidates, scores, metric, num_clips)
    metrics = {f"{VALIDATION}_{name}_{metric}": score for name, score in scores.items()}
    for weights in candidates:
        if weights is not kept:
            with using(trainer, weights):
                metrics |= trainer.evaluate(metric_key_prefix=weights.name)
    with using(trainer, kept):
        judged = trainer.evaluate()
        # An internal call does not push to the Hub yet: the results must be added first, and some
        # of them are computed from the saved model.
        with as_saved(trainer, arguments.cheap):
            trainer.save_model(_internal_call=True)
    if kept.name == "average":
        metrics |= {
            name.replace("eval_", "average_", 1): value
            for name, value in judged.items()
            if name.startswith("eval_")
        }
    return Kept(judged | metrics, kept, choice)


def finetune(
    arguments: Arguments, announce: Callable[[Iterable[str]], None] = lambda lines: None
) -> Outcome:
    """Trains, evaluates and saves.

    Args:
        arguments: The arguments of the run.
        announce: See `train`.

    With several processes, each process calls this function; the first one writes the files.

    Raises:
        OSError, ValueError: Model or data cannot be read, they do not fit together, or more clips
            than allowed are bad.
    """
    folder = output_folder(arguments.training)
    # The processes of one run share the directory, so the first one locks it for all.
    first = arguments.training.process_index == 0
    lock = one_run_at_a_time if first else nullcontext
    all_bad = listing_all_bad_clips(arguments.data, folder / BAD_LIST, arguments.model.model)
    with leaving_no_empty_folder(folder), lock(folder), naming_unwritable(folder), all_bad:
        return _finetune(arguments, announce)


def _finetune(arguments: Arguments, announce: Callable[[Iterable[str]], None]) -> Outcome:
    trainer, judge, loaded, choices = train(arguments, announce)
    trained = how_trained(trainer.model, arguments.cheap)
    metrics, weights, choice = keep_best_weights(arguments, trainer, judge)
    choices.append(choice)
    answers = None
    # From here on the trainer evaluates and saves the kept weights.
    with using(trainer, weights), as_saved(trainer, arguments.cheap):
        held_out = judged_clips(trainer, judge, arguments.data)
        if trainer.is_world_process_zero():
            answers = judged_answers(trainer, judge, held_out)
        metrics |= evaluate_training_clips(trainer)
        if answers is not None:
            described = (choices, trained)
            metrics |= write_results(arguments, trainer, answers, held_out, metrics, *described)
            loaded.skip_bad_clips(*listed_bad_clips(trainer), arguments.data)
            loaded.report.save(output_folder(trainer.args))
        # With --push-to-hub this uploads the whole folder, except the checkpoints.
        trainer.save_model()
    return Outcome(trainer, metrics, judge.metric, loaded.report, choices, answers)


def write_results(
    arguments: Arguments,
    trainer: ASTTrainer,
    answers: Answers,
    held_out: HeldOut,
    metrics: dict[str, Any],
    choices: list[Choice],
    trained: str,
) -> dict[str, Any]:
    """Writes the results of a run beside the weights.

    Args:
        answers: The scores of the kept weights on the clips `held_out`.
        choices: What the run chose itself.
        trained: A sentence that says which weights were trained.
    Returns:
        The value that guessing would reach, and the metrics of shorter clips.
    """
    data = arguments.data.data
    assert data is not None  # it has been read
    lengths = judge_saved_model(trainer, held_out, arguments.lengths.length_clips)
    more: dict[str, Any] = {"eval_chance": answers.headline.chance}
    if lengths.results:
        more["lengths"] = lengths.as_json(answers.metric)
    if len(choices) > 1 or trainer.validation_dataset is not None:
        rows = [choice._asdict() for choice in choices]
        chosen = output_folder(trainer.args) / CHOSEN_FILE
        chosen.write_text(to_json(rows) + "\n", encoding="utf-8")
    sources = (arguments.model.source, data)
    page_clips = arguments.results.worst_clips
    save_run(trainer, answers, held_out, sources, metrics | more, lengths, page_clips, trained)
    return more


def listed_bad_clips(trainer: ASTTrainer) -> tuple[dict[str, str], ClipReader]:
    """The clips that could not be decoded, name -> reason, and the reader that named them."""
    collate = trainer.eval_collator
    assert isinstance(collate, AudioCollator)  # from `build_trainer`
    bad = BadClips(output_folder(trainer.args) / BAD_LIST, num_clips=1).read()
    return bad, collate.reader


__all__ = ["Kept", "Outcome", "finetune", "keep_best_weights", "train"]
