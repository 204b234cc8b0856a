"""AudioTagger: many audio files or clips -> their labels, in order, as fast as they can be had.

Workers decode while the model runs. Clips wait in a window of bounded size; each batch takes the
oldest of them and those nearest to it in length, so that little is spent on padding, the oldest
result comes next, and memory does not grow with the number of clips. Every clip gets the scores
that it gets alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .audio_file_ast import read_audio, resample
from .configuration_ast import ASTConfig
from .fbank_ast import hop_samples
from .feature_extraction_ast import ASTFeatureExtractor
from .modeling_ast import ASTForAudioClassification

SCORES = ("auto", "sigmoid", "softmax")
# Hub checkpoints of AudioSet do not say that their labels are independent; their number does.
AUDIOSET_CLASSES = 527
# On a CPU the tokens of a batch stay in the cache; a GPU wants enough of them to be busy.
CPU_BATCH_FRAMES, DEVICE_BATCH_FRAMES = 1024, 32768
# The window, in batches: more pad less, hold more audio and wait longer for the first result.
WINDOW_BATCHES = 16
# Attention is quadratic: a clip over a minute is heard in pieces, whose scores are averaged.
LONGEST_FRAMES = 6000
# Decoding keeps up with a model on a CPU in one process or two, with a GPU in more.
MOST_WORKERS = 8


@dataclass
class ClipTags:
    """What the model hears in one clip, or why there is nothing to hear."""

    name: str  # the path, or "clip 3" (counted from 0)
    seconds: float | None = None  # None in a bad clip
    labels: dict[str, float] = field(default_factory=dict)  # label -> score, highest first
    error: str | None = None  # the reason, in a bad clip


class AudioTagger:
    """Tags any number of clips with an AST; see `from_pretrained` for the usual way to one.

    Args:
        model: In evaluation mode, on the device where it shall run.
        extractor: The model's.
        batch_frames: Frames of 10 ms in a batch, padding included; a longer clip comes alone. By
            default 1024 on a CPU and 32768 elsewhere: 10 seconds and 5 minutes of audio.
        num_workers: Processes that decode; 0 decodes in this one. By default half the CPUs, at
            most 8.
        top_k: Labels of each result.
        scores: "sigmoid" (each label for itself), "softmax" (one label for all), or "auto", which
            asks the config and takes sigmoid for AudioSet's 527 classes.

    Raises:
        ValueError: A number is too small, or `scores` is none of the three.

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
        top_k: int = 5,
        scores: str = "auto",
    ):
        on_cpu = model.device.type == "cpu"
        if batch_frames is None:
            batch_frames = CPU_BATCH_FRAMES if on_cpu else DEVICE_BATCH_FRAMES
        if num_workers is None:
            num_workers = min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // 2))
        for name, value, least in (
            ("batch_frames", batch_frames, 1),
            ("num_workers", num_workers, 0),
            ("top_k", top_k, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; give at least {least}")
        if scores not in SCORES:
            raise ValueError(f"scores is {scores!r}; it must be one of {', '.join(SCORES)}")
        self.model = model
        self.extractor = extractor
        self.batch_frames = batch_frames
        self.num_workers = num_workers
        self.top_k = min(top_k, model.config.num_labels)
        self.sigmoid = activation(scores, model.config) == "sigmoid"
        # A GPU works on one batch while the next is prepared; a CPU has nothing to wait for.
        self.batches_ahead = 0 if on_cpu else 1

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **kwargs,
    ) -> AudioTagger:
        """Loads a checkpoint with its extractor.

        Args:
            model: Name on the Hub, or a directory.
            device: A GPU if there is one, by default.
            dtype: Of the weights; the checkpoint's by default.
            kwargs: Arguments of `AudioTagger`.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        extractor = ASTFeatureExtractor.from_pretrained(model)
        given = {} if dtype is None else {"dtype": dtype}
        network = ASTForAudioClassification.from_pretrained(model, **given)
        return cls(network.to(device).eval(), extractor, **kwargs)

    def __call__(self, clips: Iterable[Any]) -> Iterator[ClipTags]:
        """Tags clips as they come; a bad one does not stop the others.

        Args:
            clips: Paths, contents of files (bytes), mono arrays or tensors at the model's rate,
                {"array", "sampling_rate"}, {"bytes", "path"}, or rows of a data set whose column
                "audio" holds one of these. A generator is read no further than the window reaches.
        Returns:
            One result for each clip, in the order of `clips`.
        Raises:
            TypeError: `clips` is a single clip.
        """
        single = isinstance(clips, str | Path | bytes | Mapping)
        if single or getattr(clips, "ndim", 2) < 2:
            raise TypeError(f"clips is a single {type(clips).__name__}; give a list of clips")
        return self._in_order(_undecoded(clips))

    @torch.inference_mode()
    def logits(self, waveforms: list[Tensor]) -> Tensor:
        """Logits (B, C), float32, of waveforms (S,) of any lengths, in one batch."""
        device = self.model.device
        if device.type != "cpu":
            # One asynchronous copy for all: (sum of S,), cut up again on the device.
            lengths = [len(waveform) for waveform in waveforms]
            joined = torch.cat(waveforms).pin_memory().to(device, non_blocking=True)
            waveforms = list(joined.split(lengths))
        inputs = self.extractor(
            waveforms,
            sampling_rate=self.extractor.sampling_rate,
            padding="longest",
            truncation=False,
            return_tensors="pt",
        )
        return self.model(**inputs).logits.float()

    def _in_order(self, clips: Iterable[Any]) -> Iterator[ClipTags]:
        done, expected = {}, 0
        for number, tags in self._as_ready(clips):
            done[number] = tags
            while expected in done:
                yield done.pop(expected)
                expected += 1

    def _as_ready(self, clips: Iterable[Any]) -> Iterator[tuple[int, ClipTags]]:
        """(number, result) of each clip, in the order in which the batches end."""
        window, launched = _Window(self.batch_frames), deque()
        for clip in self._decoded(clips):
            if clip.error is not None:
                yield clip.number, ClipTags(clip.name, error=clip.error)
                continue
            window.add(clip, self._pieces(clip))
            while window.is_full:
                launched.append(self._launch(window.take()))
                while len(launched) > self.batches_ahead:
                    yield from self._collect(*launched.popleft())
        while window.pieces or launched:
            if window.pieces:
                launched.append(self._launch(window.take()))
            while len(launched) > (self.batches_ahead if window.pieces else 0):
                yield from self._collect(*launched.popleft())

    def _decoded(self, clips: Iterable[Any]) -> Iterable[_Clip]:
        # The loader's "indices" are the clips themselves: any iterable will do, even an endless.
        return DataLoader(
            _Decoder(self.extractor),
            sampler=_numbered(clips),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
        )

    def _pieces(self, clip: _Clip) -> list[_Piece]:
        hop = hop_samples(self.extractor.sampling_rate)
        waveform = torch.from_numpy(clip.waveform)  # (S,)
        count = -(-len(waveform) // (LONGEST_FRAMES * hop))
        clip.open_pieces, clip.seconds = count, len(waveform) / self.extractor.sampling_rate
        clip.waveform = None  # the pieces hold it, and let it go one by one
        shortest = self.extractor.min_length
        return [
            _Piece(clip, part, max(shortest, len(part) // hop))
            for part in waveform.tensor_split(count)
        ]

    def _launch(self, batch: list[_Piece]) -> tuple[list[_Piece], Tensor]:
        logits = self.logits([piece.waveform for piece in batch])  # (B, C)
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(-1)
        return batch, scores

    def _collect(self, batch: list[_Piece], scores: Tensor) -> Iterator[tuple[int, ClipTags]]:
        for piece, row in zip(batch, scores.cpu()):
            clip = piece.clip
            seconds = len(piece.waveform) / self.extractor.sampling_rate
            clip.scores = clip.scores + row * (seconds / clip.seconds)  # (C,)
            clip.open_pieces -= 1
            if clip.open_pieces == 0:
                yield clip.number, ClipTags(clip.name, clip.seconds, self._top(clip.scores))

    def _top(self, scores: Tensor) -> dict[str, float]:
        values, indices = scores.topk(self.top_k)
        names = self.model.config.id2label
        return {names[index]: value for index, value in zip(indices.tolist(), values.tolist())}


@dataclass
class _Clip:
    """A clip on its way: first to be decoded, then with its pieces in the window."""

    number: int
    name: str
    source: Any = None  # path, content, array, or (array, rate): what a worker process can be sent
    error: str | None = None
    waveform: np.ndarray | None = None  # (S,), checked
    seconds: float = 0.0
    open_pieces: int = 0
    scores: Tensor | float = 0.0  # (C,): of the pieces so far, weighted


@dataclass
class _Piece:
    """A whole clip, nearly always; a minute at most."""

    clip: _Clip
    waveform: Tensor  # (S,)
    frames: int


class _Window:
    """Pieces that wait, in the order of arrival: a few batches of them."""

    def __init__(self, batch_frames: int):
        self.batch_frames = batch_frames
        self.pieces: list[_Piece] = []
        self.frames = 0

    @property
    def is_full(self) -> bool:
        return self.frames >= WINDOW_BATCHES * self.batch_frames

    def add(self, clip: _Clip, pieces: list[_Piece]) -> None:
        self.pieces += pieces
        self.frames += sum(piece.frames for piece in pieces)

    def take(self) -> list[_Piece]:
        """The oldest piece, and those nearest to it in length that fit in the batch with it."""
        indices = sorted(range(len(self.pieces)), key=lambda index: self.pieces[index].frames)
        lengths = [self.pieces[index].frames for index in indices]
        first = indices.index(0)
        last = first
        while True:
            shorter = lengths[first] - lengths[first - 1] if first > 0 else None
            longer = lengths[last + 1] - lengths[last] if last + 1 < len(lengths) else None
            goes_down = shorter is not None and (longer is None or shorter <= longer)
            if not goes_down and longer is None:
                break
            longest = lengths[last if goes_down else last + 1]
            if longest * (last - first + 2) > self.batch_frames:
                break
            first, last = (first - 1, last) if goes_down else (first, last + 1)
        taken = set(indices[first : last + 1])
        batch = [self.pieces[index] for index in sorted(taken)]
        self.pieces = [piece for index, piece in enumerate(self.pieces) if index not in taken]
        self.frames -= sum(piece.frames for piece in batch)
        return batch


class _Decoder(Dataset):
    """Decodes, resamples and checks a clip, in a worker process."""

    def __init__(self, extractor: ASTFeatureExtractor):
        self.extractor = extractor

    def __getitem__(self, clip: _Clip) -> _Clip:
        if clip.error is None:
            try:
                clip.waveform = self._waveform(clip)
            except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
                clip.error = str(error) or type(error).__name__
        clip.source = None
        return clip

    def _waveform(self, clip: _Clip) -> np.ndarray:
        wanted = self.extractor.sampling_rate
        if isinstance(clip.source, str | Path | bytes):
            samples = read_audio(clip.source, wanted)
        elif isinstance(clip.source, tuple):
            samples, rate = clip.source
            samples = self.extractor._waveform(samples, clip.number).numpy()
            samples = resample(samples, rate, wanted)
        else:
            samples = clip.source
        return self.extractor._waveform(samples, clip.number).numpy()


def _numbered(clips: Iterable[Any]) -> Iterator[_Clip]:
    """Each clip with its name, in a form that can be sent to a worker."""
    for number, given in enumerate(clips):
        clip = _Clip(number, f"clip {number}")
        try:
            clip.name, clip.source = _source(given, clip.name)
        except (TypeError, ValueError) as error:
            clip.error = str(error)
        yield clip


def _source(clip: Any, name: str) -> tuple[str, Any]:
    """(name, path, content, array or (array, rate)) of whatever a user may call a clip."""
    if isinstance(clip, Mapping) and clip.get("audio") is not None:
        clip = clip["audio"]
    if isinstance(clip, str | Path):
        return str(clip), clip
    if isinstance(clip, bytes | bytearray | memoryview):
        return name, bytes(clip)
    if isinstance(clip, np.ndarray | Tensor | list | tuple):
        return name, _array(clip, name)
    if not isinstance(clip, Mapping):
        raise TypeError(
            f"{name} is a {type(clip).__name__}; give a path, bytes, an array, or a row with the "
            f'column "audio"'
        )
    name = str(clip.get("path") or name)
    if clip.get("array") is not None:
        array, rate = _array(clip["array"], name), clip.get("sampling_rate")
        return name, array if rate is None else (array, rate)
    source = clip.get("bytes") or clip.get("path")
    if source is None:
        raise ValueError(f"{name} has the keys {sorted(clip)} but neither audio, bytes nor a path")
    return name, source


def _array(samples: Any, name: str) -> np.ndarray:
    if isinstance(samples, Tensor):
        return samples.detach().cpu().numpy()
    array = np.asarray(samples)
    # It could not be sent to a worker, which would then be waited for in vain.
    if array.dtype == object:
        raise TypeError(f"{name} is a {type(samples).__name__} that holds no numbers")
    return array


def _undecoded(clips: Iterable[Any]) -> Iterable[Any]:
    """A data set with its audio as stored: `datasets` itself would decode it here, with ffmpeg."""
    columns = getattr(clips, "features", None)
    if not columns or not hasattr(clips, "cast_column"):
        return clips
    from datasets import Audio

    for name, feature in columns.items():
        if isinstance(feature, Audio):
            clips = clips.cast_column(name, Audio(decode=False))
    return clips


def _as_it_is(clip: _Clip) -> _Clip:
    return clip


def activation(choice: str, config: ASTConfig) -> str:
    """What makes scores of logits: "sigmoid" (each label for itself) or "softmax" (one for all).

    Args:
        choice: One of the two, or "auto": sigmoid where the config says that a clip has several
            labels, and for AudioSet's 527 classes, whose configs on the Hub do not say it.
    """
    if choice != "auto":
        return choice
    several = config.problem_type == "multi_label_classification"
    untold = config.problem_type is None and config.num_labels == AUDIOSET_CLASSES
    return "sigmoid" if several or untold else "softmax"


__all__ = ["AudioTagger", "ClipTags", "activation"]
