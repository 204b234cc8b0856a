"""AudioTagger: many audio files or clips -> their scores and labels, in order.

Workers decode while the model runs. A clip that is longer than the model's input is cut into equal
parts (`clip_parts.py`), which wait in a window of bounded size (`batching.py`): memory grows
neither with the number of clips nor with their length. The scores of a clip do not depend on the
other clips. Each part is padded as the extractor's saved `padding` says, unless the caller gives
another.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .audio import is_single_clip
from .batching import Window
from .calibration import Calibration, load_calibration
from .clip_parts import HeardClip, Piece, equal_parts, pieces_of
from .devices import fast_cpu_dtype
from .errors import one_line
from .feature_extraction_ast import ASTFeatureExtractor
from .labels import activation, distinct_names
from .modeling_ast import ASTForAudioClassification
from .padding import padding_name
from .pretrained import load_extractor, load_model
from .quantization import is_quantized
from .workers import LONG_FILE_BYTES, decode_clips

logger = logging.get_logger(__name__)

# On a CPU the tokens of a batch should stay in the cache; a GPU needs many tokens to be busy.
CPU_BATCH_FRAMES, DEVICE_BATCH_FRAMES = 1024, 32768
# Size of the window, in batches. A larger one needs less padding, but holds more audio and gives
# the first result later.
CPU_WINDOW_BATCHES, DEVICE_WINDOW_BATCHES = 32, 8
# For a model on a CPU, one or two processes decode fast enough: half of the CPUs are used, at most
# so many. For a model on a GPU all CPUs but one are used: sixteen decode about as fast as it tags.
MOST_WORKERS_ON_CPU = 8
# After so many clips, a warning says if most of what is computed is padding.
CLIPS_BEFORE_HINT = 100
# With fewer clips the time does not matter.
CLIPS_FOR_HINT = 10
DEFAULT_TOP_K = 5
# What to do if a model gives NaN: types of more range or precision than its own, if there are some.
NAN_REMEDIES = {
    torch.float16: 'try "bfloat16" or "float32"',
    torch.bfloat16: 'try "float32"',
}
CHECK_MODEL = "check the weights of the model, and mean and std of its extractor"


class _Launched(NamedTuple):
    """A batch that was passed to the model."""

    batch: list[Piece]
    outputs: Tensor  # (B, C), or (B, C + D) with vectors, on the CPU
    copied: torch.cuda.Event | None  # the end of their copy from a GPU


@dataclass
class ClipTags:
    """The labels of one clip, or the reason why it cannot be used."""

    name: str  # the path, or "clip 3" (counted from 0)
    seconds: float | None = None  # None in a bad clip
    # Label -> score, highest first. Labels of the same name are followed by their index.
    labels: dict[str, float] = field(default_factory=dict)
    error: str | None = None  # the reason, in a bad clip
    scores: np.ndarray | None = None  # (C,), float64: of all labels, in the model's order
    # Labels whose scores reach their calibrated thresholds; None if the model has no calibration.
    detected: list[str] | None = None
    # (parts, D), float32, if embeddings are wanted: the encoder's pooled output for each part.
    embeddings: np.ndarray | None = None

    @property
    def embedding(self) -> np.ndarray | None:
        """(D,), float32: the mean of the vectors of the clip's parts."""
        if self.embeddings is None:
            return None
        return self.embeddings.mean(0, dtype=np.float64).astype(np.float32)


class AudioTagger:
    """Tags any number of clips with an AST; usually it is made by `from_pretrained`.

    A clip up to the length that the model was trained for (10.24 s for AudioSet) is scored in one
    piece. A longer clip is scored in equal parts of at most that length, and its scores are the
    mean over the parts. The scores of a part are those that a pipeline gives for it.

    Args:
        model: In evaluation mode, on the device where it will run.
        extractor: The model's.
        batch_frames: Frames in a batch, padding included; a longer clip is a batch of its own. By
            default 1024 on a CPU and 32768 elsewhere: 10 seconds and 5 minutes of audio.
        num_workers: Processes that decode; 0 decodes in this process. By default all CPUs but one
            if the model is on a GPU; half the CPUs, at most 8, if it is on the CPU.
        top_k: Number of labels in each result.
        scores: "sigmoid" (each label for itself), "softmax" (the scores of all labels sum to 1), or
            "auto", which follows the config and takes sigmoid for AudioSet's 527 classes.
        padding: "max_length" pads each clip to the model's length, as plain transformers does;
            "longest" to the longest clip of its batch, which takes less time for short clips and
            gives other scores. By default the extractor's saved padding is used.
        calibration: Turns scores into probabilities, and has a threshold for each label.
        embeddings: Whether results have vectors too: `pooler_output`, (D,), of the forward pass
            that gives the scores, for each part, and their mean.

    Raises:
        ValueError: A number is too small, `scores` or `padding` has another value, or the extractor
            belongs to another model.

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
        embeddings: bool = False,
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
        self.embeddings = embeddings
        # Whether a warning says what padding costs if most of what is computed is padding.
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
            device: By default a GPU if there is one.
            dtype: Of the weights; by default the checkpoint's. A GPU is many times faster with
                "bfloat16" than with "float32". On a CPU "auto" takes the one of these two that a
                short measurement shows to be faster.
            calibration: Whether the checkpoint's calibration.json is used, if it has one.
            kwargs: Arguments of `AudioTagger`.

        Raises:
            OSError: There is no such checkpoint, or the Hub cannot be reached.
            ValueError: It is damaged, belongs to another kind of model, or lacks weights, such as
                those of the head; there is no such device; or for the reasons of `AudioTagger`.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto" and torch.device(device).type == "cpu":
            dtype = fast_cpu_dtype()
        network = load_model(model) if dtype is None else load_model(model, dtype=dtype)
        extractor = load_extractor(model)
        # transformers wraps `to` without its types.
        module: nn.Module = network
        try:
            module.to(device)
        except (AssertionError, RuntimeError) as error:
            # torch raises an AssertionError if it was not built for the device.
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
                A generator is read only as far ahead as the window reaches.
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
    def logits_and_embeddings(self, waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, as `logits` gives them, and `pooler_output` (B, D), float32, of the same pass."""
        inputs = self.extractor.extract(waveforms, self.padding, device=self.model.device)
        encoder = self.model.audio_spectrogram_transformer
        pooled = encoder(**inputs, prefix_only=True).pooler_output  # (B, D)
        return self.model.classifier(pooled).float(), pooled.float()

    @torch.inference_mode()
    def frame_logits(self, frames: Tensor, num_frames: int) -> Tensor:
        """Logits (B, C), float32, of clips whose frames are known, in one batch.

        Args:
            frames: (B, T, F), as the extractor gives them, without padding.
            num_frames: The number of frames to pad to, from the extractor's `num_frames`.
        """
        num_clips, num_real, _ = frames.shape
        values = F.pad(frames, (0, 0, 0, num_frames - num_real))  # (B, num_frames, F)
        values[:, num_real:] = self.extractor.padded_frame.to(values)
        mask = None
        if self.padding == "longest" or self.extractor.return_attention_mask:
            mask = (torch.arange(num_frames) < num_real).long().expand(num_clips, -1)
        return self.model(input_values=values, attention_mask=mask).logits.float()

    def nan_reason(self, name: str) -> str:
        """The message for a clip, given by its name, for which the model gives NaN."""
        dtype = self.model.dtype
        return f"the model gives NaN for {name} in {dtype}; {NAN_REMEDIES.get(dtype, CHECK_MODEL)}"

    @property
    def activation(self) -> str:
        """The function that turns logits into scores: "sigmoid" or "softmax"."""
        return "sigmoid" if self.sigmoid else "softmax"

    @property
    def dtype_name(self) -> str:
        """How the model computes: "float32", "bfloat16", "float16", or "int8" if quantized."""
        if is_quantized(self.model):
            return "int8"
        return str(self.model.dtype).removeprefix("torch.")

    def scores_of(self, logits: Tensor) -> np.ndarray:
        """Scores (..., C), float64, of logits on the CPU, before any calibration."""
        # In float64, because in float32 scores near 1 round to 1 and tie.
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
        """(number, result) of each clip, in the order in which results are ready."""
        window = Window(self.batch_frames, self.window_batches)
        launched: deque[_Launched] = deque()
        lengths: list[int] = []
        pin_memory = self.model.device.type == "cuda"
        rate, shortest = self.extractor.sampling_rate, self.extractor.window_samples
        for clip in decode_clips(
            clips, rate, self.num_workers, pin_memory, shortest, LONG_FILE_BYTES
        ):
            heard = HeardClip(clip.number, clip.name)
            for piece in pieces_of(clip, heard, self.extractor, self.padding):
                window.add(piece)
                while window.is_full:
                    launched.append(self._launch(window.take()))
                    while len(launched) > self.batches_ahead:
                        yield from self._collect(launched.popleft())
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
                yield from self._collect(launched.popleft())
        if len(lengths) < CLIPS_BEFORE_HINT:
            self._say_what_padding_costs(lengths)

    def _say_what_padding_costs(self, lengths: list[int]) -> None:
        """Warns how much time padding takes, if most of what is computed is padding."""
        longest, rate = self.extractor.max_samples, self.extractor.sampling_rate
        wanted = self.hint_at_padding and self.padding == "max_length"
        if not wanted or len(lengths) < CLIPS_FOR_HINT or median(lengths) >= longest / 2:
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

    def _launch(self, batch: list[Piece]) -> _Launched:
        waveforms = [piece.waveform for piece in batch]
        if self.embeddings:
            # Together, so that a GPU sends both in one copy.
            outputs = torch.cat(self.logits_and_embeddings(waveforms), 1)  # (B, C + D)
        else:
            outputs = self.logits(waveforms)  # (B, C)
        if not outputs.is_cuda:
            return _Launched(batch, outputs.cpu(), None)
        # The copy is requested now: requested later, it would wait for the next batch too.
        copied = outputs.to("cpu", non_blocking=True)
        return _Launched(batch, copied, torch.cuda.current_stream(outputs.device).record_event())

    def _collect(self, launched: _Launched) -> Iterator[tuple[int, ClipTags]]:
        if launched.copied is not None:
            launched.copied.synchronize()
        num_labels = len(self.names)
        scores = self.scores_of(launched.outputs[:, :num_labels])  # (B, C)
        vectors = launched.outputs[:, num_labels:].numpy() if self.embeddings else None
        for number, (piece, row) in enumerate(zip(launched.batch, scores)):
            clip = piece.clip
            if clip.add(piece, row, None if vectors is None else vectors[number]):
                yield clip.number, self._tags(clip)

    def _tags(self, clip: HeardClip) -> ClipTags:
        if np.isnan(clip.scores).any():
            return ClipTags(clip.name, error=self.nan_reason(clip.name))
        scores, detected = clip.scores, None
        if self.calibration is not None:
            scores = self.calibration.apply(scores)
            reach = np.flatnonzero(scores >= self.calibration.thresholds)
            detected = [self.names[index] for index in reach.tolist()]
        order = np.argsort(-scores, kind="stable")[: self.top_k].tolist()
        labels = {self.names[index]: float(scores[index]) for index in order}
        seconds = clip.num_samples / self.extractor.sampling_rate
        return ClipTags(
            clip.name,
            seconds,
            labels,
            scores=scores,
            detected=detected,
            embeddings=clip.embeddings(),
        )


def default_workers(model_is_on_cpu: bool) -> int:
    """Number of processes that decode, of the CPUs that this process may use."""
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        cpus = len(os.sched_getaffinity(0))
    if model_is_on_cpu:
        return min(MOST_WORKERS_ON_CPU, max(1, cpus // 2))
    return max(1, cpus - 1)


__all__ = ["AudioTagger", "ClipTags", "default_workers"]
