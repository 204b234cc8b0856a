"""A recording of any length -> its samples block by block, and the stretches that cannot be used.

Stretches that are NaN, infinite or cannot be decoded are listed with their times and replaced by
zeros, so that an hour with one bad second can still be used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .audio import ClipSource, decode_samples
from .salvage import salvaged_blocks
from .samples import LARGEST_SAMPLE

# Audio that is read and scored at a time.
BLOCK_SECONDS = 30.0
BAD_SAMPLES = f"NaN, infinity or samples beyond {LARGEST_SAMPLE:,.0f}"
# Bad stretches with less than this between them are joined.
JOINED_SECONDS = 0.01
TIME_DIGITS = 6


class BadStretch(NamedTuple):
    """A part of a recording that cannot be used."""

    onset: float  # in seconds
    offset: float | None  # None if it lasts to the end, and the end is not known
    reason: str

    def sentence(self) -> str:
        """Where it is, and why it cannot be used, for a message."""
        end = "its end" if self.offset is None else f"{self.offset:.3f} s"
        return f"from {self.onset:.3f} s to {end}: {self.reason}; the rest is used"


class Recording:
    """The samples of a recording, block by block; bad samples become zeros and are remembered.

    Args:
        source: In any form that `audio.open_clip` gives.
        sampling_rate: Wanted, in Hz.
    """

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

    def bad_seconds(self) -> np.ndarray:
        """(M, 2): begin and end of the bad stretches so far; infinity if an end is not known."""
        samples = [(start, stop) for start, stop, _ in self.bad]
        return np.array(samples, np.float64).reshape(-1, 2) / self.sampling_rate

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks (S,), float32, finite.

        Raises:
            TypeError, OSError, ValueError: No part of it can be used.
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
        """(samples, None), or for a part that cannot be decoded (NaN, the reason)."""
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


__all__ = ["BAD_SAMPLES", "BLOCK_SECONDS", "BadStretch", "Recording"]
