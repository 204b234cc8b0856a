"""Waveforms -> log-mel frames on a CPU: the steps of fbank.py, in blocks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .fbank import (
    POWER_FLOOR,
    PREEMPHASIS,
    built_once,
    hann_window,
    mel_filters,
    num_fft_bins,
)

# Frames of a block for each thread; they stay in the core's cache. The number is not a power of
# two: the transposed arrays below have rows of this length, which would then share cache lines.
BLOCK_FRAMES = 500
# With more threads than this, a block does not grow any further; it takes 30 MB.
MAX_BLOCK_THREADS = 8


@torch.inference_mode()
def write_fbank(
    waveforms: list[Tensor],
    outputs: list[Tensor],
    sampling_rate: int,
    window_samples: int,
    hop_samples: int,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Writes the result of `fbank` for each clip; only the rounding of the mel product differs.

    Frames of all clips are processed in blocks. The values of a frame do not depend, in any bit, on
    the other clips or on the number of threads.

    Args:
        waveforms: (S,) each, on the CPU, of one dtype, at least one window long; without gradient.
        outputs: (T, F) each, to be filled.
        sampling_rate: In Hz.
        window_samples, hop_samples: As in `fbank`.
        finish: A further step on frames (T, F), applied while they are in the cache.
    Source: the steps of `fbank`, in the same order.
    """
    if not waveforms:
        return
    # (T, window) each
    frames = [waveform.unfold(-1, window_samples, hop_samples) for waveform in waveforms]
    total = sum(map(len, frames))
    threads = min(torch.get_num_threads(), MAX_BLOCK_THREADS)
    count = math.ceil(total / (threads * BLOCK_FRAMES))
    size = math.ceil(total / count)
    buffers = _Buffers(size, window_samples, outputs[0].shape[1], sampling_rate, waveforms[0].dtype)
    for block in _blocks(frames, outputs, size):
        start = 0
        for source, _ in block:
            buffers.put(source, start)
            start += len(source)
        values = buffers.log_mel()  # (size, F)
        values = values if finish is None else finish(values)
        start = 0
        for _, target in block:
            target.copy_(values[start : start + len(target)])
            start += len(target)


def _blocks(
    frames: list[Tensor], outputs: list[Tensor], size: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Runs of frames and where they go, `size` frames at a time; the last block may be shorter."""
    block, room = [], size
    for source, target in zip(frames, outputs):
        start = 0
        while start < len(source):
            stop = min(len(source), start + room)
            block.append((source[start:stop], target[start:stop]))
            room -= stop - start
            start = stop
            if room == 0:
                yield block
                block, room = [], size
    if block:
        yield block


class _Buffers:
    """Memory for `size` frames, and the steps of `fbank` on it, with the same rounding.

    The memory is used again for each block: memory that is new or not in the cache would cost as
    much time as the steps.
    """

    def __init__(
        self,
        size: int,
        window_samples: int,
        num_mel_bins: int,
        sampling_rate: int,
        dtype: torch.dtype,
    ):
        num_bins = num_fft_bins(window_samples)
        window = hann_window(window_samples, torch.device("cpu"), dtype)
        self.window = window[1:]
        self.entries = _filter_entries(num_mel_bins, num_bins, sampling_rate, dtype)
        self.x = window.new_zeros(size, window_samples)
        self.padded = window.new_zeros(size, 2 * num_bins)  # (T, 2K)
        # The window is 0 at a frame's first sample, where this memory already holds 0.
        self.emphasised = self.padded[:, 1:window_samples]
        self.power = window.new_empty(num_bins, size)  # (K, T)

    def put(self, frames: Tensor, start: int) -> None:
        """Stores frames (T, window), less the mean of each, from row `start` on."""
        target = self.x[start : start + len(frames)]
        torch.sub(frames, frames.mean(-1, keepdim=True), out=target)

    def log_mel(self) -> Tensor:
        """The log-mel values (T, F) of the stored frames."""
        torch.mul(self.x[:, :-1], -PREEMPHASIS, out=self.emphasised)
        self.emphasised += self.x[:, 1:]
        self.emphasised *= self.window
        squares = torch.view_as_real(torch.fft.rfft(self.padded)).square_()[:, :-1]  # (T, K, 2)
        torch.add(squares[..., 0].T, squares[..., 1].T, out=self.power)
        # Only 2 % of the filters' weights are not 0. In the layout (K, T) each of them scales one
        # row.
        bins, offsets, weights = self.entries
        mel = F.embedding_bag(
            bins, self.power, offsets, mode="sum", per_sample_weights=weights
        )  # (F, T)
        return mel.clamp_(min=POWER_FLOOR).log_().T  # (T, F)


@built_once
def _filter_entries(
    num_mel_bins: int, num_bins: int, sampling_rate: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The nonzero weights of the filters: bins, the first entry of each filter, the weights."""
    filters = mel_filters(num_mel_bins, num_bins, sampling_rate).T  # (F, K)
    owners, bins = filters.nonzero(as_tuple=True)
    counts = owners.bincount(minlength=num_mel_bins)  # (F,)
    return bins, counts.cumsum(0) - counts, filters[owners, bins].to(dtype)


__all__ = ["write_fbank"]
