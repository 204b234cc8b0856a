"""EventDetector: a recording of any length -> which sounds are in it, from when to when.

The model is trained on whole clips and gives no times. Times come from many short windows: each is
scored as a clip of its own, and a step of time gets the mean (or the maximum) of the windows that
cover it (`score_curves.py`). An event is a run of steps with high scores; it begins and ends where
the spectrogram rises and falls near them (`spectral_edges.py`). Frames are computed once and shared
by the windows. The recording is read block by block, so that memory does not grow with its length,
except for the events and the edges, a few numbers for each second.

A recording is extended with silence on both sides, so that the first and the last step are covered
by as many windows as the others. Stretches that cannot be used (NaN, infinity, a damaged file) are
silenced as well: they are listed with their times, no event is found in them, and the rest counts.
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
from torch import Tensor
from transformers.utils import logging

from .audio import ClipSource, is_single_clip, open_clip
from .errors import one_line
from .recordings import BadStretch, Recording
from .score_curves import COMBINATIONS, Run, RunRules, RunTracker, StepCombiner
from .spectral_edges import (
    NO_EDGES,
    EdgeFinder,
    Edges,
    borders,
    in_order,
    placed,
    without_stretches,
)
from .tagging import AudioTagger

logger = logging.get_logger(__name__)

# Measured with scenes at known times: tests/benchmarks/events.py, docs/detection_measured.md.
WINDOW_SECONDS = 1.0  # at most the model's length
HOP_SECONDS = 0.1
THRESHOLD = 0.6
MIN_GAP, MIN_LENGTH = 0.3, 0.3  # seconds
# Where events begin and end: at edges of the spectrogram, or where the scores reach the threshold.
EDGES = ("spectrum", "scores")
# Rounded to microseconds, multiples of the hop print without 0.30000000000000004.
TIME_DIGITS, SCORE_DIGITS = 6, 6
# How many labels an error names.
NAMED_LABELS = 20


class Event(NamedTuple):
    """A sound and when it is heard."""

    onset: float  # in seconds from the beginning of the recording
    offset: float
    label: str
    score: float  # the highest score of its steps, from 0 to 1


class ScoreBlock(NamedTuple):
    """The scores of some steps, and the edges found there. The last block has edges only."""

    first: int  # number of its first step
    scores: np.ndarray  # (K, C), float32, in the model's order of labels
    edges: Edges = NO_EDGES  # of the spectrogram


@dataclass
class Detection:
    """The events of one recording, or the reason why it cannot be used."""

    name: str  # the path, or "clip 3" (counted from 0)
    seconds: float | None = None  # None if no part of it can be used
    events: list[Event] = field(default_factory=list)  # by onset
    bad_stretches: list[BadStretch] = field(default_factory=list)
    error: str | None = None  # the reason, if no part of it can be used


class EventDetector:
    """Finds when each sound is heard, with an AST trained on clips.

    Args:
        tagger: Its model, padding and activation are used.
        window: Seconds of audio that the model gets at once; by default 1 s, or the model's length
            if that is shorter.
        hop: Seconds from one window to the next, which is also the length of a step. A whole number
            of frames (10 ms).
        combine: "mean" or "max" of the windows that cover a step. The mean gives better times, the
            maximum misses fewer short sounds.
        threshold: Score that an event must reach. By default 0.6. With a calibrated model, and no
            threshold given, the scores of windows are first moved so that the calibrated threshold
            of each label becomes 0.5.
        label_thresholds: Thresholds of some labels, which replace `threshold` for these.
        hysteresis: An event lasts as long as the scores reach this share of its threshold; 1 turns
            it off.
        median: Seconds of a median filter over the scores; 0 turns it off.
        min_gap: Events of a label with a shorter gap between them, in seconds, become one.
        min_length: After that, events with shorter runs of high scores, in seconds, are dropped.
        edges: "spectrum": an event begins at the strongest rise of the spectrogram within half a
            window of where its scores say, and ends at such a fall. If there is none, and with
            "scores", it begins and ends where the scores reach the threshold, at multiples of the
            hop.

    Raises:
        ValueError: A number is out of its range, the window is longer than the model's length or
            shorter than the hop, or the model lacks one of the labels.

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
        edges: str = EDGES[0],
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
        self.edges = edges
        self._check(longest, 1 / extractor.frames_per_second)
        self.tagger = tagger
        self.labels = tagger.names
        self._is_relative = threshold is None and tagger.calibration is not None
        self.thresholds = self._thresholds(threshold, label_thresholds or {})
        rate = extractor.sampling_rate
        self._hop_samples, self._window_samples = round(hop * rate), round(self.window * rate)
        # The number of windows that hold the middle of a step.
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
                length. The extractor's saved padding is not used, because a padded window takes as
                long as a whole clip.
            calibration: Whether the checkpoint's calibration.json is used, if it has one.
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
            TypeError, OSError, ValueError: No part of it can be used; one sentence says why. If
                only stretches of it cannot be used, warnings say so.
        """
        detection = self._detect(open_clip(clip))
        for stretch in detection.bad_stretches:
            logger.warning(f"{detection.name}: {stretch.sentence()}")
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
        """The scores of each step of a recording, block by block, before any threshold.

        Args:
            clip: In any form that `audio.read_clip` takes.
        Raises:
            TypeError, OSError, ValueError: No part of it can be used.
        """
        return self._score_blocks(Recording(open_clip(clip), self.tagger.extractor.sampling_rate))

    def _each(
        self, clips: Iterable[Any], on_scores: Callable[[str, ScoreBlock], None] | None
    ) -> Iterator[Detection]:
        for number, clip in enumerate(clips):
            name = f"clip {number}"
            try:
                source = open_clip(clip, name)
                name = source.name
                yield self._detect(source, on_scores)
            # A bad file must not stop the others.
            except (OSError, ValueError, TypeError, ImportError) as error:
                yield Detection(name, error=one_line(error))

    def events_of(self, blocks: Iterable[ScoreBlock], seconds: float = math.inf) -> list[Event]:
        """The events in given scores, by this detector's thresholds and rules.

        Args:
            blocks: All of a recording, as `scores` gives them.
            seconds: Length of the recording, where its last event ends at the latest.
        """
        return self._as_events(*self._runs(blocks), seconds)

    def _detect(
        self, source: ClipSource, on_scores: Callable[[str, ScoreBlock], None] | None = None
    ) -> Detection:
        recording = Recording(source, self.tagger.extractor.sampling_rate)
        blocks = self._score_blocks(recording)
        if on_scores is not None:
            blocks = _reported(blocks, source.name, on_scores)
        runs, edges = self._runs(blocks)  # the recording is read here
        events = self._as_events(runs, edges, recording.seconds)
        return Detection(source.name, recording.seconds, events, recording.bad_stretches())

    def _runs(self, blocks: Iterable[ScoreBlock]) -> tuple[list[tuple[int, Run]], Edges]:
        """(index of the label, run) of all events, and the edges of the spectrogram."""
        tracker, found, edges = RunTracker(self._rules()), [], [NO_EDGES]
        for block in blocks:
            found += tracker.add(block.scores)
            edges.append(block.edges)
        return found + tracker.finish(), in_order(edges)

    def _as_events(
        self, runs: Iterable[tuple[int, Run]], edges: Edges, seconds: float
    ) -> list[Event]:
        """The events of runs, by onset, in a recording of `seconds`."""
        of_label: dict[int, list[Run]] = {}
        for index, run in runs:
            of_label.setdefault(index, []).append(run)
        events = []
        # With the maximum, scores can be high up to a whole window before and after a sound.
        reach = self.window if self.combine == "max" else self.window / 2
        for index, some in of_label.items():
            some.sort()
            spans = [(run.start * self.hop, min(run.stop * self.hop, seconds)) for run in some]
            if self.edges == "spectrum":
                spans = placed(spans, edges, reach)
            for run, (onset, offset) in zip(some, spans):
                times = (round(onset, TIME_DIGITS), round(min(offset, seconds), TIME_DIGITS))
                events.append(Event(*times, self.labels[index], round(run.score, SCORE_DIGITS)))
        return sorted(events)

    def _score_blocks(self, recording: Recording) -> Iterator[ScoreBlock]:
        hop, window = self._hop_samples, self._window_samples
        combiner, first = StepCombiner(self.num_covering, self.combine), 0
        extractor = self.tagger.extractor
        rate = extractor.sampling_rate
        finder = EdgeFinder(extractor.hop_samples / rate, extractor.window_samples / rate)
        # The recording is extended with silence at its beginning and its end.
        position = -(self.num_covering - 1) * hop  # of the first sample that waits
        waiting = np.zeros(-position, np.float32)
        for block in chain(recording.blocks(), self._silence_behind(recording)):
            waiting = np.concatenate([waiting, block])
            num_windows = max(0, (len(waiting) - window) // hop + 1)
            if num_windows == 0:
                continue
            seen = (num_windows - 1) * hop + window
            frames = self._frames(waiting[:seen])  # (T, F)
            steps = combiner.add(self._window_scores(frames, recording.source.name))
            edges = self._edges(finder, frames, position, recording)
            waiting = waiting[num_windows * hop :]
            position += num_windows * hop
            self._silence_bad_steps(steps, first, recording)
            yield ScoreBlock(first, steps, edges)
            first += len(steps)
        stretches = recording.bad_seconds()
        last = without_stretches(finder.finish(), stretches)
        ends = borders(stretches, recording.seconds)
        nothing = np.empty((0, len(self.labels)), np.float32)
        yield ScoreBlock(first, nothing, in_order([last, ends]))

    def _edges(
        self, finder: EdgeFinder, frames: Tensor, position: int, recording: Recording
    ) -> Edges:
        """The edges that are known with frames (T, F), the first of which begins at `position`.

        Frames that the finder has had already, and frames outside of the recording, are left out.
        """
        extractor = self.tagger.extractor
        first = position // extractor.hop_samples  # number of the first of these frames
        stop = extractor.count_frames(recording.num_samples) - first
        begin = finder.num_frames - first
        new = frames[max(0, begin) : max(0, stop)]
        if begin < 0 and len(new):
            # If windows do not overlap, the frames across the border of two blocks are in neither.
            # The next frame is repeated in their place, so that times stay right.
            new = torch.cat([new[:1].expand(-begin, -1), new])
        nats = new * (2 * extractor.std if extractor.do_normalize else 1.0)
        return without_stretches(finder.add(nats), recording.bad_seconds())

    def _silence_behind(self, recording: Recording) -> Iterator[np.ndarray]:
        """Zeros, so that the last step is covered by as many windows as the others."""
        num_steps = -(-recording.num_samples // self._hop_samples)
        stop = (num_steps - 1) * self._hop_samples + self._window_samples
        yield np.zeros(stop - recording.num_samples, np.float32)

    def _frames(self, samples: np.ndarray) -> Tensor:
        """The frames (T, F) of some samples (S,), as the model takes them."""
        extractor, waveform = self.tagger.extractor, torch.from_numpy(samples)
        inputs = extractor.extract([waveform], "longest", False, device=self.tagger.model.device)
        return inputs.input_values[0, : extractor.count_frames(len(samples))]

    def _window_scores(self, frames: Tensor, name: str) -> np.ndarray:
        """The scores (N, C) of all windows in some frames (T, F); the last ends with the frames."""
        tagger, extractor = self.tagger, self.tagger.extractor
        num_frames = extractor.count_frames(self._window_samples)
        hop_frames = self._hop_samples // extractor.hop_samples
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
            raise ValueError(tagger.nan_reason(name))
        return scores

    def _silence_bad_steps(self, steps: np.ndarray, first: int, recording: Recording) -> None:
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

    def _check(self, longest: float, frame: float) -> None:
        if self.combine not in COMBINATIONS:
            wanted = " or ".join(COMBINATIONS)
            raise ValueError(f"combine is {self.combine!r}; it must be {wanted}")
        if self.edges not in EDGES:
            raise ValueError(f"edges is {self.edges!r}; it must be {' or '.join(EDGES)}")
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
            some = ", ".join(self.labels[:NAMED_LABELS])
            more = ", ..." if len(self.labels) > NAMED_LABELS else ""
            raise ValueError(f"the model has no label {unknown!r}; it has {some}{more}")
        default = THRESHOLD if threshold is None else threshold
        thresholds = [of_labels.get(label, default) for label in self.labels]
        wrong = next((value for value in thresholds if not 0 < value <= 1), None)
        if wrong is not None:
            raise ValueError(f"a threshold is {wrong}; give more than 0 and at most 1")
        return np.array(thresholds)


def _reported(
    blocks: Iterable[ScoreBlock], name: str, on_scores: Callable[[str, ScoreBlock], None]
) -> Iterator[ScoreBlock]:
    """The same blocks; each is passed to `on_scores` first."""
    for block in blocks:
        on_scores(name, block)
        yield block


__all__ = ["Detection", "Event", "EventDetector", "ScoreBlock"]
