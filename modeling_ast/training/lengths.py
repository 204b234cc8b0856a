"""Evaluates a model on clips that are shorter than its training clips, under both paddings.

Clips are cut to their loudest part of 0.25 s, 0.5 s, 1 s and so on, because a short clip from a
user has the sound in it. On such clips the score depends strongly on the padding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..padding import PADDINGS
from ..tagging import AudioTagger
from ..workers import decode_clips
from .held_out import HeldOut, columns_of, judge
from .random_lengths import loudest_part

# Lengths that clips are cut to, in seconds.
CUT_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Number of clips that are processed at a time; their waveforms are in memory.
CLIPS_AT_ONCE = 32


class LengthResult(NamedTuple):
    """The metrics of a model with one padding, on clips that are cut to one length."""

    padding: str
    seconds: float | None  # None: whole clips
    metrics: dict[str, float]


class Lengths(NamedTuple):
    """The scores of a model under both paddings at several lengths."""

    results: Sequence[LengthResult]  # by padding, then by length, whole clips last
    num_clips: int  # number of clips that were used
    whole_seconds: float  # median length of the whole clips

    def values(self, metric: str) -> dict[str, list[float]]:
        """Padding -> values of one metric, at each of `seconds` and then on whole clips."""
        rows: dict[str, list[float]] = defaultdict(list)
        for result in self.results:
            rows[result.padding].append(result.metrics[metric])
        return dict(rows)

    @property
    def seconds(self) -> list[float]:
        """The lengths that clips were cut to, ascending."""
        own = (result.seconds for result in self.results if result.padding == PADDINGS[0])
        return [seconds for seconds in own if seconds is not None]

    def as_json(self, metric: str) -> dict[str, Any]:
        """The curves of one metric, for JSON."""
        return {
            "metric": metric,
            "clips": self.num_clips,
            "seconds": [*self.seconds, self.whole_seconds],
            **self.values(metric),
        }


def judge_lengths(tagger: AudioTagger, held_out: HeldOut) -> Lengths:
    """Evaluates a model under both paddings, on whole clips and on shorter parts of each.

    A clip that is not longer than a length is used whole; a length that most clips do not exceed
    is left out.

    Args:
        tagger: Evaluated with both paddings; all its other settings are kept.
        held_out: Clips that cannot be read are left out.
    Raises:
        ValueError: The model lacks a class of the data or gives NaN, or no clip can be read.
    """
    own = columns_of(tagger.model.config, held_out.classes)
    taggers = {padding: with_padding(tagger, padding) for padding in PADDINGS}
    rate = tagger.extractor.sampling_rate
    scores: dict[tuple[str, float | None], list[np.ndarray]] = defaultdict(list)  # (C,) of a clip
    indices: list[int] = []  # of the clips that can be read
    clip_seconds: list[float] = []
    for block in blocks_of_waveforms(held_out, tagger):
        indices += block
        waveforms = list(block.values())
        clip_seconds += [len(waveform) / rate for waveform in waveforms]
        for padding, other in taggers.items():
            for seconds, rows in scores_at_lengths(other, waveforms).items():
                scores[padding, seconds] += [row[own] for row in rows]
    if not indices:
        raise ValueError("none of the held-out clips can be read; see the list of bad clips")
    judged, whole_seconds = held_out.select(indices), median(clip_seconds)
    results = [
        LengthResult(padding, seconds, judge(np.stack(rows), judged))
        for (padding, seconds), rows in scores.items()
        if seconds is None or seconds < whole_seconds
    ]
    return Lengths(results, len(indices), whole_seconds)


def scores_at_lengths(
    tagger: AudioTagger, waveforms: Sequence[Tensor]
) -> dict[float | None, list[np.ndarray]]:
    """Length in seconds -> the scores (C,) of each clip cut to it; None, the last: whole clips.

    Raises:
        ValueError: The model gives NaN.
    """
    hop_samples = tagger.extractor.hop_samples
    whole = list(scores_of(tagger, waveforms))
    scores: dict[float | None, list[np.ndarray]] = {}
    for seconds in CUT_SECONDS:
        num_frames = round(seconds * tagger.extractor.frames_per_second)
        is_cut = [len(waveform) > num_frames * hop_samples for waveform in waveforms]
        longer = (waveform for waveform, cut in zip(waveforms, is_cut) if cut)
        parts = scores_of(tagger, (loudest_part(x, num_frames, hop_samples) for x in longer))
        scores[seconds] = [next(parts) if cut else row for row, cut in zip(whole, is_cut)]
    return scores | {None: whole}


def scores_of(tagger: AudioTagger, waveforms: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The scores (C,) of each waveform.

    Raises:
        ValueError: The model gives NaN.
    """
    for result in tagger(waveforms):
        if result.scores is None:  # an error of the model, because the clip has been read
            raise ValueError(result.error)
        yield result.scores


def blocks_of_waveforms(held_out: HeldOut, tagger: AudioTagger) -> Iterator[dict[int, Tensor]]:
    """The clips that can be read, a few at a time: index -> waveform."""
    block = {}
    clips = map(held_out.reader.clip, held_out.clips)
    decoded = decode_clips(
        clips,
        tagger.extractor.sampling_rate,
        tagger.num_workers,
        min_samples=tagger.extractor.window_samples,
    )
    bar = {"desc": "Shorter clips, both paddings", "unit": "clip", "leave": False}
    for clip in tqdm(decoded, total=len(held_out.clips), **bar):
        if clip.error is None:
            block[clip.number] = clip.waveform
        if len(block) == CLIPS_AT_ONCE:
            yield block
            block = {}
    if block:
        yield block


def with_padding(tagger: AudioTagger, padding: str) -> AudioTagger:
    """A tagger of the same model with another padding and without worker processes."""
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
    """At most `count` of the clips, evenly spread over the set, which may be sorted by class."""
    total = len(held_out.clips)
    return held_out if total <= count else held_out.select(spread_numbers(total, count))


def spread_numbers(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spread."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


__all__ = [
    "CUT_SECONDS",
    "LengthResult",
    "Lengths",
    "judge_lengths",
    "spread",
    "spread_numbers",
]
