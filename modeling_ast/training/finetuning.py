"""Fine-tunes an AST on any data set, with one or several labels to a clip.

Clips with several labels are learned with the binary cross-entropy and judged by the mean average
precision (mAP); clips with exactly one label are learned with the cross-entropy and judged by the
accuracy. The published optimiser, schedule, sampling and averaging of epochs are off unless asked
for, see `arguments.py` and the recipes. The output directory has the model, its extractor and what
`results.py` describes, ready for push_to_hub; `average/` has the model of the averaged weights. If
a run is interrupted, run it again: it resumes from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

from torch import nn
from transformers import set_seed

from ..outputs import one_run_at_a_time
from ..pretrained import load_model as load_pretrained
from ..strict_json import to_json
from ..tagging import AudioTagger
from .arguments import RUN_FILE, Arguments
from .batches import AudioCollator
from .building import BAD_LIST, build_trainer, load_model
from .cheap_tuning import before_saving, train_a_part
from .classes import check_labels, is_exclusive, read_classes
from .clips import BadClips
from .data_report import DataReport
from .data_sources import Loaded, load
from .held_out import held_out_clips
from .lengths import Lengths, judge_lengths, spread
from .results import Judge, save_results
from .run_record import check_same_run, deciding_arguments, find_resumed, naming_unwritable
from .trainer import ASTTrainer, output_folder


class Outcome(NamedTuple):
    """What a fine-tuning gives, beside the files in its output directory."""

    trainer: ASTTrainer
    # `eval_*` of the model, `average_*` of the averaged weights and, in the first process, the
    # scores under both paddings.
    metrics: dict[str, float]
    metric: str  # the one that the run is judged by, "mAP" or "accuracy"
    data: DataReport  # what became of each file


def smooth_in_loss(arguments: Arguments) -> None:
    """Leaves label smoothing to Trainer's loss, which can smooth class indices."""
    amount = arguments.augmentation.label_smoothing
    arguments.training.label_smoothing_factor = amount or arguments.training.label_smoothing_factor
    arguments.augmentation = replace(arguments.augmentation, label_smoothing=0.0)


def evaluate_average(trainer: ASTTrainer) -> dict[str, float]:
    """The metrics of the averaged weights, as `average_*`."""
    trainer.accelerator.wait_for_everyone()
    trained, wrapped = trainer.model, trainer.model_wrapped
    folder = output_folder(trainer.args) / "average"
    average = load_pretrained(folder)
    # transformers wraps `to` without its types.
    module: nn.Module = average
    module.to(trainer.args.device)
    trainer.model = trainer.model_wrapped = average
    try:
        return trainer.evaluate(metric_key_prefix="average")
    finally:
        trainer.model, trainer.model_wrapped = trained, wrapped


def judge_saved_model(trainer: ASTTrainer, judge: Judge, num_clips: int) -> Lengths:
    """The scores of the saved model under both paddings, on some of the held-out clips."""
    if num_clips == 0:
        return Lengths([], 0)
    collate = trainer.eval_collator
    assert isinstance(collate, AudioCollator)  # from `build_trainer`
    held_out = held_out_clips(
        trainer.eval_dataset, collate.reader, judge.classes, collate.label_column, judge.exclusive
    )
    tagger = AudioTagger.from_pretrained(output_folder(trainer.args), trainer.args.device)
    return judge_lengths(tagger, spread(held_out, num_clips))


def train(
    arguments: Arguments, announce: Callable[[DataReport], None] = lambda report: None
) -> tuple[ASTTrainer, Judge, Loaded]:
    """Trains the model that the arguments describe, from its last checkpoint if there is one.

    Args:
        arguments: Of the run.
        announce: Is given what became of each file, in the first process, before the training.
    Returns:
        The trainer, the judge of the held-out clips, and the data.
    Raises:
        OSError, ValueError: As `finetune`.
    """
    training = arguments.training
    deciding = deciding_arguments(arguments)
    set_seed(training.seed)
    loaded = load(arguments.data)
    splits = (loaded.train, loaded.held_out)
    classes = read_classes(arguments.data, *splits)
    check_labels(loaded.report, classes, loaded.train_name, loaded.held_out_name)
    if training.process_index == 0:
        announce(loaded.report)
    exclusive = is_exclusive(arguments.data, splits[0])
    with_softmax = arguments.data.loss == "cross_entropy"
    if with_softmax and not exclusive:
        raise ValueError("--loss cross_entropy needs exactly one label to a clip; use bce")
    with_softmax |= arguments.data.loss == "auto" and exclusive
    if with_softmax:
        smooth_in_loss(arguments)
    model, extractor = load_model(arguments.model, classes, with_softmax)
    trained = train_a_part(model, arguments.cheap)
    resumed = find_resumed(training, trained)
    if resumed:
        check_same_run(output_folder(training), deciding)
    elif training.process_index == 0:
        # The clips that an earlier run listed may have been mended or removed since.
        (output_folder(training) / BAD_LIST).unlink(missing_ok=True)
    judge = Judge(classes, exclusive)
    trainer = build_trainer(trained, extractor, classes, splits, arguments, judge)
    if trainer.is_world_process_zero():
        file = output_folder(training) / RUN_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_json(deciding) + "\n", encoding="utf-8")
        loaded.report.save(output_folder(training))
    trainer.train(resume_from_checkpoint=resumed)
    return trainer, judge, loaded


def finetune(
    arguments: Arguments, announce: Callable[[DataReport], None] = lambda report: None
) -> Outcome:
    """Trains, evaluates and saves.

    Args:
        arguments: Of the run.
        announce: See `train`.

    With several processes each of them calls it; the first one writes the files.

    Raises:
        OSError, ValueError: Model or data cannot be read, they do not fit together, or more clips
            than allowed are bad.
    """
    folder = output_folder(arguments.training)
    folder.mkdir(parents=True, exist_ok=True)
    # The processes of one run share the directory: the first locks it for all.
    first = arguments.training.process_index == 0
    with one_run_at_a_time(folder) if first else nullcontext(), naming_unwritable(folder):
        return _finetune(arguments, announce)


def _finetune(arguments: Arguments, announce: Callable[[DataReport], None]) -> Outcome:
    trainer, judge, loaded = train(arguments, announce)
    metrics = trainer.evaluate()
    table = judge.table
    if arguments.sampling.average_from is not None:
        metrics |= evaluate_average(trainer)
    trained = before_saving(trainer, arguments.cheap)
    # Not pushed yet: what follows belongs to it, and reads it.
    trainer.save_model(_internal_call=True)
    if trainer.is_world_process_zero():
        data = arguments.data.data
        assert data is not None  # it has been read
        sources = (arguments.model.source, data)
        lengths = judge_saved_model(trainer, judge, arguments.lengths.length_clips)
        metrics |= lengths.as_metrics(judge.metric)
        save_results(trainer, judge, table, sources, metrics, lengths, trained)
        folder, collate = output_folder(trainer.args), trainer.eval_collator
        assert isinstance(collate, AudioCollator)  # from `build_trainer`
        bad = BadClips(folder / BAD_LIST, num_clips=1).read()
        loaded.skip_bad_clips(bad, collate.reader, arguments.data)
        loaded.report.save(folder)
    # With --push-to-hub this uploads the whole folder, but for the checkpoints.
    trainer.save_model()
    return Outcome(trainer, metrics, judge.metric, loaded.report)


__all__ = ["Outcome", "evaluate_average", "finetune", "train"]
