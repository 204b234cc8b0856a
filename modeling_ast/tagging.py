"""AudioTagger: many audio files or clips -> their scores and labels, in order.

Workers decode while the model runs. Clips wait in a window of bounded size; each batch takes the
oldest of them and those nearest to it in length, so that little is spent on padding, the oldest
result comes next, and memory grows neither with the number of clips nor with their length. Every
clip gets the scores that it gets alone.

Here is also the one rule of cutting and padding: a clip that is longer than the model's input is
cut into equal parts, whose scores are averaged (`equal_parts`); each part is padded as the
extractor's saved `padding` says, unless the caller says otherwise.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .audio import is_single_clip, stream_audio
from .calibration import Calibration, load_calibration
from .decoding import AudioFile
from .errors import one_line
from .feature_extraction_ast import ASTFeatureExtractor
from .labels import activation, distinct_names
from .modeling_ast import ASTForAudioClassification
from .padding import padding_name
from .pretrained import load_extractor, load_model
from .samples import check_samples
from .workers import Clip, decode_clips

logger = logging.get_logger(__name__)

# On a CPU the tokens of a batch stay in the cache; a GPU wants enough of them to be busy.
CPU_BATCH_FRAMES, DEVICE_BATCH_FRAMES = 1024, 32768
# The window, in batches: more pad less, hold more audio and wait longer for the first result. The
# first batch is taken at a quarter of it, which then grows with each: slowly, or a GPU would wait
# for the clips that fill it.
CPU_WINDOW_BATCHES, DEVICE_WINDOW_BATCHES = 32, 8
FIRST_WINDOW, WINDOW_GROWTH = 1 / 4, 1 / 32
# Fixed cost of a batch as a share of a full one; a clip that needs more padding than this goes into
# another batch.
BATCH_COST = 1 / 32
# Decoding keeps up with a model on a CPU in one process or two: half the CPUs, at most so many.
# Beside a GPU all CPUs but one decode: sixteen decode about as fast as it tags.
MOST_WORKERS_ON_CPU = 8
# A file with more samples than that, 8.7 minutes at 16 kHz, is decoded in this process, part by
# part as the model takes them, so that memory does not grow with its length.
LONG_FILE_BYTES = 2**25
# Clips after which a run that pads most of what it computes says so.
CLIPS_BEFORE_HINT = 100
DEFAULT_TOP_K = 5


@dataclass
class ClipTags:
    """What the model hears in one clip, or why there is nothing to hear."""

    name: str  # the path, or "clip 3" (counted from 0)
    seconds: float | None = None  # None in a bad clip
    # Label -> score, highest first; labels of one name have their index behind it.
    labels: dict[str, float] = field(default_factory=dict)
    error: str | None = None  # the reason, in a bad clip
    scores: np.ndarray | None = None  # (C,), float64: of all labels, in the model's order
    # Labels whose scores reach their calibrated thresholds; None where the model has none.
    detected: list[str] | None = None


class AudioTagger:
    """Tags any number of clips with an AST; see `from_pretrained` for the usual way to one.

    A clip up to the length that the model was trained for (10.24 s for AudioSet) is heard in one
    piece, a longer one in equal parts of at most that length; its scores are their mean. They are
    the scores that a pipeline gives for the same parts.

    Args:
        model: In evaluation mode, on the device where it shall run.
        extractor: The model's.
        batch_frames: Frames in a batch, padding included; a longer clip comes alone. By
            default 1024 on a CPU and 32768 elsewhere: 10 seconds and 5 minutes of audio.
        num_workers: Processes that decode; 0 decodes in this one. By default all CPUs but one
            beside a GPU; half the CPUs, at most 8, where the model is on the CPU too.
        top_k: Labels of each result.
        scores: "sigmoid" (each label for itself), "softmax" (one label for all), or "auto", which
            asks the config and takes sigmoid for AudioSet's 527 classes.
        padding: "max_length" pads each clip to the model's length, as plain transformers does;
            "longest" to the longest clip of its batch, which takes less time for short clips and
            gives other scores. By default what the extractor has saved.
        calibration: Makes probabilities of the scores, and says from which on a label counts.

    Raises:
        ValueError: A number is too small, `scores` or `padding` is none of those, or the extractor
            is that of another model.

    Example:

    ```python
    >>> from modeling_ast import AudioTagger
    >>> tagger = AudioTagger.from_pretrained("MIT/ast-finetuned-audioset-10-10-0.4593")
    >>> for clip in tagger(["dog.wav", "siren.ogg"]):  # doctest: +SKIP
    ...     print(clip.name, clip.labels or clip.error)
    ```
    """

    def __init__(
        self,
        model: ASTForAudioClassification,
        extractor: ASTFeatureExtractor,
        batch_frames: int | None = None,
        num_workers: int | None = None,
        top_k: int = DEFAULT_TOP_K,
        scores: str = "auto",
        padding: str | None = None,
        calibration: Calibration | None = None,
    ):
        on_cpu = model.device.type == "cpu"
        if batch_frames is None:
            batch_frames = CPU_BATCH_FRAMES if on_cpu else DEVICE_BATCH_FRAMES
        if num_workers is None:
            num_workers = default_workers(on_cpu)
        for name, value, least in (
            ("batch_frames", batch_frames, 1),
            ("num_workers", num_workers, 0),
            ("top_k", top_k, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; give at least {least}")
        bins, patch_frames = model.config.num_mel_bins, model.config.patch_shape[1]
        if extractor.num_mel_bins != bins or extractor.max_length < patch_frames:
            raise ValueError(
                f"the extractor gives {extractor.num_mel_bins} mel bins and up to "
                f"{extractor.max_length} frames but the model takes {bins} bins and at least "
                f"{patch_frames} frames; take ASTFeatureExtractor.from_config(model.config)"
            )
        self.model = model
        self.extractor = extractor
        self.batch_frames = batch_frames
        self.num_workers = num_workers
        self.names = distinct_names(model.config.id2label)
        self.top_k = min(top_k, len(self.names))
        if top_k > self.top_k and top_k != DEFAULT_TOP_K:
            logger.warning(f"top_k (--top-k) is {top_k} but the model has {self.top_k} labels")
        self.sigmoid = activation(scores, model.config) == "sigmoid"
        self.padding = extractor.padding if padding is None else padding_name(padding)
        self.calibration = calibration
        # Whether a log line says what padding costs where most of what is computed is padding.
        self.hint_at_padding = True
        self.window_batches = CPU_WINDOW_BATCHES if on_cpu else DEVICE_WINDOW_BATCHES
        # A GPU works on one batch while the next is prepared; a CPU has nothing to wait for.
        self.batches_ahead = 0 if on_cpu else 1

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        calibration: bool = True,
        **kwargs,
    ) -> AudioTagger:
        """Loads a checkpoint with its extractor.

        Args:
            model: Name on the Hub, or a directory.
            device: A GPU if there is one, by default.
            dtype: Of the weights; the checkpoint's by default. A GPU is many times faster with
                "bfloat16" than with "float32".
            calibration: Whether the checkpoint's calibration.json is used, where it has one.
            kwargs: Arguments of `AudioTagger`.

        Raises:
            OSError: There is no such checkpoint, or the Hub cannot be reached.
            ValueError: It is damaged, of another model or lacks weights, such as those of the head;
                there is no such device; or as `AudioTagger`.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        network = load_model(model) if dtype is None else load_model(model, dtype=dtype)
        extractor = load_extractor(model)
        # transformers wraps `to` without its types.
        module: nn.Module = network
        try:
            module.to(device)
        except (AssertionError, RuntimeError) as error:
            # An assertion of torch's says that it was not built for the device.
            raise ValueError(
                f"cannot use the device {str(device)!r} ({one_line(error)}); give --device cpu"
            ) from error
        tagger = cls(network, extractor, **kwargs)
        if calibration:
            tagger.calibration = load_calibration(model, tagger.names, tagger.activation)
        return tagger

    def __call__(self, clips: Iterable[Any]) -> Iterator[ClipTags]:
        """Tags clips as they come; a bad one does not stop the others.

        Args:
            clips: Each in a form that `audio.read_clip` takes: a path, the content of a file
                (bytes), samples, (samples, rate), {"array", "sampling_rate"}, a data set's row, ...
                A generator is read no further than the window reaches.
        Returns:
            One result for each clip, in the order of `clips`.
        Raises:
            TypeError: `clips` is a single clip.
        """
        if is_single_clip(clips):
            raise TypeError(f"clips is a single {type(clips).__name__}; give a list of clips")
        return self._in_order(clips)

    @torch.inference_mode()
    def logits(self, waveforms: list[Tensor]) -> Tensor:
        """Logits (B, C), float32, of checked waveforms (S,) of any lengths, in one batch.

        Args:
            waveforms: As `audio.read_clip` gives them, each no longer than the model's input.
        """
        inputs = self.extractor.extract(waveforms, self.padding, device=self.model.device)
        return self.model(**inputs).logits.float()

    @torch.inference_mode()
    def frame_logits(self, frames: Tensor, num_frames: int) -> Tensor:
        """Logits (B, C), float32, of clips whose frames are known, in one batch.

        Args:
            frames: (B, T, F), as the extractor gives them, none of them padding.
            num_frames: What T is padded to, as the extractor's `num_frames` says.
        """
        num_clips, num_real, _ = frames.shape
        values = F.pad(frames, (0, 0, 0, num_frames - num_real))  # (B, num_frames, F)
        values[:, num_real:] = self.extractor.padded_frame.to(values)
        mask = None
        if self.padding == "longest" or self.extractor.return_attention_mask:
            mask = (torch.arange(num_frames) < num_real).long().expand(num_clips, -1)
        return self.model(input_values=values, attention_mask=mask).logits.float()

    @property
    def activation(self) -> str:
        """What makes scores of logits: "sigmoid" or "softmax"."""
        return "sigmoid" if self.sigmoid else "softmax"

    def scores_of(self, logits: Tensor) -> np.ndarray:
        """Scores (..., C), float64, of logits on the CPU, before any calibration."""
        # In float64: in float32 sure predictions round to 1 and tie.
        wide = logits.double()
        return (wide.sigmoid() if self.sigmoid else wide.softmax(-1)).numpy()

    def _in_order(self, clips: Iterable[Any]) -> Iterator[ClipTags]:
        done, expected = {}, 0
        for number, tags in self._as_ready(clips):
            done[number] = tags
            while expected in done:
                yield done.pop(expected)
                expected += 1

    def _as_ready(self, clips: Iterable[Any]) -> Iterator[tuple[int, ClipTags]]:
        """(number, result) of each clip, in the order in which the batches end."""
        window = _Window(self.batch_frames, self.window_batches)
        launched: deque[tuple[list[_Piece], Tensor, torch.cuda.Event | None]] = deque()
        lengths: list[int] = []
        pin_memory = self.model.device.type == "cuda"
        rate, shortest = self.extractor.sampling_rate, self.extractor.window_samples
        for clip in decode_clips(
            clips, rate, self.num_workers, pin_memory, shortest, LONG_FILE_BYTES
        ):
            heard = _Heard(clip.number, clip.name)
            for piece in self._pieces(clip, heard):
                window.add(piece)
                while window.is_full:
                    launched.append(self._launch(window.take()))
                    while len(launched) > self.batches_ahead:
                        yield from self._collect(*launched.popleft())
            if clip.error is not None:
                yield clip.number, ClipTags(clip.name, error=clip.error)
            elif len(lengths) < CLIPS_BEFORE_HINT:
                lengths.append(heard.num_samples)
                if len(lengths) == CLIPS_BEFORE_HINT:
                    self._say_what_padding_costs(lengths)
        while window.pieces or launched:
            if window.pieces:
                launched.append(self._launch(window.take()))
            while len(launched) > (self.batches_ahead if window.pieces else 0):
                yield from self._collect(*launched.popleft())
        if len(lengths) < CLIPS_BEFORE_HINT:
            self._say_what_padding_costs(lengths)

    def _say_what_padding_costs(self, lengths: list[int]) -> None:
        """Says how much time padding takes, where most of what is computed is padding."""
        longest, rate = self.extractor.max_samples, self.extractor.sampling_rate
        wanted = self.hint_at_padding and self.padding == "max_length"
        if not wanted or not lengths or median(lengths) >= longest / 2:
            return
        padded, tight = (
            sum(
                self.extractor.num_frames([stop - start], padding)
                for length in lengths
                for start, stop in equal_parts(length, longest)
            )
            for padding in ("max_length", "longest")
        )
        logger.warning(
            f"the median clip lasts {median(lengths) / rate:.2g} s but each is padded to "
            f'{longest / rate:.2f} s, as plain transformers does; with padding="longest" '
            f"(--padding longest) this would be about {padded / tight:.1f} times as fast, with "
            f"other scores"
        )

    def _pieces(self, clip: Clip, heard: _Heard) -> Iterator[_Piece]:
        """The parts of a clip; if it turns out to be bad, `clip.error` says so after the last."""
        if clip.is_long:
            try:
                yield from self._pieces_of_file(clip, heard)
            # As with files that a worker decodes: it must not stop the others.
            except Exception as error:
                clip.error = one_line(error)
                heard.forget()
        elif clip.error is None:
            waveform = clip.waveform
            assert isinstance(waveform, Tensor)  # from `decode_clips`, which gives no other
            bounds = heard.begin(len(waveform), self.extractor.max_samples)
            for start, stop in bounds:
                yield self._piece(waveform[start:stop], heard)

    def _pieces_of_file(self, clip: Clip, heard: _Heard) -> Iterator[_Piece]:
        """The parts of a file that is too long for one waveform, as they are decoded."""
        assert clip.source is not None and clip.source.file is not None  # a long clip is a file
        source, rate = clip.source.file, self.extractor.sampling_rate
        num_samples = AudioFile(source).length_at(rate)
        if num_samples is None:
            num_samples = sum(map(len, stream_audio(source, rate)))
        while num_samples != heard.num_samples:
            bounds = heard.begin(num_samples, self.extractor.max_samples)
            blocks, num_samples, rest = stream_audio(source, rate), 0, np.empty(0, np.float32)
            for start, stop in bounds:
                while len(rest) < stop - start and (block := next(blocks, None)) is not None:
                    check_samples(torch.from_numpy(block), clip.name)
                    rest = np.concatenate([rest, block])
                part, rest = rest[: stop - start], rest[stop - start :]
                num_samples += len(part)
                # A file whose header announces too much ends early.
                if len(part) >= self.extractor.window_samples:
                    yield self._piece(torch.from_numpy(part), heard)
            num_samples += len(rest) + sum(map(len, blocks))
            # Where the header was wrong the parts are others: once more, with what is there.

    def _piece(self, waveform: Tensor, heard: _Heard) -> _Piece:
        frames = self.extractor.num_frames([len(waveform)], self.padding)
        return _Piece(waveform, frames, heard, heard.attempt)

    def _launch(self, batch: list[_Piece]) -> tuple[list[_Piece], Tensor, torch.cuda.Event | None]:
        logits = self.logits([piece.waveform for piece in batch])  # (B, C)
        if not logits.is_cuda:
            return batch, logits.cpu(), None
        # The copy begins now: asked for later, it would wait for the next batch too.
        copied = logits.to("cpu", non_blocking=True)
        return batch, copied, torch.cuda.current_stream(logits.device).record_event()

    def _collect(
        self, batch: list[_Piece], logits: Tensor, copied: torch.cuda.Event | None
    ) -> Iterator[tuple[int, ClipTags]]:
        if copied is not None:
            copied.synchronize()
        for piece, row in zip(batch, self.scores_of(logits)):
            clip = piece.clip
            if piece.attempt != clip.attempt:
                continue
            clip.scores = clip.scores + row / clip.num_parts  # (C,)
            clip.parts_left -= 1
            if clip.parts_left == 0:
                yield clip.number, self._tags(clip)

    def _tags(self, clip: _Heard) -> ClipTags:
        if np.isnan(clip.scores).any():
            reason = f"the model gives NaN for {clip.name} in {self.model.dtype}"
            return ClipTags(clip.name, error=f'{reason}; try "bfloat16" or "float32"')
        scores, detected = clip.scores, None
        if self.calibration is not None:
            scores = self.calibration.apply(scores)
            reach = np.flatnonzero(scores >= self.calibration.thresholds)
            detected = [self.names[index] for index in reach.tolist()]
        order = np.argsort(-scores, kind="stable")[: self.top_k].tolist()
        labels = {self.names[index]: float(scores[index]) for index in order}
        seconds = clip.num_samples / self.extractor.sampling_rate
        return ClipTags(clip.name, seconds, labels, scores=scores, detected=detected)


def default_workers(model_is_on_cpu: bool) -> int:
    """Processes that decode as fast as the model tags, on the CPUs that this process may use."""
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        cpus = len(os.sched_getaffinity(0))
    if model_is_on_cpu:
        return min(MOST_WORKERS_ON_CPU, max(1, cpus // 2))
    return max(1, cpus - 1)


def equal_parts(num_samples: int, longest: int) -> list[tuple[int, int]]:
    """Where a clip is cut: ceil(num_samples / longest) parts, equal but for rounding to a sample.

    Args:
        num_samples: Of the clip.
        longest: Samples that the model hears at once, `ASTFeatureExtractor.max_samples`.
    Returns:
        (start, stop) of each part: together they are the whole clip, none is over `longest`.
    """
    count = max(1, -(-num_samples // longest))
    bounds = [round(number * num_samples / count) for number in range(count + 1)]
    return list(pairwise(bounds))


def mean_logits(logits: Tensor, num_parts: Sequence[int], sigmoid: bool) -> Tensor:
    """Logits of whole clips: those whose scores are the mean of the scores of the parts.

    For code that wants logits, such as a loss or Trainer's `compute_metrics`; `AudioTagger`
    averages the scores themselves.

    Args:
        logits: (P, C), of the parts of all clips, one clip after the other.
        num_parts: Of each clip; they add up to P.
        sigmoid: Whether the scores are sigmoids; else they are softmaxes.
    Returns:
        (B, C), in the dtype of `logits`; a clip of one part keeps its own. From softmaxes they are
        log-probabilities.
    """
    rows = []
    for parts in logits.split(list(num_parts)):  # (parts of one clip, C)
        if len(parts) == 1:
            rows.append(parts[0])
            continue
        # In logarithms, and in float64: sure scores would round to 1.
        wide = parts.double()
        if sigmoid:
            row = F.logsigmoid(wide).logsumexp(0) - F.logsigmoid(-wide).logsumexp(0)
        else:
            row = wide.log_softmax(-1).logsumexp(0) - math.log(len(parts))
        rows.append(row.to(logits.dtype))
    return torch.stack(rows)


@dataclass
class _Heard:
    """A clip while its parts are in the window or with the model."""

    number: int
    name: str
    num_samples: int = 0
    num_parts: int = 0
    parts_left: int = 0
    # (C,): the sum over the parts so far, of their mean; before the first one a single zero, ().
    scores: np.ndarray = field(default_factory=lambda: np.zeros(()))
    attempt: int = 0  # parts of an earlier one count no more

    def begin(self, num_samples: int, longest: int) -> list[tuple[int, int]]:
        """The parts, none of which has scores yet."""
        parts = equal_parts(num_samples, longest)
        self.num_samples, self.num_parts, self.parts_left = num_samples, len(parts), len(parts)
        self.forget()
        return parts

    def forget(self) -> None:
        """Takes the parts back that are on their way or done."""
        self.scores = np.zeros(())
        self.attempt += 1


@dataclass
class _Piece:
    """A whole clip, or a part of one that is longer than the model's input."""

    waveform: Tensor  # (S,)
    frames: int  # padding included
    clip: _Heard
    attempt: int  # at the clip


class _Window:
    """Pieces that wait: a few batches of them."""

    def __init__(self, batch_frames: int, most_batches: int):
        self.batch_frames = batch_frames
        self.most_batches = most_batches
        self.wanted_batches = FIRST_WINDOW * most_batches
        self.pieces: dict[int, _Piece] = {}  # by the number of arrival, oldest first
        self.by_length: list[tuple[int, int]] = []  # (frames, number), sorted
        self.arrived = 0
        self.frames = 0

    @property
    def is_full(self) -> bool:
        return self.frames >= self.wanted_batches * self.batch_frames

    def add(self, piece: _Piece) -> None:
        self.pieces[self.arrived] = piece
        insort(self.by_length, (piece.frames, self.arrived))
        self.arrived += 1
        self.frames += piece.frames

    def take(self) -> list[_Piece]:
        """The oldest piece, and those nearest to it in length while that pays."""
        oldest = next(iter(self.pieces))
        first = bisect_left(self.by_length, (self.pieces[oldest].frames, oldest))
        last = first
        while (wider := self._widened(first, last)) is not None:
            first, last = wider
        numbers = sorted(number for _, number in self.by_length[first : last + 1])
        del self.by_length[first : last + 1]
        batch = [self.pieces.pop(number) for number in numbers]
        self.frames -= sum(piece.frames for piece in batch)
        grown = self.wanted_batches + WINDOW_GROWTH * self.most_batches
        self.wanted_batches = min(self.most_batches, grown)
        return batch

    def _widened(self, first: int, last: int) -> tuple[int, int] | None:
        """The range of `by_length` with the nearer of its two neighbours, if it pays."""
        lengths, count = self.by_length, last - first + 1
        shortest, longest = lengths[first][0], lengths[last][0]
        shorter = lengths[first - 1][0] if first > 0 else None
        longer = lengths[last + 1][0] if last + 1 < len(lengths) else None
        if shorter is None and longer is None:
            return None
        if longer is None or (shorter is not None and shortest - shorter <= longer - longest):
            assert shorter is not None  # one of the two is there
            padding, longer, wider = longest - shorter, longest, (first - 1, last)
        else:
            padding, wider = count * (longer - longest), (first, last + 1)
        fits = longer * (count + 1) <= self.batch_frames
        return wider if fits and padding <= self.batch_frames * BATCH_COST else None


__all__ = ["AudioTagger", "ClipTags", "default_workers", "equal_parts", "mean_logits"]
