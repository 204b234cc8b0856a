"""The single rule of cutting: a clip -> equal parts; the results of the parts -> the clip's result.

A clip that is longer than the model's input is cut into equal parts (`equal_parts`), whose scores
and vectors are averaged. A file that is too long for one waveform is decoded part by part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio import stream_audio
from .decoding import AudioFile
from .errors import one_line
from .feature_extraction_ast import ASTFeatureExtractor
from .samples import check_samples
from .workers import Clip


def equal_parts(num_samples: int, longest: int) -> list[tuple[int, int]]:
    """Where a clip is cut: ceil(num_samples / longest) parts, of equal length within one sample.

    Args:
        num_samples: Of the clip.
        longest: The most samples that the model takes at once, `ASTFeatureExtractor.max_samples`.
    Returns:
        (start, stop) of each part. Together they cover the clip; none is longer than `longest`.
    """
    count = max(1, -(-num_samples // longest))
    bounds = [round(number * num_samples / count) for number in range(count + 1)]
    return list(pairwise(bounds))


def mean_logits(logits: Tensor, num_parts: Sequence[int], sigmoid: bool) -> Tensor:
    """Logits of whole clips, such that their scores are the mean of the scores of the parts.

    It is for code that needs logits, such as a loss or Trainer's `compute_metrics`; `AudioTagger`
    averages the scores themselves.

    Args:
        logits: (P, C), of the parts of all clips, one clip after the other.
        num_parts: Of each clip; the numbers add up to P.
        sigmoid: Whether the scores are sigmoids; else they are softmaxes.
    Returns:
        (B, C), in the dtype of `logits`. A clip of one part keeps its logits; with softmax, those
        of other clips are log-probabilities.
    """
    rows = []
    for parts in logits.split(list(num_parts)):  # (parts of one clip, C)
        if len(parts) == 1:
            rows.append(parts[0])
            continue
        # With logarithms and in float64, because scores near 1 would round to 1.
        wide = parts.double()
        if sigmoid:
            row = F.logsigmoid(wide).logsumexp(0) - F.logsigmoid(-wide).logsumexp(0)
        else:
            row = wide.log_softmax(-1).logsumexp(0) - math.log(len(parts))
        rows.append(row.to(logits.dtype))
    return torch.stack(rows)


@dataclass
class HeardClip:
    """A clip whose parts are waiting for the model or in it."""

    number: int
    name: str
    num_samples: int = 0
    num_parts: int = 0
    parts_left: int = 0
    # (C,): each score of a part, divided by the number of parts, summed over the parts so far;
    # before the first part it is a single zero, ().
    scores: np.ndarray = field(default_factory=lambda: np.zeros(()))
    vectors: dict[int, np.ndarray] = field(default_factory=dict)  # (D,) each, by part
    attempt: int = 0  # results of parts of an earlier attempt are ignored

    def begin(self, num_samples: int, longest: int) -> list[tuple[int, int]]:
        """Cuts the clip, forgets earlier results and returns (start, stop) of each part."""
        parts = equal_parts(num_samples, longest)
        self.num_samples, self.num_parts, self.parts_left = num_samples, len(parts), len(parts)
        self.forget()
        return parts

    def forget(self) -> None:
        """Makes the results of all parts so far void, also of those that are still computed."""
        self.scores, self.vectors = np.zeros(()), {}
        self.attempt += 1

    def add(self, piece: Piece, scores: np.ndarray, vector: np.ndarray | None = None) -> bool:
        """Takes the result of a part; returns whether it completes the clip.

        Args:
            scores: (C,).
            vector: (D,), if vectors are wanted.
        """
        if piece.attempt != self.attempt:
            return False
        self.scores = self.scores + scores / self.num_parts  # (C,)
        if vector is not None:
            self.vectors[piece.part] = vector
        self.parts_left -= 1
        return self.parts_left == 0

    def embeddings(self) -> np.ndarray | None:
        """(parts, D), float32, in the order of time; None if vectors were not wanted."""
        if not self.vectors:
            return None
        return np.stack([self.vectors[part] for part in range(self.num_parts)])


@dataclass
class Piece:
    """A whole clip, or a part of one that is longer than the model's input."""

    waveform: Tensor  # (S,)
    frames: int  # padding included
    clip: HeardClip
    part: int  # its number in the clip
    attempt: int  # that of the clip when it was cut


def pieces_of(
    clip: Clip, heard: HeardClip, extractor: ASTFeatureExtractor, padding: str
) -> Iterator[Piece]:
    """The parts of a clip. If it turns out to be bad, `clip.error` says so after the last part."""
    if clip.is_long:
        try:
            yield from _pieces_of_file(clip, heard, extractor, padding)
        # Any error, as with files that a worker decodes: a bad file must not stop the others.
        except Exception as error:
            clip.error = one_line(error)
            heard.forget()
    elif clip.error is None:
        waveform = clip.waveform
        assert isinstance(waveform, Tensor)  # from `decode_clips`, which gives no other
        bounds = heard.begin(len(waveform), extractor.max_samples)
        for part, (start, stop) in enumerate(bounds):
            yield _piece(waveform[start:stop], heard, part, extractor, padding)


def _pieces_of_file(
    clip: Clip, heard: HeardClip, extractor: ASTFeatureExtractor, padding: str
) -> Iterator[Piece]:
    """The parts of a file that is too long for one waveform, as they are decoded."""
    assert clip.source is not None and clip.source.file is not None  # a long clip is a file
    source, rate = clip.source.file, extractor.sampling_rate
    num_samples = AudioFile(source).length_at(rate)
    if num_samples is None:
        num_samples = sum(map(len, stream_audio(source, rate)))
    while num_samples != heard.num_samples:
        bounds = heard.begin(num_samples, extractor.max_samples)
        blocks, num_samples, rest = stream_audio(source, rate), 0, np.empty(0, np.float32)
        for number, (start, stop) in enumerate(bounds):
            while len(rest) < stop - start and (block := next(blocks, None)) is not None:
                check_samples(torch.from_numpy(block), clip.name)
                rest = np.concatenate([rest, block])
            part, rest = rest[: stop - start], rest[stop - start :]
            num_samples += len(part)
            # A file whose header announces too many samples ends early.
            if len(part) >= extractor.window_samples:
                yield _piece(torch.from_numpy(part), heard, number, extractor, padding)
        num_samples += len(rest) + sum(map(len, blocks))
        # If the header was wrong, the file is cut again, by its true number of samples.


def _piece(
    waveform: Tensor, heard: HeardClip, part: int, extractor: ASTFeatureExtractor, padding: str
) -> Piece:
    frames = extractor.num_frames([len(waveform)], padding)
    return Piece(waveform, frames, heard, part, heard.attempt)


__all__ = ["HeardClip", "Piece", "equal_parts", "mean_logits", "pieces_of"]
