"""The results of a fine-tuning: the scores of its held-out clips, and its output files."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from ..labels import activation
from ..strict_json import to_json
from .answers import Answers
from .arguments import METRICS_FILE, ResultArguments
from .batches import AudioCollator
from .clips import drop_bad_clips
from .data_arguments import DataArguments
from .grouping import groups_of
from .held_out import HeldOut, held_out_clips
from .length_report import LENGTH_PICTURE, draw_lengths
from .lengths import Lengths, spread_numbers
from .result_plots import draw_curve
from .results import Judge, save_results
from .run_card import run_card
from .trainer import ASTTrainer, output_folder

# Largest number of training clips that are evaluated at the end, to compare with held-out ones.
MOST_TRAINING_CLIPS = 200


def judged_clips(trainer: ASTTrainer, judge: Judge, data: DataArguments) -> HeldOut:
    """The held-out clips of a run with their labels and groups; no audio is read."""
    clips, collate = trainer.eval_dataset, trainer.eval_collator
    assert isinstance(clips, Dataset) and isinstance(collate, AudioCollator)  # `build_trainer`
    return held_out_clips(
        clips,
        collate.reader,
        judge.classes,
        collate.label_column,
        judge.exclusive,
        groups_of(clips, data),
    )


def judged_answers(trainer: ASTTrainer, judge: Judge, held_out: HeldOut) -> Answers:
    """The scores of the held-out clips; call it right after their evaluation."""
    return judge.answers(held_out, activation("auto", trainer.model.config) == "sigmoid")


def evaluate_training_clips(trainer: ASTTrainer) -> dict[str, float]:
    """The metrics of some of the training clips, as `training_*`; empty for a stream.

    These clips are evaluated like the held-out ones, without augmentation. A model that does much
    better on them has memorised them. As many clips are used as are held out, but at most
    `MOST_TRAINING_CLIPS`, evenly spread over the set.
    """
    clips, collate = trainer.train_dataset, trainer.data_collator
    if not isinstance(clips, Dataset) or not isinstance(collate, AudioCollator):
        return {}
    held_out = trainer.eval_dataset
    assert isinstance(held_out, Dataset)  # from `build_trainer`
    count = min(len(held_out), MOST_TRAINING_CLIPS)
    few = clips.select(spread_numbers(len(clips), count))
    if collate.bad_clips is not None:
        few = drop_bad_clips(few, collate.reader, collate.bad_clips)
    return trainer.evaluate(few, metric_key_prefix="training") if len(few) else {}


def save_run(
    trainer: ASTTrainer,
    answers: Answers,
    held_out: HeldOut,
    sources: tuple[str, str],
    metrics: dict[str, Any],
    lengths: Lengths,
    page_clips: int = ResultArguments.worst_clips,
    how_trained: str = "",
) -> None:
    """Writes everything but the weights into the output directory.

    Args:
        trainer: The trainer of the run.
        answers: Clip i is row i of `held_out`.
        held_out: From `judged_clips`.
        sources: The base model and the data, as they were given.
        metrics: `eval_*`, `training_*`, `average_*` if weights were averaged, and `lengths`.
        lengths: From `lengths.judge_lengths`.
        page_clips: Number of clips on the page of the worst mistakes; 0: no page.
        how_trained: A sentence that says which weights were trained.
    """
    folder = output_folder(trainer.args)
    assert trainer.extractor is not None  # from `build_trainer`
    (folder / METRICS_FILE).write_text(to_json(metrics) + "\n", encoding="utf-8")
    history, chance = trainer.state.log_history, answers.headline.chance
    draw_curve(history, folder / "learning_curve.png", answers.metric, chance)
    if lengths.results:
        draw_lengths({folder.name: lengths}, answers.metric, folder / LENGTH_PICTURE)
    save_results(folder, answers, held_out, trainer.extractor, folder.name, page_clips)
    card = run_card(folder, sources, metrics, answers, trainer, lengths, how_trained)
    (folder / "README.md").write_text(card, encoding="utf-8")


__all__ = [
    "evaluate_training_clips",
    "judged_answers",
    "judged_clips",
    "save_run",
]
