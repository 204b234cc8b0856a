"""Evaluates a model, or an ensemble of models, on held-out clips.

`AudioTagger` computes the scores, so that clips are padded and cut as by every other tool. Models
may differ in stride, length, rate and in the order of their labels, which are matched by name. The
scores of an ensemble are the mean of the models' probabilities: sigmoids if a clip may have several
labels, as published, else softmaxes. Source: Gong et al. 2021, section 3.1 (Ensemble-S,
Ensemble-M).

A model is also evaluated on shorter clips under both paddings, see `lengths.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..errors import one_line
from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import SCORES
from ..padding import PADDINGS
from ..strict_json import to_json
from ..tagging import AudioTagger
from .answers import DEFAULT_THRESHOLD, Answers
from .arguments import METRICS_FILE, LengthArguments, ResultArguments
from .clips import BadClips
from .data_arguments import DataArguments
from .data_report import MISSING_FILE, DataReport
from .held_out import HeldOut, columns_of, judge, load_held_out
from .length_report import LENGTH_PICTURE, draw_lengths
from .lengths import Lengths, judge_lengths, spread
from .metrics import threshold_metrics
from .results import answers_of, save_results
from .run_card import evaluation_text


@dataclass
class ReadingArguments:
    """How clips are read."""

    num_workers: int = field(default=0, metadata={"help": "number of processes that decode clips"})
    bad_clips: str = field(
        default="bad_clips.txt", metadata={"help": "file for the list of clips that cannot be read"}
    )
    missing_clips: str = field(
        default=MISSING_FILE,
        metadata={"help": "file for the list of a table's clips that do not exist"},
    )


@dataclass
class RunningArguments(ReadingArguments):
    """How a model is run."""

    scores: str = field(
        default="auto",
        metadata={
            "help": "how scores are computed; auto: as each model's config says, but sigmoid for "
            "AudioSet's 527 classes",
            "choices": SCORES,
        },
    )
    padding: str | None = field(
        default=None,
        metadata={
            "help": "pad clips to max_length, or to the longest clip of their batch; by default "
            "as saved in each model's extractor",
            "choices": PADDINGS,
        },
    )
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": "batch size, in clips of the model's length (default: 1 on a CPU, 32 on a GPU)"
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"}
    )


@dataclass
class EvaluationArguments(RunningArguments):
    """How the models are run in an evaluation."""

    calibration: bool = field(
        default=True, metadata={"help": "use a model's calibration.json, if it has one"}
    )


class Evaluation(NamedTuple):
    """The results of `evaluate_models`."""

    num_clips: int
    models: list[dict]  # for each model, and for an ensemble: "model", a name, and its metrics
    answers: Answers  # of the model, or of the ensemble
    clips: HeldOut  # the clips that have scores
    extractor: ASTFeatureExtractor  # of the first model
    lengths: dict[str, Lengths]  # model name -> its scores on shorter clips
    data: DataReport  # the report on each file

    @property
    def metric(self) -> str:
        """The main metric, "accuracy" or "mAP"."""
        return list(self.models[0])[1]


def load_tagger(name: str, options: RunningArguments, calibration: bool = True) -> AudioTagger:
    """Loads a model with its extractor, set up as the options say.

    Args:
        calibration: Whether its calibration.json is used, if it has one.
    Raises:
        OSError, ValueError: As `AudioTagger.from_pretrained`.
    """
    tagger = AudioTagger.from_pretrained(
        name,
        options.device,
        calibration=calibration,
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
        bad_clips: The list to which clips without scores are added.
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
    """The threshold of each of the data's classes (C,): the calibrated one, or one half."""
    own = columns_of(tagger.model.config, held_out.classes)
    if tagger.calibration is None:
        return np.full(len(own), DEFAULT_THRESHOLD)
    return tagger.calibration.thresholds[own]


def evaluate_models(
    names: Sequence[str],
    options: EvaluationArguments,
    data: DataArguments,
    length_clips: int = LengthArguments.length_clips,
) -> Evaluation:
    """Evaluates each model and, if there are several, their ensemble.

    Args:
        names: Models on the Hub, or directories; at least one.
        options: How they are run.
        data: Its held-out part is used.
        length_clips: Number of held-out clips for `judge_lengths`; 0: it is skipped.
    Raises:
        OSError, ValueError: A model or the data cannot be read, or a model lacks a class.
        TooManyBadClips: More clips than allowed cannot be decoded.
    """
    held_out, loaded = load_held_out(data)
    bad_clips = BadClips.of_new_run(options.bad_clips, len(held_out.clips), data.max_bad_share)
    few = spread(held_out, length_clips)
    scores, thresholds, lengths, extractors = [], [], {}, []
    for name in names:
        tagger = load_tagger(name, options, options.calibration)
        extractors.append(tagger.extractor)
        scores.append(probabilities(tagger, held_out, bad_clips))
        thresholds.append(thresholds_of(tagger, held_out))
        if length_clips and name not in lengths:
            lengths[name] = judge_lengths(tagger, few)
    good = np.flatnonzero(~np.isnan(scores).any(axis=(0, 2))).tolist()
    if not good:
        raise ValueError(
            f"none of the held-out clips can be used; {options.bad_clips} lists the reasons"
        )
    found_bad = np.setdiff1d(np.arange(len(held_out.clips)), good)
    named = {one_line(held_out.reader.name(held_out.clips[int(index)])) for index in found_bad}
    bad = {name: reason for name, reason in bad_clips.read().items() if name in named}
    loaded.skip_bad_clips(bad, held_out.reader, data)
    judged, scores = held_out.select(good), [rows[good] for rows in scores]
    mean, lowest = np.mean(scores, axis=0), thresholds[0]  # (clips, C), (C,)
    judged_scores = list(zip(names, scores, thresholds))
    if len(names) > 1:
        lowest = np.full(len(held_out.classes), DEFAULT_THRESHOLD)
        judged_scores.append((f"ensemble of {len(names)}", mean, lowest))
    results: list[dict[str, str | float]] = [
        {"model": name, **judge(rows, judged), **threshold_metrics(rows, judged.targets, least)}
        for name, rows, least in judged_scores
    ]
    answers = answers_of(judged, mean, thresholds=lowest)
    return Evaluation(len(good), results, answers, judged, extractors[0], lengths, loaded.report)


def save_evaluation(
    folder: Path,
    names: Sequence[str],
    data: str,
    evaluation: Evaluation,
    page_clips: int = ResultArguments.worst_clips,
) -> None:
    """Writes the files of an evaluation: those of `results.py`, metrics.json and README.md.

    Args:
        folder: Created if it does not exist.
        names: Names of the models.
        data: Name of the data.
        evaluation: From `evaluate_models`.
        page_clips: Number of clips on the page of the worst mistakes; 0: no page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answers = evaluation.answers
    figures = {f"eval_{name}": value for name, value in evaluation.models[-1].items()}
    figures.pop("eval_model")
    figures["eval_chance"] = answers.headline.chance
    (folder / METRICS_FILE).write_text(to_json(figures) + "\n", encoding="utf-8")
    title = Path(names[0]).name if len(names) == 1 else f"the ensemble of {len(names)}"
    save_results(folder, answers, evaluation.clips, evaluation.extractor, title, page_clips)
    (folder / LENGTH_PICTURE).unlink(missing_ok=True)
    if evaluation.lengths:
        draw_lengths(evaluation.lengths, evaluation.metric, folder / LENGTH_PICTURE)
    text = evaluation_text(folder, names, data, figures, answers)
    (folder / "README.md").write_text(text, encoding="utf-8")


__all__ = [
    "Evaluation",
    "EvaluationArguments",
    "ReadingArguments",
    "RunningArguments",
    "evaluate_models",
    "load_tagger",
    "probabilities",
    "save_evaluation",
]
