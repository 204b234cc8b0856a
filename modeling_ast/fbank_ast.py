"""Waveform -> log-mel frames: Kaldi's filterbank arithmetic on plain numbers.

Follows `torchaudio.compliance.kaldi.fbank(window_type="hanning")`, on which AST was trained: frames
of 25 ms every 10 ms, no padding at the edges, no dither, power spectrum, logarithm. Every step is
taken in the reference's order, so that rounding stays the same size on ill-conditioned signals.

The steps stand here twice: `fbank` takes tensors of any shape, on any device, with gradients and
under torch.compile; `write_fbank` is for clips of any lengths on a CPU, and twice as fast there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps

import torch
import torch.nn.functional as F
from torch import Tensor

FRAME_SECONDS = 0.025
HOP_SECONDS = 0.010
LOW_HZ = 20.0
PREEMPHASIS = 0.97
# The smallest power that is not read as silence; Kaldi's is float32's epsilon.
POWER_FLOOR = torch.finfo(torch.float32).eps
# Frames for each thread that a CPU works off at a time: they stay in the cores' cache. Rows of
# a power of two, as in the transposed arrays below, would compete for the same places in it.
CPU_PIECE_FRAMES = 500
# More threads than these share a piece of that size, which takes 30 MB.
MOST_PIECE_THREADS = 8


def frame_samples(sampling_rate: int) -> int:
    """Samples of one frame."""
    return int(sampling_rate * FRAME_SECONDS)


def hop_samples(sampling_rate: int) -> int:
    """Samples from the start of one frame to the start of the next."""
    return int(sampling_rate * HOP_SECONDS)


def count_frames(num_samples: int, sampling_rate: int) -> int:
    """Whole frames in `num_samples` samples."""
    beyond_first = num_samples - frame_samples(sampling_rate)
    return 0 if beyond_first < 0 else 1 + beyond_first // hop_samples(sampling_rate)


def frame_mask(num_samples: list[int], num_frames: int, sampling_rate: int) -> Tensor:
    """(B, T), on the CPU: which of T frames are whole ones of clips with so many samples."""
    counts = [count_frames(count, sampling_rate) for count in num_samples]
    frames = torch.arange(num_frames, device="cpu")  # (T,)
    return frames < torch.tensor(counts, device="cpu").unsqueeze(1)


def fbank(waveform: Tensor, num_mel_bins: int, sampling_rate: int) -> Tensor:
    """Log-mel filterbank of one waveform or of a batch of equally long ones.

    Runs on the device of `waveform`, for which the host does not wait, and can be differentiated.

    Args:
        waveform: (..., S), float32 or float64, in [-1, 1], at least one frame long.
        num_mel_bins: Mel bins F.
        sampling_rate: In Hz.
    Returns:
        (..., T, F), natural logarithms of power, in the dtype of `waveform`.
    Raises:
        ValueError: `waveform` is shorter than one frame.
    Source: Kaldi's feature-fbank.cc as in torchaudio 2.11's compliance/kaldi.py.
    """
    frame, hop = frame_samples(sampling_rate), hop_samples(sampling_rate)
    if waveform.shape[-1] < frame:
        raise ValueError(
            f"the waveform has {waveform.shape[-1]} samples but one frame needs {frame} "
            f"({1000 * FRAME_SECONDS:g} ms at {sampling_rate} Hz); pad it with zeros or drop it"
        )
    frames = waveform.unfold(-1, frame, hop)  # (..., T, frame)
    if waveform.device.type != "cpu":
        return _log_mel(frames, num_mel_bins, sampling_rate)
    pieces = frames.split(CPU_PIECE_FRAMES, dim=-2)
    return torch.cat([_log_mel(piece, num_mel_bins, sampling_rate) for piece in pieces], dim=-2)


def _log_mel(frames: Tensor, num_mel_bins: int, sampling_rate: int) -> Tensor:
    size = frames.shape[-1]
    window = _window(size, frames.device, frames.dtype)
    filters = _filters(num_mel_bins, sampling_rate, frames.device, frames.dtype)  # (K, F)
    x = frames - frames.mean(-1, keepdim=True)
    # In place, in a buffer that has the FFT's zeros already: memory is what these steps wait for.
    # The product is rounded before the sum, as in Kaldi; a fused step would not.
    padded = x.new_zeros(*x.shape[:-1], 2 * filters.shape[0])  # (..., T, 2K)
    emphasised = padded[..., :size]
    emphasised[..., :1] = x[..., :1]
    emphasised[..., 1:] = x[..., :-1]
    emphasised *= -PREEMPHASIS
    emphasised += x
    emphasised *= window
    squares = torch.view_as_real(torch.fft.rfft(padded)).square_()  # (..., T, K + 1, 2)
    squares = squares[..., :-1, :]  # (..., T, K, 2): the Nyquist bin has weight 0
    power = squares[..., 0] + squares[..., 1]  # (..., T, K)
    with _no_autocast(frames.device.type):
        mel = power @ filters  # (..., T, F)
    return mel.clamp_(min=POWER_FLOOR).log_()


def _no_autocast(device_type: str) -> AbstractContextManager:
    """It would take the product in half precision, which loses the quiet bins."""
    # torch.compile of torch 2.11 cannot ask.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@torch.inference_mode()
def write_fbank(
    waveforms: list[Tensor],
    outputs: list[Tensor],
    sampling_rate: int,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Writes what `fbank` gives for each clip, but for the rounding of the mel product.

    Frames of all clips are worked off in pieces. The values of a frame depend on it alone, bit by
    bit: neither on other clips nor on the number of threads.

    Args:
        waveforms: (S,) each, on the CPU, of one dtype, at least one frame long; without gradient.
        outputs: (T, F) each, to be filled.
        sampling_rate: In Hz.
        finish: What else is done to frames (T, F), while they are in the cache.
    """
    if not waveforms:
        return
    frame, hop = frame_samples(sampling_rate), hop_samples(sampling_rate)
    frames = [waveform.unfold(-1, frame, hop) for waveform in waveforms]  # (T, frame) each
    total = sum(map(len, frames))
    threads = min(torch.get_num_threads(), MOST_PIECE_THREADS)
    count = math.ceil(total / (threads * CPU_PIECE_FRAMES))
    size = math.ceil(total / count)
    buffers = _Buffers(size, outputs[0].shape[1], sampling_rate, waveforms[0].dtype)
    for piece in _pieces(frames, outputs, size):
        start = 0
        for source, _ in piece:
            buffers.put(source, start)
            start += len(source)
        values = buffers.log_mel()  # (size, F)
        values = values if finish is None else finish(values)
        start = 0
        for _, target in piece:
            target.copy_(values[start : start + len(target)])
            start += len(target)


def _pieces(
    frames: list[Tensor], outputs: list[Tensor], size: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Runs of frames and where they go, `size` frames at a time, the last time perhaps fewer."""
    piece, room = [], size
    for source, target in zip(frames, outputs):
        start = 0
        while start < len(source):
            stop = min(len(source), start + room)
            piece.append((source[start:stop], target[start:stop]))
            room -= stop - start
            start = stop
            if room == 0:
                yield piece
                piece, room = [], size
    if piece:
        yield piece


class _Buffers:
    """Memory for `size` frames, and the steps of `_log_mel` in it, with the same rounding.

    It serves many pieces: memory that is fresh, or in no cache, costs as much as the steps do.
    """

    def __init__(self, size: int, num_mel_bins: int, sampling_rate: int, dtype: torch.dtype):
        frame, num_bins = frame_samples(sampling_rate), _num_bins(sampling_rate)
        on_cpu = {"device": "cpu", "dtype": dtype}
        self.window = _window(frame, torch.device("cpu"), dtype)[1:]
        self.entries = _filter_entries(num_mel_bins, sampling_rate, dtype)
        self.x = torch.zeros(size, frame, **on_cpu)
        self.padded = torch.zeros(size, 2 * num_bins, **on_cpu)  # (T, 2K)
        # The window takes each frame's first sample to 0, which it is already.
        self.emphasised = self.padded[:, 1:frame]
        self.power = torch.empty(num_bins, size, **on_cpu)  # (K, T)

    def put(self, frames: Tensor, start: int) -> None:
        """Takes frames (T, frame) in, without their means, from row `start` on."""
        target = self.x[start : start + len(frames)]
        torch.sub(frames, frames.mean(-1, keepdim=True), out=target)

    def log_mel(self) -> Tensor:
        """(T, F), of what was put in."""
        torch.mul(self.x[:, :-1], -PREEMPHASIS, out=self.emphasised)
        self.emphasised += self.x[:, 1:]
        self.emphasised *= self.window
        squares = torch.view_as_real(torch.fft.rfft(self.padded)).square_()[:, :-1]  # (T, K, 2)
        torch.add(squares[..., 0].T, squares[..., 1].T, out=self.power)
        # Two of a hundred weights are not 0. The layout (K, T) lets each of those scale a row.
        bins, offsets, weights = self.entries
        mel = F.embedding_bag(
            bins, self.power, offsets, mode="sum", per_sample_weights=weights
        )  # (F, T)
        return mel.clamp_(min=POWER_FLOOR).log_().T  # (T, F)


def _num_bins(sampling_rate: int) -> int:
    """Bins K of the FFT, which has the next power of two of samples; without the Nyquist bin."""
    return 2 ** math.ceil(math.log2(frame_samples(sampling_rate))) // 2


def _table(build: Callable) -> Callable:
    """Once for each setting, and for all: gradients cannot pass a tensor of inference mode."""

    @lru_cache(maxsize=16)
    @wraps(build)
    def built(*setting):
        with torch.inference_mode(False):
            return build(*setting)

    return built


@_table
def _window(frame: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(frame,)"""
    return torch.hann_window(frame, periodic=False, dtype=dtype, device="cpu").to(device)


@_table
def _filters(
    num_mel_bins: int, sampling_rate: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(K, F)"""
    return mel_filters(num_mel_bins, _num_bins(sampling_rate), sampling_rate).to(device, dtype)


@_table
def _filter_entries(
    num_mel_bins: int, sampling_rate: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the filters' weights that are not 0: bin, first entry of each filter, weight."""
    filters = mel_filters(num_mel_bins, _num_bins(sampling_rate), sampling_rate).T  # (F, K)
    owners, bins = filters.nonzero(as_tuple=True)
    counts = owners.bincount(minlength=num_mel_bins)  # (F,)
    return bins, counts.cumsum(0) - counts, filters[owners, bins].to(dtype)


def mel_filters(num_mel_bins: int, num_bins: int, sampling_rate: int) -> Tensor:
    """Triangular filters, edges equally spaced in mel from 20 Hz to Nyquist, linear in mel.

    At 128 mel bins, 16 kHz and a 512-point FFT filter 3 lies between two bins and stays empty.

    Returns:
        (num_bins, num_mel_bins), in float32 (the weights were trained on that rounding), on the
        CPU.
    """
    low, high = _mel(LOW_HZ), _mel(sampling_rate / 2)
    step = (high - low) / (num_mel_bins + 1)
    index = torch.arange(num_mel_bins, device="cpu")
    left, centre, right = (low + (index + shift) * step for shift in (0.0, 1.0, 2.0))
    bins = torch.arange(num_bins, dtype=torch.float32, device="cpu")
    hz = sampling_rate / (2 * num_bins) * bins  # (K,)
    mel = (1127.0 * (1.0 + hz / 700.0).log()).unsqueeze(1)  # (K, 1)
    rising = (mel - left) / (centre - left)  # (K, F)
    falling = (right - mel) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0.0)


def _mel(hz: float) -> float:
    return 1127.0 * math.log(1.0 + hz / 700.0)


__all__ = [
    "count_frames",
    "fbank",
    "frame_mask",
    "frame_samples",
    "hop_samples",
    "mel_filters",
    "write_fbank",
]
