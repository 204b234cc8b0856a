"""calibration.json: makes scores readable as probabilities, and has a threshold for each label.

The file is in the model's folder; plain transformers ignores it. `AudioTagger` applies it if it
exists; `training/calibrating.py` makes it, from clips that the model was not trained on. A score p
becomes sigmoid(slope * logit(p) + intercept): temperature scaling has one slope for all labels and
no intercept, Platt scaling has both for each label. Softmax scores have a temperature only:
p ** slope, divided by the sum over the labels.
Source: Guo et al., "On calibration of modern neural networks", 2017; Platt, "Probabilistic outputs
for support vector machines", 1999.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import cached_file

from .errors import one_line
from .strict_json import to_json

CALIBRATION_FILE = "calibration.json"
METHODS = ("temperature", "platt")
# What a journal of results states instead of the fingerprint of a calibration, and the flag that
# gives the same scores.
NO_CALIBRATION = "none"
SAME_CALIBRATION = "the same calibration.json, or the same --no-calibration"
# Scores of 0 and 1 have no logit and are moved by this much, the least distance of a sigmoid from 1
# in float64.
LEAST_SCORE = 2.0**-53


@dataclass(frozen=True)
class LabelCalibration:
    """The calibration of one label."""

    threshold: float  # the lowest calibrated score with which the label counts
    slope: float
    intercept: float
    positives: int  # clips with the label, among those that this was fitted to
    fallback: bool = False  # whether there were too few, so that it has the values of all labels


@dataclass(frozen=True)
class Calibration:
    """The content of calibration.json.

    Args:
        labels: By name, in the model's order.
        method: One of `METHODS`.
        criterion: What the thresholds were chosen for, such as "best F1".
        activation: Of the scores, "sigmoid" or "softmax".
        padding: Of the clips that this was fitted to.
        num_clips: Their number.
        data: Their source, and a fingerprint of the clips with their labels.
    """

    labels: Mapping[str, LabelCalibration]
    method: str
    criterion: str
    activation: str
    padding: str
    num_clips: int
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def thresholds(self) -> np.ndarray:
        """(C,), of calibrated scores."""
        return np.array([label.threshold for label in self.labels.values()])

    @property
    def fingerprint(self) -> str:
        """A hash of everything that changes scores or thresholds."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """The calibrated scores (..., C) of scores (..., C), in the model's order."""
        slopes = np.array([label.slope for label in self.labels.values()])  # (C,)
        intercepts = np.array([label.intercept for label in self.labels.values()])
        if self.activation == "softmax":
            powers = np.maximum(scores, LEAST_SCORE) ** slopes  # (..., C)
            return powers / powers.sum(-1, keepdims=True)
        return sigmoid(slopes * logit(scores) + intercepts)

    def relative(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated scores (..., C) moved so that each label's threshold becomes 0.5."""
        return sigmoid(logit(scores) - logit(self.thresholds))

    def to_json(self) -> str:
        """The text of calibration.json: strict JSON."""
        return to_json(asdict(self)) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Writes calibration.json into a model's folder."""
        path = Path(folder) / CALIBRATION_FILE
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def from_json(cls, text: str, name: str = CALIBRATION_FILE) -> Calibration:
        """Reads the text of calibration.json.

        Raises:
            ValueError: The text is something else.
        """
        try:
            fields = json.loads(text)
            labels = {
                label: LabelCalibration(**values) for label, values in fields.pop("labels").items()
            }
            calibration = cls(labels, **fields)
            calibration._check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} is not a calibration ({one_line(error)}); make it again with modeling-ast "
                f"calibrate, or leave it out with --no-calibration (calibration=False)"
            ) from error
        return calibration

    def _check(self) -> None:
        if self.method not in METHODS or self.activation not in ("sigmoid", "softmax"):
            raise ValueError(f"method is {self.method!r}, activation {self.activation!r}")
        for name, label in self.labels.items():
            numbers = (label.threshold, label.slope, label.intercept)
            if not (all(map(math.isfinite, numbers)) and 0 < label.threshold <= 1):
                raise ValueError(f"the label {name!r} has the numbers {numbers}")


def load_calibration(
    model: str | Path, labels: Sequence[str], activation: str
) -> Calibration | None:
    """The calibration of a checkpoint, if it has one.

    Args:
        model: Name on the Hub, or a directory.
        labels: Those of the model, in its order.
        activation: Of its scores; a calibration for the other activation is not used.
    Raises:
        ValueError: calibration.json is something else, or belongs to another model.
    """
    path = Path(model) / CALIBRATION_FILE
    if not Path(model).is_dir():
        found = _on_the_hub(str(model))
        if found is None:
            return None
        path = Path(found)
    if not path.is_file():
        return None
    calibration = Calibration.from_json(path.read_text(encoding="utf-8"), str(path))
    if list(calibration.labels) != list(labels):
        raise ValueError(
            f"{path} is of another model: its labels are {list(calibration.labels)[:3]}, ..., "
            f"those of the model {list(labels)[:3]}, ...; make it again with modeling-ast "
            f"calibrate, or leave it out with --no-calibration (calibration=False)"
        )
    return calibration if calibration.activation == activation else None


def fingerprint_of(calibration: Calibration | None) -> str:
    """What journals of results state: the fingerprint, or that there is no calibration."""
    return NO_CALIBRATION if calibration is None else calibration.fingerprint


def _on_the_hub(model: str) -> str | None:
    return cached_file(
        model,
        CALIBRATION_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def logit(scores: Any) -> np.ndarray:
    """log(p / (1 - p)), float64; finite for scores of 0 and 1 too."""
    p = np.clip(np.asarray(scores, np.float64), LEAST_SCORE, 1 - LEAST_SCORE)
    return np.log(p) - np.log1p(-p)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


__all__ = [
    "CALIBRATION_FILE",
    "METHODS",
    "NO_CALIBRATION",
    "SAME_CALIBRATION",
    "Calibration",
    "LabelCalibration",
    "fingerprint_of",
    "load_calibration",
    "logit",
    "sigmoid",
]
