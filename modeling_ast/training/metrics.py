"""The metrics of audio tagging: mAP, mAUC and d-prime over classes, AP of each class, accuracy.

Follows Gong et al. 2021, section 3.1, and the AudioSet evaluation before it (Gemmeke et al. 2017):
macro means over classes, of scikit-learn's average precision and ROC AUC. Both are undefined for a
class without a positive clip, or without a negative one: such a class is left out of every mean,
and the number of those left out is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import EvalPrediction

# The label of a clip that metrics ignore, as torch's cross entropy does.
IGNORED = -100
# Bins of the expected calibration error, of equal width, as in Guo et al. 2017.
NUM_BINS = 15


class ClassResult(NamedTuple):
    """A row of the per-class table; NaN where a number is undefined."""

    name: str
    average_precision: float
    auc: float
    positives: int
    # Of the labels found by a threshold or by the highest score; NaN if these were not given.
    precision: float = math.nan
    recall: float = math.nan
    f1: float = math.nan


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class: precision at each score, weighted by the recall it adds.

    Clips of equal score are ranked together.

    Args:
        scores: (B, C), float32 or float64; higher is likelier. Any increasing function of the
            probability will do; logits are better than sigmoids, which round to 1.
        targets: (B, C), 1 where the clip has the label, else 0.
    Returns:
        (C,), float64, in [0, 1]; NaN for a class without a positive or without a negative clip.
    Raises:
        ValueError: The shapes differ, or values are not as above.
    Source: scikit-learn's average_precision_score.
    """
    return _of_defined_classes(average_precision_score, scores, targets)


def areas_under_roc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class: how often a positive clip outranks a negative one.

    Args, Returns, Raises: as `average_precisions`.
    Source: scikit-learn's roc_auc_score; a tie counts as half.
    """
    return _of_defined_classes(roc_auc_score, scores, targets)


def _of_defined_classes(metric: Callable, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """scikit-learn's metric of each class (C,), NaN where it is undefined."""
    scores, targets = _checked(scores, targets)
    # scikit-learn refuses infinity, such as the logarithm of 0; nan_to_num keeps the order.
    scores = np.nan_to_num(scores)
    positives = targets.sum(axis=0)
    defined = (positives > 0) & (positives < len(targets))
    result = np.full(len(defined), np.nan)
    if defined.any():
        # Not targets[:, defined], which is stored by columns: scikit-learn would copy the whole
        # array for each class.
        targets, scores = targets.compress(defined, axis=1), scores.compress(defined, axis=1)
        result[defined] = metric(targets, scores, average=None)
    return result


def d_prime(mean_auc: float) -> float:
    """sqrt(2) times the normal quantile of the mean AUC; infinite for a perfect one."""
    if math.isnan(mean_auc):
        return math.nan
    if mean_auc in (0.0, 1.0):
        return math.copysign(math.inf, mean_auc - 0.5)
    return math.sqrt(2.0) * NormalDist().inv_cdf(mean_auc)


def accuracy(scores: np.ndarray, classes: np.ndarray) -> float:
    """Share of the clips that have their highest score at their class.

    Args:
        scores: (B, C).
        classes: (B,), class indices.
    """
    return float((np.asarray(scores).argmax(axis=1) == np.asarray(classes)).mean())


def tagging_metrics(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Macro means over the classes that are defined.

    Args:
        scores, targets: (B, C); see `average_precisions`.
    Returns:
        "mAP", "mAUC", "d_prime" (NaN if no class is defined) and "undefined_classes", a count.
    Raises:
        ValueError: See `average_precisions`.
    """
    precisions = average_precisions(scores, targets)
    defined = ~np.isnan(precisions)
    areas = areas_under_roc(scores, targets)
    mean_auc = float(areas[defined].mean()) if defined.any() else math.nan
    return {
        "mAP": float(precisions[defined].mean()) if defined.any() else math.nan,
        "mAUC": mean_auc,
        "d_prime": d_prime(mean_auc),
        "undefined_classes": int((~defined).sum()),
    }


def precision_recall_f1(
    found: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class.

    Args:
        found: (B, C), 1 where the model gives a clip the label, else 0.
        targets: (B, C), 1 where the clip has the label, else 0.
    Returns:
        Three arrays (C,), in [0, 1]. The precision is NaN for a class that was never found, the
        recall for a class that no clip has, and the F1 if both is the case.
    Source: scikit-learn's precision_recall_fscore_support with zero_division=nan.
    """
    found, targets = np.asarray(found).astype(bool), np.asarray(targets).astype(bool)
    hits, num_found, positives = (found & targets).sum(0), found.sum(0), targets.sum(0)
    with np.errstate(invalid="ignore"):
        return hits / num_found, hits / positives, 2 * hits / (num_found + positives)


def class_table(
    scores: np.ndarray, targets: np.ndarray, names: Sequence[str], found: np.ndarray | None = None
) -> list[ClassResult]:
    """AP, AUC and, if `found` is given, precision, recall and F1 of each class.

    Args:
        scores, targets: (B, C); see `average_precisions`.
        names: C names, in the order of the model's labels.
        found: (B, C), 1 where the model gives a clip the label, else 0.
    Raises:
        ValueError: The number of names is not C; see also `average_precisions`.
    """
    precisions = average_precisions(scores, targets)
    if len(names) != len(precisions):
        raise ValueError(
            f"got {len(names)} names for {len(precisions)} classes; give one for each, in order"
        )
    areas = areas_under_roc(scores, targets)
    counts = np.asarray(targets).sum(axis=0)
    answers = np.full((3, len(names)), math.nan)
    if found is not None:
        answers = np.stack(precision_recall_f1(found, targets))
    rows = zip(names, precisions, areas, counts, answers.T.tolist())
    return [
        ClassResult(name, float(ap), float(auc), int(n), *rest) for name, ap, auc, n, rest in rows
    ]


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """For `Trainer(compute_metrics=...)`: the metrics that the labels allow.

    Clips with the label -100 (in all entries, if labels are multi-hot) are ignored.

    Args:
        prediction: Logits (B, C), and class indices (B,) or multi-hot labels (B, C).
    Returns:
        As `tagging_metrics`, and with class indices "accuracy" first; the clips' scores are then
        their softmax probabilities.
    """
    logits = prediction.predictions
    # A model that returns hidden states or attentions too gives a tuple, the logits first.
    logits = logits[0] if isinstance(logits, tuple) else logits
    labels = np.asarray(prediction.label_ids)
    return _metrics(_wide(logits), labels)


def _metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    judged = (labels != IGNORED).reshape(len(labels), -1).any(axis=1)
    logits, labels = logits[judged], labels[judged]
    if labels.ndim == 2:
        return tagging_metrics(logits, labels)
    result = {"accuracy": accuracy(logits, labels)}
    # In float64, because a softmax in float32 rounds high probabilities to 1, which makes ties.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    one_hot = np.eye(logits.shape[1])[labels.astype(np.int64)]
    return result | tagging_metrics(log_softmax, one_hot)


def _wide(scores: np.ndarray) -> np.ndarray:
    """The scores in float32 or float64, because half precision makes ties."""
    scores = np.asarray(scores)
    return scores if scores.dtype == np.float64 else scores.astype(np.float32)


def _checked(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = _wide(scores), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape or 0 in scores.shape:
        raise ValueError(
            f"scores have shape {scores.shape} and targets {targets.shape}; both must be (clips, "
            f"classes), with at least one of each"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} clips have NaN as a "
            f"score; scores must be numbers, so check whether the loss has diverged"
        )
    if not np.isin(targets, (0, 1)).all():
        raise ValueError(
            f"targets hold {np.unique(targets)[:5]}; they must be 0 or 1, without mixup or "
            f"label smoothing"
        )
    return scores, targets.astype(np.int64)


class AudioTaggingMetric(evaluate.Metric):
    """mAP, mAUC, d-prime and, with class indices, accuracy, as an `evaluate.Metric`.

    Used directly it needs no network: `AudioTaggingMetric().compute(predictions=logits,
    references=labels)`, or `add_batch` and then `compute()`.
    """

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.Sequence(datasets.Value("float32"))
        several = datasets.Features(
            {"predictions": scores, "references": datasets.Sequence(datasets.Value("int64"))}
        )
        one = datasets.Features({"predictions": scores, "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description="Macro means over classes of average precision and ROC AUC; d-prime.",
            citation="Gong, Chung, Glass: AST: Audio Spectrogram Transformer. Interspeech 2021.",
            inputs_description="predictions: logits (clips, classes). references: class indices "
            "(clips,) or multi-hot labels (clips, classes).",
            features=[several, one],
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return _metrics(_wide(predictions), np.asarray(references))


def threshold_metrics(
    scores: np.ndarray, targets: np.ndarray, thresholds: np.ndarray
) -> dict[str, float]:
    """The quality of scores (B, C) and thresholds (C,).

    Returns:
        F1, the macro mean over the labels that some clip has; ECE, the expected calibration error
        of all scores of all labels.
    """
    found = scores >= thresholds
    hits = (found & (targets == 1)).sum(0)
    present = targets.sum(0) > 0
    f1 = 2 * hits / np.maximum(1, found.sum(0) + targets.sum(0))
    return {
        "F1": float(f1[present].mean()) if present.any() else float("nan"),
        "ECE": expected_calibration_error(scores, targets),
    }


def expected_calibration_error(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean difference of score and frequency in bins of equal width, weighted by their counts.

    Source: Guo et al. 2017, section 2.
    """
    bins = np.minimum((scores.ravel() * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = np.bincount(bins, scores.ravel() - targets.ravel(), NUM_BINS)
    return float(np.abs(gaps).sum() / scores.size)


__all__ = [
    "AudioTaggingMetric",
    "ClassResult",
    "accuracy",
    "areas_under_roc",
    "average_precisions",
    "class_table",
    "compute_metrics",
    "d_prime",
    "expected_calibration_error",
    "precision_recall_f1",
    "tagging_metrics",
    "threshold_metrics",
]
