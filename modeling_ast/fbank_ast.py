"""Waveform -> log-mel frames: Kaldi's filterbank arithmetic on plain numbers.

Follows `torchaudio.compliance.kaldi.fbank(window_type="hanning")`, on which AST was trained: frames
of 25 ms every 10 ms, no padding at the edges, no dither, power spectrum, logarithm. Every step is
taken in the reference's order, so that rounding stays the same size on ill-conditioned signals.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

FRAME_SECONDS = 0.025
HOP_SECONDS = 0.010
LOW_HZ = 20.0
PREEMPHASIS = 0.97
# The smallest power that is not read as silence; Kaldi's is float32's epsilon.
POWER_FLOOR = torch.finfo(torch.float32).eps
# On a CPU frames are worked off in pieces that stay in the processor's cache.
CPU_PIECE_FRAMES = 512


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


def fbank(waveform: Tensor, num_mel_bins: int, sampling_rate: int) -> Tensor:
    """Log-mel filterbank of one waveform or of a batch of equally long ones.

    Runs on the device of `waveform` and can be differentiated.

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
    window, filters = _tables(
        frames.shape[-1], num_mel_bins, sampling_rate, frames.device, frames.dtype
    )
    size = frames.shape[-1]
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
    # Under autocast the product would be taken in half precision, which loses the quiet bins.
    with torch.autocast(frames.device.type, enabled=False):
        mel = power @ filters  # (..., T, F)
    return mel.clamp_(min=POWER_FLOOR).log_()


@lru_cache(maxsize=16)
def _tables(
    frame: int, num_mel_bins: int, sampling_rate: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Window (frame,) and mel filters (K, F), built once for each setting."""
    num_bins = 2 ** math.ceil(math.log2(frame)) // 2
    window = torch.hann_window(frame, periodic=False, dtype=dtype)
    filters = mel_filters(num_mel_bins, num_bins, sampling_rate)
    return window.to(device), filters.to(device, dtype)


def mel_filters(num_mel_bins: int, num_bins: int, sampling_rate: int) -> Tensor:
    """Triangular filters, edges equally spaced in mel from 20 Hz to Nyquist, linear in mel.

    At 128 mel bins, 16 kHz and a 512-point FFT filter 3 lies between two bins and stays empty.

    Returns:
        (num_bins, num_mel_bins), in float32: the weights were trained on that rounding.
    """
    low, high = _mel(LOW_HZ), _mel(sampling_rate / 2)
    step = (high - low) / (num_mel_bins + 1)
    index = torch.arange(num_mel_bins)
    left, centre, right = (low + (index + shift) * step for shift in (0.0, 1.0, 2.0))
    hz = sampling_rate / (2 * num_bins) * torch.arange(num_bins, dtype=torch.float32)
    mel = (1127.0 * (1.0 + hz / 700.0).log()).unsqueeze(1)  # (K, 1)
    rising = (mel - left) / (centre - left)  # (K, F)
    falling = (right - mel) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0.0)


def _mel(hz: float) -> float:
    return 1127.0 * math.log(1.0 + hz / 700.0)


__all__ = ["count_frames", "fbank", "frame_samples", "hop_samples", "mel_filters"]
