"""Mean and standard deviation of a data set's log-mel values, in one pass.

The authors ask every user to compute them (README of github.com/YuanGongND/ast; their
src/get_norm_stats.py averages the batches' standard deviations and includes the padding; here all
values have the same weight, and padding is left out). Parts are merged as in Chan, Golub and
LeVeque 1979.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..feature_extraction_ast import ASTFeatureExtractor
from .clips import BadClips, ClipReader, read_or_list, undecoded


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of some values, in double precision."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """The moments of all values of a tensor."""
        if values.numel() == 0:
            return cls()
        wide = values.double()
        mean = wide.mean()
        return cls(values.numel(), float(mean), float((wide - mean).square().sum()))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together.

        Source: Chan, Golub, LeVeque 1979; sums of plain squares would lose digits by cancellation.
        """
        count = self.count + other.count
        if count == 0:
            return self
        difference = other.mean - self.mean
        share = other.count / count
        squares = self.squares + other.squares + difference**2 * self.count * share
        return Moments(count, self.mean + difference * share, squares)

    @property
    def std(self) -> float:
        """Standard deviation of these values (not the estimate for a larger set)."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan


class Measures(NamedTuple):
    """Measurements of the clips of a data set."""

    moments: Moments  # of the log-mel values
    num_frames: list[int]  # number of frames of each whole clip


def normalization_stats(dataset: Dataset | IterableDataset, *args, **kwargs) -> Moments:
    """Moments of the log-mel values of a data set; arguments and errors as `measure_clips`."""
    return measure_clips(dataset, *args, **kwargs).moments


def measure_clips(
    dataset: Dataset | IterableDataset,
    extractor: ASTFeatureExtractor,
    reader: ClipReader | None = None,
    bad_clips: BadClips | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
) -> Measures:
    """Lengths of the clips, and moments of their log-mel values as the model will see them.

    For the moments, clips are cut to `extractor.max_length` frames and not padded. Write the
    moments into the config and the extractor: `mean=moments.mean, std=moments.std`.

    Args:
        dataset: Read once, in order.
        extractor: Gives rate, mel bins and length; its own mean and std do not matter.
        reader: Decodes rows; by default the column "audio".
        bad_clips: List of the clips that cannot be decoded, which are then left out; without it,
            such a clip is an error.
        batch_size: Number of clips that a worker returns at once.
        num_workers: Number of processes that decode.
        progress: Whether a progress bar is shown.
    Raises:
        ValueError: A clip cannot be decoded and `bad_clips` is None, or there is no clip at all.
        TooManyBadClips: See `BadClips`.
    """
    reader = reader or ClipReader.for_extractor(extractor)
    loader = DataLoader(
        undecoded(dataset, reader.audio_column),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_batch_moments, extractor=extractor, reader=reader, bad=bad_clips),
    )
    num_clips = len(dataset) if isinstance(dataset, Dataset) else None
    total = Moments()
    num_frames: list[int] = []
    with tqdm(total=num_clips, unit="clip", disable=not progress, leave=False) as bar:
        for moments, lengths, count in loader:
            total = total.merge(moments)
            num_frames += lengths
            bar.update(count)
            bar.set_postfix(mean=f"{total.mean:.4f}", std=f"{total.std:.4f}", refresh=False)
    if total.count == 0:
        raise ValueError("the data set has no clip that can be decoded; give another data set")
    return Measures(total, num_frames)


def _batch_moments(
    rows: Sequence[Mapping[str, Any]],
    extractor: ASTFeatureExtractor,
    reader: ClipReader,
    bad: BadClips | None,
) -> tuple[Moments, list[int], int]:
    """The moments, the numbers of frames of good clips, and the number of rows.

    It runs in a worker, so that only a few numbers, and not the frames, are sent back.
    """
    total = Moments()
    num_frames = []
    for row in rows:
        waveform = read_or_list(row, reader, bad)
        if waveform is not None:
            cut = waveform[: extractor.max_samples]  # (S,)
            frames = extractor.log_mel(cut)  # (T, F)
            total = total.merge(Moments.of(frames))
            num_frames.append(
                1 + (len(waveform) - extractor.window_samples) // extractor.hop_samples
            )
    return total, num_frames, len(rows)


__all__ = ["Measures", "Moments", "measure_clips", "normalization_stats"]
