"""EventDetector: a recording of any length -> which sounds are in it, from when to when.

The model is trained on whole clips and knows no times. They come from many short windows: each is
scored as a clip of its own, and a step of time gets the mean (or the maximum) of the windows that
cover it (`score_curves.py`). Frames are computed once and shared by the windows. The recording is
read block by block: memory does not grow with its length.

Before its beginning and behind its end a recording is silent, so that the first and the last step
are covered by as many windows as the others. So are stretches that cannot be used (NaN, infinity, a
damaged file): they are listed with their times, nothing is found in them, and the rest counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.utils import logging

from .audio import ClipSource, decode_samples, is_single_clip, open_clip
from .errors import one_line
from .salvage import salvaged_blocks
from .samples import LARGEST_SAMPLE
from .score_curves import COMBINATIONS, Run, RunRules, RunTracker, StepCombiner
from .tagging import AudioTagger

logger = logging.get_logger(__name__)

# Measured with scenes at known times: tests/benchmarks/events.py, docs/detection.md.
WINDOW_SECONDS = 1.0  # at most the model's length
HOP_SECONDS = 0.1
THRESHOLD = 0.7
MIN_GAP, MIN_LENGTH = 0.3, 0.3  # seconds
# Audio that is read and scored at a time.
BLOCK_SECONDS = 30.0
BAD_SAMPLES = f"NaN, infinity or samples beyond {LARGEST_SAMPLE:,.0f}"
# Bad stretches with less than this between them are one.
JOINED_SECONDS = 0.01
# Times are multiples of the hop; rounded to microseconds they print without 0.30000000000000004.
TIME_DIGITS, SCORE_DIGITS = 6, 6


class Event(NamedTuple):
    """A sound and when it is heard."""

    onset: float  # in seconds from the beginning of the recording
    offset: float
    label: str
    score: float  # the highest score of its steps, from 0 to 1


class BadStretch(NamedTuple):
    """A part of a recording that cannot be used."""

    onset: float  # in seconds
    offset: float | None  # None: to the end, which is not known
    reason: str


class ScoreBlock(NamedTuple):
    """The scores of some steps."""

    first: int  # number of its first step
    scores: np.ndarray  # (K, C), float32, in the model's order of labels


@dataclass
class Detection:
    """What is heard in one recording, or why nothing can be."""

    name: str  # the path, or "clip 3" (counted from 0)
    seconds: float | None = None  # None where nothing of it can be used
    events: list[Event] = field(default_factory=list)  # by onset
    bad_stretches: list[BadStretch] = field(default_factory=list)
    error: str | None = None  # the reason, where nothing of it can be used


class EventDetector:
    """Finds out when which sound is heard, with an AST trained on clips.

    Args:
        tagger: Its model, how it pads and what makes scores of logits.
        window: Seconds that the model hears at once; by default 1 s, or the model's length if that
            is shorter.
        hop: Seconds from one window to the next, which is also the length of a step: the times of
            events are multiples of it. A whole number of frames (10 ms).
        combine: "mean" or "max" of the windows that cover a step. The mean gives better times, the
            maximum misses fewer short sounds.
        threshold: Score that the steps of an event must reach. By default 0.7; of a calibrated
            model windows are first scored relative to the calibrated threshold of the label, which
            becomes 0.5, so that a threshold of 0.7 means 0.7 of the windows over a step.
        label_thresholds: Those of some labels, instead.
        hysteresis: An event lasts as long as the scores reach this share of its threshold; 1 is
            none.
        median: Seconds of a median filter over the scores; 0 is none.
        min_gap: Events of a label become one where the gap is shorter, in seconds.
        min_length: Then shorter events are dropped, in seconds.

    Raises:
        ValueError: A number is out of its range, the window is longer than the model's length or
            shorter than the hop, or there is no such label.

    Example:

    ```python
    >>> from modeling_ast import EventDetector
    >>> detector = EventDetector.from_pretrained("MIT/ast-finetuned-audioset-10-10-0.4593")
    >>> for event in detector("street.wav"):  # doctest: +SKIP
    ...     print(event.onset, event.offset, event.label, event.score)
    ```
    """

    def __init__(
        self,
        tagger: AudioTagger,
        window: float | None = None,
        hop: float = HOP_SECONDS,
        combine: str = "mean",
        threshold: float | None = None,
        label_thresholds: Mapping[str, float] | None = None,
        hysteresis: float = 1.0,
        median: float = 0.0,
        min_gap: float = MIN_GAP,
        min_length: float = MIN_LENGTH,
    ):
        extractor = tagger.extractor
        longest = extractor.max_length / extractor.frames_per_second
        self.window = min(WINDOW_SECONDS, longest) if window is None else window
        self.hop = hop
        self.combine = combine
        self.hysteresis = hysteresis
        self.median = median
        self.min_gap = min_gap
        self.min_length = min_length
        self._check(longest, 1 / extractor.frames_per_second)
        self.tagger = tagger
        self.labels = tagger.names
        self._is_relative = threshold is None and tagger.calibration is not None
        self.thresholds = self._thresholds(threshold, label_thresholds or {})
        rate = extractor.sampling_rate
        self._hop_samples, self._window_samples = round(hop * rate), round(self.window * rate)
        # Those whose window holds the middle of the step.
        self.num_covering = max(1, math.ceil(self.window / hop - 0.5))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        padding: str = "longest",
        calibration: bool = True,
        **kwargs: Any,
    ) -> EventDetector:
        """Loads a checkpoint with its extractor.

        Args:
            model: Name on the Hub, or a directory.
            device, dtype: As in `AudioTagger.from_pretrained`.
            padding: "longest" computes windows as they are, "max_length" pads each to the model's
                length. It is not what the extractor has saved: a padded window takes as long as a
                whole clip.
            calibration: Whether the checkpoint's calibration.json is used, where it has one.
            kwargs: Arguments of `EventDetector`.
        """
        tagger = AudioTagger.from_pretrained(
            model, device, dtype, calibration, num_workers=0, padding=padding
        )
        return cls(tagger, **kwargs)

    def __call__(self, clip: Any) -> list[Event]:
        """The events of a recording, by onset.

        Args:
            clip: In any form that `audio.read_clip` takes, of any length.
        Raises:
            TypeError, OSError, ValueError: Nothing of it can be used; one sentence says why. Of
                stretches that cannot be used, a warning says it.
        """
        detection = self._detect(open_clip(clip))
        for stretch in detection.bad_stretches:
            logger.warning(
                f"{detection.name} cannot be used from {stretch.onset:.3f} to "
                f"{stretch.offset:.3f} s: {stretch.reason}"
            )
        return detection.events

    def detect(
        self, clips: Iterable[Any], on_scores: Callable[[str, ScoreBlock], None] | None = None
    ) -> Iterator[Detection]:
        """The events of many recordings, one after the other; a bad one does not stop the others.

        Args:
            clips: Each in a form that `audio.read_clip` takes.
            on_scores: Called with the name of a recording and the scores of its next steps.
        Raises:
            TypeError: `clips` is a single clip.
        """
        if is_single_clip(clips):
            raise TypeError(f"clips is a single {type(clips).__name__}; give a list of clips")
        return self._each(clips, on_scores)

    def scores(self, clip: Any) -> Iterator[ScoreBlock]:
        """The scores of each step of a recording, block by block, as they are before thresholds.

        Args:
            clip: In any form that `audio.read_clip` takes.
        Raises:
            TypeError, OSError, ValueError: Nothing of it can be used.
        """
        return self._score_blocks(_Recording(open_clip(clip), self.tagger.extractor.sampling_rate))

    def _each(
        self, clips: Iterable[Any], on_scores: Callable[[str, ScoreBlock], None] | None
    ) -> Iterator[Detection]:
        for number, clip in enumerate(clips):
            name = f"clip {number}"
            try:
                source = open_clip(clip, name)
                name = source.name
                yield self._detect(source, on_scores)
            # Whatever a file does to a decoder: it must not stop the others.
            except (OSError, ValueError, TypeError, ImportError) as error:
                yield Detection(name, error=one_line(error))

    def events_of(self, blocks: Iterable[ScoreBlock], seconds: float = math.inf) -> list[Event]:
        """The events in scores that are known, by this detector's thresholds and rules.

        Args:
            blocks: All of a recording, as `scores` gives them.
            seconds: Length of the recording, where its last event ends at the latest.
        """
        return self._as_events(self._runs(blocks), seconds)

    def _detect(
        self, source: ClipSource, on_scores: Callable[[str, ScoreBlock], None] | None = None
    ) -> Detection:
        recording = _Recording(source, self.tagger.extractor.sampling_rate)
        blocks = self._score_blocks(recording)
        if on_scores is not None:
            blocks = _told(blocks, source.name, on_scores)
        runs = self._runs(blocks)  # the recording is read here
        events = self._as_events(runs, recording.seconds)
        return Detection(source.name, recording.seconds, events, recording.bad_stretches())

    def _runs(self, blocks: Iterable[ScoreBlock]) -> list[tuple[int, Run]]:
        """(index of the label, run) of all events."""
        tracker, found = RunTracker(self._rules()), []
        for block in blocks:
            found += tracker.add(block.scores)
        return found + tracker.finish()

    def _as_events(self, runs: Iterable[tuple[int, Run]], seconds: float) -> list[Event]:
        return sorted(self._event(index, run, seconds) for index, run in runs)

    def _score_blocks(self, recording: _Recording) -> Iterator[ScoreBlock]:
        hop, window = self._hop_samples, self._window_samples
        combiner, first = StepCombiner(self.num_covering, self.combine), 0
        # Silence before the beginning, and behind the end.
        waiting = np.zeros((self.num_covering - 1) * hop, np.float32)
        for block in chain(recording.blocks(), self._silence_behind(recording)):
            waiting = np.concatenate([waiting, block])
            num_windows = max(0, (len(waiting) - window) // hop + 1)
            if num_windows == 0:
                continue
            seen = (num_windows - 1) * hop + window
            steps = combiner.add(self._window_scores(waiting[:seen], recording.source.name))
            waiting = waiting[num_windows * hop :]
            self._silence_bad_steps(steps, first, recording)
            if len(steps):
                yield ScoreBlock(first, steps)
            first += len(steps)

    def _silence_behind(self, recording: _Recording) -> Iterator[np.ndarray]:
        """Zeros, so that the last step is covered by as many windows as the others."""
        num_steps = -(-recording.num_samples // self._hop_samples)
        stop = (num_steps - 1) * self._hop_samples + self._window_samples
        yield np.zeros(stop - recording.num_samples, np.float32)

    def _window_scores(self, samples: np.ndarray, name: str) -> np.ndarray:
        """The scores (N, C) of all windows of some samples, which the last of them ends."""
        tagger, extractor = self.tagger, self.tagger.extractor
        waveform = torch.from_numpy(samples)
        device = tagger.model.device
        num_frames = extractor.count_frames(self._window_samples)
        frames = extractor.extract([waveform], "longest", False, device=device).input_values[0]
        hop_frames = self._hop_samples // extractor.hop_samples
        frames = frames[: extractor.count_frames(len(samples))]  # (T, F)
        windows = frames.unfold(0, num_frames, hop_frames).mT  # (N, num_frames, F)
        padded = extractor.num_frames([self._window_samples], tagger.padding)
        size = max(1, tagger.batch_frames // padded)
        logits = [tagger.frame_logits(batch, padded) for batch in windows.split(size)]
        scores = tagger.scores_of(torch.cat(logits).cpu())  # (N, C)
        if tagger.calibration is not None:
            scores = tagger.calibration.apply(scores)
            if self._is_relative:
                scores = tagger.calibration.relative(scores)
        if np.isnan(scores).any():
            raise ValueError(
                f'the model gives NaN for {name} in {tagger.model.dtype}; try "bfloat16" or '
                f'"float32"'
            )
        return scores

    def _silence_bad_steps(self, steps: np.ndarray, first: int, recording: _Recording) -> None:
        """Sets the scores of steps (K, C) whose middle lies in a bad stretch to 0."""
        middles = (np.arange(first, first + len(steps)) + 0.5) * self._hop_samples
        for start, stop, _ in recording.bad:
            steps[(start <= middles) & (middles < stop)] = 0.0

    def _rules(self) -> list[RunRules]:
        median_steps = round(self.median / self.hop)
        return [
            RunRules(
                threshold,
                threshold * self.hysteresis,
                median_steps + (median_steps % 2 == 0),
                math.ceil(self.min_gap / self.hop - 1e-9),
                math.ceil(self.min_length / self.hop - 1e-9),
            )
            for threshold in self.thresholds.tolist()
        ]

    def _event(self, index: int, run: Run, seconds: float) -> Event:
        onset = round(run.start * self.hop, TIME_DIGITS)
        offset = round(min(run.stop * self.hop, seconds), TIME_DIGITS)
        return Event(onset, offset, self.labels[index], round(run.score, SCORE_DIGITS))

    def _check(self, longest: float, frame: float) -> None:
        if self.combine not in COMBINATIONS:
            wanted = " or ".join(COMBINATIONS)
            raise ValueError(f"combine is {self.combine!r}; it must be {wanted}")
        num_frames = self.hop / frame
        if not (num_frames >= 1 and abs(num_frames - round(num_frames)) < 1e-6):
            raise ValueError(
                f"hop is {self.hop} s; give a whole number of frames of {frame:g} s, such as "
                f"{max(1, round(num_frames) if math.isfinite(num_frames) else 10) * frame:g}"
            )
        if not self.hop <= self.window <= longest + 1e-9:
            raise ValueError(
                f"window is {self.window} s; give at least the hop, {self.hop:g} s, and at most "
                f"the model's length, {longest:g} s"
            )
        if not 0 < self.hysteresis <= 1:
            raise ValueError(f"hysteresis is {self.hysteresis}; give more than 0 and at most 1")
        for name in ("median", "min_gap", "min_length"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value} s; give 0 or more seconds")

    def _thresholds(self, threshold: float | None, of_labels: Mapping[str, float]) -> np.ndarray:
        """The threshold of each label (C,)."""
        unknown = next((label for label in of_labels if label not in self.labels), None)
        if unknown is not None:
            raise ValueError(f"the model has no label {unknown!r}; it has {self.labels[:3]}, ...")
        default = THRESHOLD if threshold is None else threshold
        thresholds = [of_labels.get(label, default) for label in self.labels]
        wrong = next((value for value in thresholds if not 0 < value <= 1), None)
        if wrong is not None:
            raise ValueError(f"a threshold is {wrong}; give more than 0 and at most 1")
        return np.array(thresholds)


def _told(
    blocks: Iterable[ScoreBlock], name: str, on_scores: Callable[[str, ScoreBlock], None]
) -> Iterator[ScoreBlock]:
    """The same blocks, each of them given to `on_scores` first."""
    for block in blocks:
        on_scores(name, block)
        yield block


class _Recording:
    """The samples of a recording, block by block, bad ones silenced and remembered."""

    def __init__(self, source: ClipSource, sampling_rate: int):
        self.source = source
        self.sampling_rate = sampling_rate
        self.num_samples = 0  # so far
        self.bad: list[tuple[int, float, str]] = []  # samples: start, stop; the reason

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sampling_rate

    def bad_stretches(self) -> list[BadStretch]:
        return [
            BadStretch(
                round(start / self.sampling_rate, TIME_DIGITS),
                None if stop == math.inf else round(stop / self.sampling_rate, TIME_DIGITS),
                reason,
            )
            for start, stop, reason in self.bad
        ]

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks (S,), float32, finite.

        Raises:
            TypeError, OSError, ValueError: None of it can be used.
        """
        for block, reason in self._given_blocks():
            # Also true of NaN.
            is_bad = ~(np.abs(block) <= LARGEST_SAMPLE)
            if reason is not None:
                stop = self.num_samples + len(block) if len(block) else math.inf
                self.bad.append((self.num_samples, stop, reason))
            elif is_bad.any():
                self._remember(is_bad)
            self.num_samples += len(block)
            yield np.where(is_bad, np.float32(0), block) if is_bad.any() else block
        if self.num_samples == sum(stop - start for start, stop, _ in self.bad):
            raise ValueError(f"{self.source.name} has no sample that can be used; drop it")

    def _given_blocks(self) -> Iterator[tuple[np.ndarray, str | None]]:
        """(samples, None), or of what cannot be decoded (NaN, the reason)."""
        source, rate = self.source, self.sampling_rate
        if source.file is not None:
            yield from salvaged_blocks(source.file, rate, BLOCK_SECONDS)
            return
        waveform = decode_samples(source, rate).detach().cpu().numpy()
        num_samples = round(BLOCK_SECONDS * rate)
        for start in range(0, len(waveform), num_samples):
            yield waveform[start : start + num_samples], None

    def _remember(self, is_bad: np.ndarray) -> None:
        """Lists the stretches of a block's bad samples; those that touch become one."""
        edges = np.flatnonzero(np.diff(np.concatenate(([False], is_bad, [False]))))
        for start, stop in (edges.reshape(-1, 2) + self.num_samples).tolist():
            if self.bad and start - self.bad[-1][1] <= JOINED_SECONDS * self.sampling_rate:
                start = self.bad.pop()[0]
            self.bad.append((start, stop, BAD_SAMPLES))


__all__ = ["BadStretch", "Detection", "Event", "EventDetector", "ScoreBlock"]
