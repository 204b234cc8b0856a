"""How well a model does on clips shorter than those it was trained with, under both paddings.

The padding decides how well a model does on short clips: see `judge_lengths`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..padding import PADDINGS
from ..tagging import AudioTagger
from ..workers import decode_clips
from .held_out import HeldOut, columns_of, judge

SHARES = (1.0, 0.5, 0.25)
# For a reader of the scores at those lengths.
PLAIN_TRANSFORMERS = "plain transformers and transformers.js always pad to max_length"
# Clips whose parts are judged at a time: their waveforms are in memory.
CLIPS_AT_ONCE = 32


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


__all__ = [
    "PLAIN_TRANSFORMERS",
    "SHARES",
    "LengthResult",
    "Lengths",
    "judge_lengths",
    "length_rows",
    "spread",
]
