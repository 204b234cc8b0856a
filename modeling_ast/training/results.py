"""Writes the result files: of a fine-tuning, beside the model, or of `evaluate`, on their own.

`results.json` has all figures; `per_class.csv` and `per_class_ap.png` or `per_class_f1.png` show
each class; `confusions.csv` and, for 2 to 50 classes with one label per clip, `confusion.png` show
which labels are confused; `worst_clips.csv` and `worst_clips.html` show the clips with the worst
mistakes. A fine-tuning adds `metrics.json`, `learning_curve.png` and its card; Trainer adds its
checkpoints and the TensorBoard log (`runs/`, for `tensorboard --logdir`).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import Label
from ..strict_json import to_json
from . import worst_clips
from .answers import DEFAULT_THRESHOLD, Answers
from .arguments import ResultArguments
from .held_out import HeldOut
from .intervals import CONFIDENCE
from .metrics import ClassResult, accuracy, compute_metrics
from .result_plots import MATRIX_CLASSES, draw_classes, draw_matrix

WORST_TABLE, WORST_PAGE = "worst_clips.csv", "worst_clips.html"
CONFUSION_PICTURE = "confusion.png"
CLASS_PICTURES = {"average_precision": "per_class_ap.png", "f1": "per_class_f1.png"}
# Number of the most frequent confusions in results.json; confusions.csv has all.
NAMED_CONFUSIONS = 20


class Judge:
    """`compute_metrics` for Trainer; it keeps the logits of the last evaluation.

    Args:
        classes: In the order of their indices.
        exclusive: Whether a clip has exactly one label. Then accuracy is the first metric, even if
            the labels are multi-hot.
    """

    def __init__(self, classes: Sequence[Label], exclusive: bool):
        self.classes = classes
        self.exclusive = exclusive
        self._logits = np.empty((0, len(classes)))  # (B, C)
        self._targets = np.empty((0, len(classes)))  # (B, C), zeros and ones

    @property
    def metric(self) -> str:
        """The main metric of the run."""
        return "accuracy" if self.exclusive else "mAP"

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        metrics = compute_metrics(prediction)
        one_hot = labels if labels.ndim == 2 else np.eye(len(self.classes))[labels]
        self._logits, self._targets = logits.astype(np.float64), one_hot
        if labels.ndim == 2 and self.exclusive:
            metrics = {"accuracy": accuracy(logits, labels.argmax(1))} | metrics
        return metrics

    def answers(self, held_out: HeldOut, sigmoid: bool) -> Answers:
        """The scores of the last evaluation, with everything that is needed to judge them.

        Args:
            held_out: The clips of that evaluation.
            sigmoid: Whether scores are sigmoids of the logits; else they are softmaxes.
        """
        # It fails only by our own mistake: other clips, or these in another order.
        assert np.array_equal(self._targets, held_out.targets)
        return answers_of(held_out, scores_of(self._logits, sigmoid))


def scores_of(logits: np.ndarray, sigmoid: bool) -> np.ndarray:
    """Logits (B, C) -> probabilities (B, C), in float64: float32 would round high ones to 1."""
    logits = logits.astype(np.float64)
    if sigmoid:
        return np.exp(-np.logaddexp(0, -logits))
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def answers_of(
    held_out: HeldOut, scores: np.ndarray, thresholds: np.ndarray | float = DEFAULT_THRESHOLD
) -> Answers:
    """The scores of held-out clips as `Answers`, with the names of the files.

    Args:
        scores: (clips, C), probabilities in the order of the data's classes.
        thresholds: See `Answers`.
    """
    names = [label.name for label in held_out.classes]
    columns = held_out.clips.select_columns(held_out.reader.audio_column)
    root = held_out.reader.root
    files = [name_below(root, held_out.reader.name(row)) for row in columns]
    return Answers(
        scores,
        held_out.targets,
        names,
        held_out.exclusive,
        files,
        thresholds,
        held_out.groups,
    )


def name_below(root: Path | None, name: str) -> str:
    """The name of a clip relative to the folder of the data, if it is a file inside it.

    Results are pushed with the model, and need not show where the data was stored.
    """
    if root is None:
        return name
    path, folder = os.path.abspath(name), os.path.abspath(root)
    return os.path.relpath(path, folder) if path.startswith(folder + os.sep) else name


def save_results(
    folder: Path,
    answers: Answers,
    held_out: HeldOut,
    extractor: ASTFeatureExtractor,
    model: str,
    page_clips: int = ResultArguments.worst_clips,
) -> None:
    """Writes the files that every evaluation has, and removes those of an earlier one.

    Args:
        folder: Must exist.
        answers: Clip i is row i of `held_out`.
        held_out: The clips of the page are read from it.
        extractor: The extractor of the model.
        model: Name of the model, for the page.
        page_clips: Largest number of clips on the page; 0: no page.
    """
    for name in (*CLASS_PICTURES.values(), CONFUSION_PICTURE, WORST_PAGE):
        (folder / name).unlink(missing_ok=True)
    (folder / "results.json").write_text(to_json(results_json(answers)) + "\n", encoding="utf-8")
    write_table(answers.classes, folder / "per_class.csv")
    draw_classes(
        answers.classes, folder / CLASS_PICTURES[answers.class_metric], answers.class_metric
    )
    write_confusions(answers, folder / "confusions.csv")
    if answers.exclusive and len(answers.names) in MATRIX_CLASSES:
        draw_matrix(answers.matrix, answers.names, folder / CONFUSION_PICTURE)
    worst_clips.write_table(answers, folder / WORST_TABLE)
    if answers.mistakes and page_clips:
        page = worst_clips.worst_page(answers, held_out, extractor, page_clips, model)
        (folder / WORST_PAGE).write_text(page.html, encoding="utf-8")


def results_json(answers: Answers) -> dict[str, Any]:
    """The figures, for `results.json` and `--json`."""
    headline = answers.headline
    return {
        "metric": headline.metric,
        "value": headline.value,
        "confidence": CONFIDENCE,
        "low": headline.interval.low,
        "high": headline.interval.high,
        "chance": headline.chance,
        "majority": headline.majority,
        "clips": headline.num_clips,
        "groups": headline.num_groups,
        "wrong_clips": len({row.clip for row in answers.mistakes}),
        "classes": [row._asdict() for row in answers.classes],
        "confusions": [row._asdict() for row in answers.confusions[:NAMED_CONFUSIONS]],
    }


def write_table(table: Sequence[ClassResult], path: Path) -> None:
    """Writes a CSV file with a row for each class; undefined numbers are left empty."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("index", *ClassResult._fields))
        for index, row in enumerate(table):
            cells = ("" if value != value else value for value in row)
            writer.writerow((index, *cells))


def write_confusions(answers: Answers, path: Path) -> None:
    """Writes a CSV file with a row for each pair of labels that the model confuses."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("true", "predicted", "clips", "positives"))
        writer.writerows(answers.confusions)


__all__ = [
    "CLASS_PICTURES",
    "CONFUSION_PICTURE",
    "WORST_PAGE",
    "WORST_TABLE",
    "Judge",
    "answers_of",
    "name_below",
    "results_json",
    "save_results",
    "scores_of",
    "write_table",
]
