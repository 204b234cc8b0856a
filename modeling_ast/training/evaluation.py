"""Judges a model, or an ensemble of models, on held-out clips.

`AudioTagger` gives the scores: a clip is padded and cut as by every other tool. Models may differ
in stride, length, rate and in the order of their labels, which are matched by name. An ensemble is
the mean of the models' probabilities: sigmoids where a clip may have several labels, as published,
else softmaxes. Source: Gong et al. 2021, section 3.1 (Ensemble-S, Ensemble-M).

A model is also judged under both paddings on whole, half and quarter clips (`judge_lengths`): the
padding decides how well it does on clips that are shorter than those it was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..configuration_ast import ASTConfig
from ..errors import one_line
from ..labels import SCORES, Label, distinct_names
from ..padding import PADDINGS
from ..tagging import AudioTagger
from ..workers import decode_clips
from .arguments import LengthArguments
from .batches import LabelEncoder
from .classes import check_labels, is_exclusive, label_column, read_classes
from .clips import BadClips, ClipReader, undecoded
from .data_arguments import DataArguments
from .data_report import DataReport
from .data_sources import Loaded, load
from .metrics import ClassResult, accuracy, class_table, tagging_metrics, threshold_metrics

# From which score on a label counts, of models without a calibration.
DEFAULT_THRESHOLD = 0.5
SHARES = (1.0, 0.5, 0.25)
# For a reader of the scores at those lengths.
PLAIN_TRANSFORMERS = "plain transformers and transformers.js always pad to max_length"
# Clips whose parts are judged at a time: their waveforms are in memory.
CLIPS_AT_ONCE = 32


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
    calibration: bool = field(
        default=True, metadata={"help": "use a model's calibration.json, where it has one"}
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "clips of the model's length in a batch (1 on a CPU, 32 on a GPU)"},
    )
    num_workers: int = field(default=0, metadata={"help": "processes that decode"})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"}
    )
    bad_clips: str = field(
        default="bad_clips.txt", metadata={"help": "list of clips that cannot be decoded"}
    )


class HeldOut(NamedTuple):
    """The clips that models are judged by."""

    clips: Dataset
    reader: ClipReader
    classes: Sequence[Label]
    targets: np.ndarray  # (clips, C), zeros and ones
    exclusive: bool  # whether a clip has exactly one label

    def select(self, indices: Sequence[int]) -> HeldOut:
        """Some of the clips."""
        clips, targets = self.clips.select(indices), self.targets[np.asarray(indices, int)]
        return self._replace(clips=clips, targets=targets)


class LengthResult(NamedTuple):
    """How well a model does with one padding on clips cut to a share of their length."""

    padding: str
    share: float
    metrics: dict[str, float]


class Lengths(NamedTuple):
    """The scores of a model under both paddings at three lengths."""

    results: Sequence[LengthResult]
    num_clips: int  # that were judged

    def as_metrics(self, metric: str) -> dict[str, float]:
        """One metric of each result, under names such as "longest_0.5_mAP"."""
        return {
            f"{result.padding}_{result.share:g}_{metric}": result.metrics[metric]
            for result in self.results
        }


class Evaluation(NamedTuple):
    """The results of `evaluate_models`."""

    num_clips: int
    models: list[dict]  # for each model, and for an ensemble: "model", a name, and its metrics
    classes: list[ClassResult]  # of the mean of the models
    lengths: dict[str, Lengths]  # by the model's name
    data: DataReport  # what became of each file


def read_held_out(data: DataArguments) -> HeldOut:
    """The held-out clips with their labels; no audio is read.

    Raises:
        OSError, ValueError: The data cannot be read.
    """
    return load_held_out(data)[0]


def load_held_out(data: DataArguments) -> tuple[HeldOut, Loaded]:
    """The held-out clips with their labels, and what became of each file; no audio is read.

    Raises:
        OSError, ValueError: The data cannot be read.
    """
    loaded = load(data, train=False)
    clips = loaded.held_out
    classes = read_classes(data, clips)
    check_labels(loaded.report, classes, None, loaded.held_out_name)
    reader = ClipReader(audio_column=data.audio_column, root=data.root)
    held_out = held_out_clips(
        clips, reader, classes, label_column(data, clips), is_exclusive(data, clips)
    )
    return held_out, loaded


def held_out_clips(
    clips: Dataset,
    reader: ClipReader,
    classes: Sequence[Label],
    column: str,
    exclusive: bool,
) -> HeldOut:
    """The clips of a data set with their labels; no audio is read.

    Args:
        clips: Rows with undecoded audio.
        reader: Finds the clip of a row.
        classes: In the order that scores shall have.
        column: Of the labels.
        exclusive: Whether a clip has exactly one label.
    Raises:
        ValueError: A label is none of the classes.
    """
    label2id = {key: index for index, label in enumerate(classes) for key in label}
    encode = LabelEncoder(label2id, multi_label=True, num_labels=len(classes))
    targets = [encode(row[column]) for row in clips.select_columns(column)]
    return HeldOut(
        undecoded(clips, reader.audio_column),
        reader,
        classes,
        torch.stack(targets).numpy(),
        exclusive,
    )


def load_tagger(name: str, options: EvaluationArguments) -> AudioTagger:
    """A model with its extractor, as the arguments want it.

    Raises:
        OSError, ValueError: As `AudioTagger.from_pretrained`.
    """
    tagger = AudioTagger.from_pretrained(
        name,
        options.device,
        calibration=options.calibration,
        num_workers=options.num_workers,
        scores=options.scores,
        padding=options.padding,
    )
    if options.batch_size is not None:
        tagger.batch_frames = options.batch_size * tagger.extractor.max_length
    return tagger


def probabilities(tagger: AudioTagger, held_out: HeldOut, bad_clips: BadClips) -> np.ndarray:
    """A model's probability of each class for each clip.

    Args:
        bad_clips: Where clips that cannot be scored are listed.
    Returns:
        (clips, C), float64, in the order of the data's classes; NaN for a bad clip.
    Raises:
        ValueError: The model lacks a class of the data.
        TooManyBadClips: More clips than allowed are bad.
    """
    own = columns_of(tagger.model.config, held_out.classes)
    scores = np.full(held_out.targets.shape, np.nan)
    clips = (held_out.reader.clip(row) for row in held_out.clips)
    results = tqdm(tagger(clips), total=len(scores), unit="clip", leave=False)
    for index, result in enumerate(results):
        if result.scores is None:
            bad_clips.add(held_out.reader.name(held_out.clips[index]), result.error)
        else:
            scores[index] = result.scores[own]
    return scores


def thresholds_of(tagger: AudioTagger, held_out: HeldOut) -> np.ndarray:
    """The score from which on each of the data's classes counts (C,): calibrated, or one half."""
    own = columns_of(tagger.model.config, held_out.classes)
    if tagger.calibration is None:
        return np.full(len(own), DEFAULT_THRESHOLD)
    return tagger.calibration.thresholds[own]


def columns_of(config: ASTConfig, classes: Sequence[Label]) -> list[int]:
    """The model's class index of each of the data's classes, by either of its names.

    Raises:
        ValueError: The model lacks one.
    """
    label2id = {name: index for index, name in enumerate(distinct_names(config.id2label))}
    found = [[label2id[key] for key in label if key in label2id] for label in classes]
    missing = [label.name for label, indices in zip(classes, found) if not indices]
    if missing:
        name = config.name_or_path or "the model"
        raise ValueError(
            f"{name} does not know {len(missing)} of the {len(classes)} classes, such as "
            f"{missing[:3]}; it knows {list(label2id)[:3]}, ..., so name the column of "
            f"labels with --label-column, or a --label-csv with the model's names"
        )
    return [indices[0] for indices in found]


def judge(scores: np.ndarray, held_out: HeldOut) -> dict[str, float]:
    """The metrics of probabilities (clips, C)."""
    metrics = tagging_metrics(scores, held_out.targets)
    if held_out.exclusive:
        return {"accuracy": accuracy(scores, held_out.targets.argmax(1))} | metrics
    return metrics


def judge_lengths(tagger: AudioTagger, held_out: HeldOut) -> Lengths:
    """Judges a model under both paddings, on whole clips and on the middle of each.

    Args:
        tagger: Its model and the kind of its scores; all else but the padding is kept too.
        held_out: Clips that cannot be read are left out.
    Raises:
        ValueError: The model lacks a class of the data or gives NaN, or no clip can be read.
    """
    own = columns_of(tagger.model.config, held_out.classes)
    shortest = tagger.extractor.window_samples
    taggers = {padding: with_padding(tagger, padding) for padding in PADDINGS}
    scores: dict[tuple[str, float], list[np.ndarray]]
    scores = {(padding, share): [] for padding in PADDINGS for share in SHARES}
    heard: list[int] = []  # indices of clips
    for block in blocks_of_waveforms(held_out, tagger):
        heard += block
        for padding, share in scores:
            shorter = (middle(waveform, share, shortest) for waveform in block.values())
            for result in taggers[padding](shorter):
                if result.scores is None:  # an error of the model: the clip was read
                    raise ValueError(result.error)
                scores[padding, share].append(result.scores[own])
    if not heard:
        raise ValueError("none of the held-out clips can be read; see the list of bad clips")
    judged = held_out.select(heard)
    results = [
        LengthResult(padding, share, judge(np.stack(rows), judged))
        for (padding, share), rows in scores.items()
    ]
    return Lengths(results, len(heard))


def blocks_of_waveforms(held_out: HeldOut, tagger: AudioTagger) -> Iterator[dict[int, Tensor]]:
    """The clips that can be read, a few at a time, by their index."""
    block = {}
    clips = map(held_out.reader.clip, held_out.clips)
    decoded = decode_clips(
        clips,
        tagger.extractor.sampling_rate,
        tagger.num_workers,
        min_samples=tagger.extractor.window_samples,
    )
    bar = {"desc": "Both paddings, three lengths", "unit": "clip", "leave": False}
    for clip in tqdm(decoded, total=len(held_out.clips), **bar):
        if clip.error is None:
            block[clip.number] = clip.waveform
        if len(block) == CLIPS_AT_ONCE:
            yield block
            block = {}
    if block:
        yield block


def middle(waveform: Tensor, share: float, min_samples: int) -> Tensor:
    """The middle of a clip: this share of it, but at least `min_samples`: one window."""
    length = max(round(share * len(waveform)), min_samples)
    start = (len(waveform) - length) // 2
    return waveform[start : start + length]


def with_padding(tagger: AudioTagger, padding: str) -> AudioTagger:
    """The same model under another padding; waveforms stay in this process."""
    other = AudioTagger(
        tagger.model,
        tagger.extractor,
        batch_frames=tagger.batch_frames,
        num_workers=0,
        scores="sigmoid" if tagger.sigmoid else "softmax",
        padding=padding,
        calibration=tagger.calibration,
    )
    other.hint_at_padding = False
    return other


def spread(held_out: HeldOut, count: int) -> HeldOut:
    """At most `count` of the clips, evenly over the set, which may be sorted by class."""
    total = len(held_out.clips)
    if total <= count:
        return held_out
    return held_out.select(np.linspace(0, total - 1, count).round().astype(int).tolist())


def length_rows(lengths: Lengths, metric: str) -> list[tuple[str, list[float]]]:
    """A row for each padding: its name, and a metric at each of `SHARES`."""
    values = {(result.padding, result.share): result.metrics[metric] for result in lengths.results}
    return [(padding, [values[padding, share] for share in SHARES]) for padding in PADDINGS]


def evaluate_models(
    names: Sequence[str],
    options: EvaluationArguments,
    data: DataArguments,
    length_clips: int = LengthArguments.length_clips,
) -> Evaluation:
    """Judges each model and, of several, their ensemble.

    Args:
        names: Models on the Hub, or directories; at least one.
        options: How they are run.
        data: Its held-out part is judged.
        length_clips: Clips of it for `judge_lengths`; 0 for none.
    Raises:
        OSError, ValueError: A model or the data cannot be read, or a model lacks a class.
        TooManyBadClips: More clips than allowed cannot be decoded.
    """
    held_out, loaded = load_held_out(data)
    bad_clips = BadClips(options.bad_clips, len(held_out.clips), data.max_bad_share)
    few = spread(held_out, length_clips)
    scores, thresholds, lengths = [], [], {}
    for name in names:
        tagger = load_tagger(name, options)
        scores.append(probabilities(tagger, held_out, bad_clips))
        thresholds.append(thresholds_of(tagger, held_out))
        if length_clips and name not in lengths:
            lengths[name] = judge_lengths(tagger, few)
    good = np.flatnonzero(~np.isnan(scores).any(axis=(0, 2))).tolist()
    if not good:
        raise ValueError(f"none of the held-out clips can be used; see {options.bad_clips}")
    found_bad = np.setdiff1d(np.arange(len(held_out.clips)), good)
    named = {one_line(held_out.reader.name(held_out.clips[int(index)])) for index in found_bad}
    bad = {name: reason for name, reason in bad_clips.read().items() if name in named}
    loaded.skip_bad_clips(bad, held_out.reader, data)
    judged, scores = held_out.select(good), [rows[good] for rows in scores]
    mean = np.mean(scores, axis=0)  # (clips, C)
    judged_scores = list(zip(names, scores, thresholds))
    if len(names) > 1:
        halves = np.full(len(held_out.classes), DEFAULT_THRESHOLD)
        judged_scores.append((f"ensemble of {len(names)}", mean, halves))
    results: list[dict[str, str | float]] = [
        {"model": name, **judge(rows, judged), **threshold_metrics(rows, judged.targets, lowest)}
        for name, rows, lowest in judged_scores
    ]
    classes = class_table(mean, judged.targets, [label.name for label in held_out.classes])
    return Evaluation(len(good), results, classes, lengths, loaded.report)


__all__ = [
    "PLAIN_TRANSFORMERS",
    "SHARES",
    "Evaluation",
    "EvaluationArguments",
    "HeldOut",
    "LengthResult",
    "Lengths",
    "columns_of",
    "evaluate_models",
    "held_out_clips",
    "judge_lengths",
    "length_rows",
    "load_tagger",
    "probabilities",
    "read_held_out",
    "spread",
]
