"""Judges a model, or an ensemble of models, on held-out clips.

Models may differ in stride, length, rate and in the order of their labels, which are matched by
name. An ensemble is the mean of the models' probabilities: sigmoids where a clip may have several
labels, as published, else softmaxes. Source: Gong et al. 2021, section 3.1 (Ensemble-S,
Ensemble-M).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from ..configuration_ast import ASTConfig
from ..errors import one_line
from ..labels import SCORES, Label, activation
from .arguments import PADDINGS
from .averaging import ensemble_probabilities
from .batches import AudioCollator, LabelEncoder
from .clips import BadClips, ClipReader, drop_bad_clips
from .data_sources import DataArguments, is_exclusive, label_column, load_part, read_classes
from .metrics import ClassResult, accuracy, class_table, tagging_metrics


@dataclass
class EvaluationArguments:
    """How the models are run."""

    scores: str = field(
        default="auto",
        metadata={
            "help": "auto: what each model's config says; sigmoid for AudioSet's 527 classes",
            "choices": SCORES,
        },
    )
    padding: str | None = field(
        default=None,
        metadata={
            "help": "how clips are padded: to max_length, or to the longest of a batch; by "
            "default as each model's extractor was saved",
            "choices": PADDINGS,
        },
    )
    batch_size: int = field(default=16, metadata={"help": "clips at once"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode"})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"}
    )
    bad_clips: str = field(
        default="bad_clips.txt", metadata={"help": "list of clips that cannot be decoded"}
    )


class HeldOut(NamedTuple):
    """The clips that all models judge."""

    clips: Dataset
    classes: list[Label]
    targets: np.ndarray  # (clips, C), zeros and ones
    exclusive: bool  # whether a clip has exactly one label
    data: DataArguments


class Evaluation(NamedTuple):
    """The results of `evaluate_models`."""

    num_clips: int
    models: list[dict]  # for each model, and for an ensemble: "model", a name, and its metrics
    classes: list[ClassResult]  # of the mean of the models


def read_held_out(options: EvaluationArguments, data: DataArguments) -> HeldOut:
    """The held-out clips that can be decoded, with their labels.

    Raises:
        OSError, ValueError: The data cannot be read.
        TooManyBadClips: More clips than allowed cannot be decoded.
    """
    clips = load_part(data, held_out=True)
    classes = read_classes(data, clips)
    bad_clips = BadClips(options.bad_clips, len(clips), data.max_bad_share)
    clips = drop_bad_clips(clips, reader_for(data), bad_clips)
    label2id = {key: index for index, label in enumerate(classes) for key in label}
    encode = LabelEncoder(label2id, multi_label=True, num_labels=len(classes))
    column = label_column(data, clips)
    targets = torch.stack([encode(row[column]) for row in clips.select_columns(column)])
    return HeldOut(clips, classes, targets.numpy(), is_exclusive(data, clips), data)


def reader_for(data: DataArguments, sampling_rate: int = ASTConfig.sampling_rate) -> ClipReader:
    """Decodes the rows of the data set."""
    return ClipReader(sampling_rate, data.audio_column, root=data.root)


def load_model(name: str, options: EvaluationArguments):
    """A model, on its device, and its extractor, with the padding that was asked for."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {} if options.padding is None else {"padding": options.padding}
    extractor = AutoFeatureExtractor.from_pretrained(name, **given)
    model = AutoModelForAudioClassification.from_pretrained(name)
    try:
        return model.to(device), extractor
    except (AssertionError, RuntimeError) as error:
        # An assertion of torch's says that it was not built for the device.
        raise ValueError(
            f"cannot use the device {device!r} ({one_line(error)}); give --device cpu"
        ) from error


@torch.inference_mode()
def probabilities(name: str, held_out: HeldOut, options: EvaluationArguments) -> np.ndarray:
    """A model's probability of each class for each clip.

    Args:
        name: On the Hub, or a directory.
    Returns:
        (clips, C), float64, in the order of the data's classes.
    Raises:
        OSError, ValueError: The model cannot be read, or lacks a class of the data.
    """
    model, extractor = load_model(name, options)
    own = columns_of(model.config, held_out.classes, name)
    collate = AudioCollator(
        extractor, reader=reader_for(held_out.data, extractor.sampling_rate), crop="middle"
    )
    loader = DataLoader(
        held_out.clips,
        options.batch_size,
        num_workers=options.num_workers,
        collate_fn=collate,
    )
    logits = []
    for batch in tqdm(loader, desc=name, unit="batch", leave=False):
        inputs = {key: tensor.to(model.device) for key, tensor in batch.items()}
        logits.append(model(**inputs).logits.float().cpu())
    # The "ensemble" of this one model: its own probabilities, in float64.
    kind = activation(options.scores, model.config)
    return ensemble_probabilities([torch.cat(logits)], kind == "sigmoid")[:, own].numpy()


def columns_of(config: ASTConfig, classes: Sequence[Label], name: str) -> list[int]:
    """The model's class index of each of the data's classes, by either of its names."""
    found = [[config.label2id[key] for key in label if key in config.label2id] for label in classes]
    missing = [label.name for label, indices in zip(classes, found) if not indices]
    if missing:
        raise ValueError(
            f"{name} does not know {len(missing)} of the {len(classes)} classes, such as "
            f"{missing[:3]}; it knows {list(config.label2id)[:3]}, ..., so name the column of "
            f"labels with --label-column, or a --label-csv with the model's names"
        )
    return [indices[0] for indices in found]


def judge(scores: np.ndarray, held_out: HeldOut) -> dict[str, float]:
    """The metrics of probabilities (clips, C)."""
    metrics = tagging_metrics(scores, held_out.targets)
    if held_out.exclusive:
        return {"accuracy": accuracy(scores, held_out.targets.argmax(1))} | metrics
    return metrics


def evaluate_models(
    names: Sequence[str], options: EvaluationArguments, data: DataArguments
) -> Evaluation:
    """Judges each model and, of several, their ensemble.

    Args:
        names: Models on the Hub, or directories; at least one.
        options: How they are run.
        data: Its held-out part is judged.
    Raises:
        OSError, ValueError: A model or the data cannot be read, or a model lacks a class.
        TooManyBadClips: More clips than allowed cannot be decoded.
    """
    held_out = read_held_out(options, data)
    rows, total = [], 0.0
    for name in names:
        scores = probabilities(name, held_out, options)
        rows.append({"model": name} | judge(scores, held_out))
        total = total + scores
    mean = total / len(names)
    if len(names) > 1:
        rows.append({"model": f"ensemble of {len(names)}"} | judge(mean, held_out))
    classes = class_table(mean, held_out.targets, [label.name for label in held_out.classes])
    return Evaluation(len(held_out.clips), rows, classes)


__all__ = ["Evaluation", "EvaluationArguments", "evaluate_models"]
