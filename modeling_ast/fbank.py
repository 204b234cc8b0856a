"""Waveform -> log-mel frames: Kaldi's filterbank arithmetic on plain numbers.

Follows `torchaudio.compliance.kaldi.fbank(window_type="hanning")`, on which AST was trained: frames
of 25 ms every 10 ms, no padding at the edges, no dither, power spectrum, logarithm. The steps have
the reference's order, so that rounding errors are as small as there on ill-conditioned signals.

`fbank` takes tensors of any shape, on any device, with gradients and under torch.compile;
fbank_cpu.py has the same steps for clips of any lengths on a CPU, twice as fast there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps

import torch
from torch import Tensor

LOW_HZ = 20.0
PREEMPHASIS = 0.97
# Smaller powers are raised to this value before the logarithm; Kaldi uses float32's epsilon.
POWER_FLOOR = torch.finfo(torch.float32).eps


def count_frames(num_samples: int, window_samples: int, hop_samples: int) -> int:
    """Number of whole windows in `num_samples` samples."""
    beyond_first = num_samples - window_samples
    return 0 if beyond_first < 0 else 1 + beyond_first // hop_samples


def fbank(
    waveform: Tensor, num_mel_bins: int, sampling_rate: int, window_samples: int, hop_samples: int
) -> Tensor:
    """Log-mel filterbank of one waveform or of a batch of equally long ones.

    Runs on the device of `waveform`, without making the host wait, and is differentiable.

    Args:
        waveform: (..., S), float32 or float64, in [-1, 1], at least one window long.
        num_mel_bins: Mel bins F.
        sampling_rate: In Hz.
        window_samples: Samples that a frame is computed from.
        hop_samples: From the start of one frame to the start of the next.
    Returns:
        (..., T, F), natural logarithms of power, in the dtype of `waveform`.
    Raises:
        ValueError: `waveform` is shorter than one window.
    Source: Kaldi's feature-fbank.cc as in torchaudio 2.11's compliance/kaldi.py.
    """
    if waveform.shape[-1] < window_samples:
        raise ValueError(
            f"the waveform has {waveform.shape[-1]} samples but one frame needs {window_samples} "
            f"({1000 * window_samples / sampling_rate:g} ms at {sampling_rate} Hz); pad it with "
            f"zeros or drop it"
        )
    frames = waveform.unfold(-1, window_samples, hop_samples)  # (..., T, window)
    window = hann_window(window_samples, frames.device, frames.dtype)
    num_bins = num_fft_bins(window_samples)
    filters = _filters(num_mel_bins, num_bins, sampling_rate, frames.device, frames.dtype)  # (K, F)
    x = frames - frames.mean(-1, keepdim=True)
    # In place, in a buffer that already has the zeros for the FFT, because memory bandwidth limits
    # these steps. The product is rounded before the sum, as in Kaldi; a fused step would not do so.
    padded = x.new_zeros(*x.shape[:-1], 2 * num_bins)  # (..., T, 2K)
    emphasised = padded[..., :window_samples]
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
    """Turns autocast off, which would compute in half precision and lose the quiet bins."""
    # torch.compile of torch 2.11 cannot trace is_autocast_available.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def num_fft_bins(window_samples: int) -> int:
    """Bins K of the FFT without the Nyquist bin; its size is the window's, rounded up to a power of
    two."""
    return 2 ** math.ceil(math.log2(window_samples)) // 2


def built_once(build: Callable) -> Callable:
    """Caches a table for each setting. It is built outside of inference mode, because gradients
    cannot flow through tensors that were made in it."""

    @lru_cache(maxsize=16)
    @wraps(build)
    def built(*setting):
        with torch.inference_mode(False):
            return build(*setting)

    return built


@built_once
def hann_window(window_samples: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(window_samples,), symmetric."""
    return torch.hann_window(window_samples, periodic=False, dtype=dtype, device="cpu").to(device)


@built_once
def _filters(
    num_mel_bins: int, num_bins: int, sampling_rate: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(K, F)"""
    return mel_filters(num_mel_bins, num_bins, sampling_rate).to(device, dtype)


def mel_filters(num_mel_bins: int, num_bins: int, sampling_rate: int) -> Tensor:
    """Triangular filters, edges equally spaced in mel from 20 Hz to Nyquist, linear in mel.

    At 128 mel bins, 16 kHz and a 512-point FFT filter 3 lies between two bins and stays empty.

    Returns:
        (num_bins, num_mel_bins), in float32 (the weights were trained on that rounding), on the
        CPU.
    """
    low, high = mel_of_hz(LOW_HZ), mel_of_hz(sampling_rate / 2)
    step = (high - low) / (num_mel_bins + 1)
    index = torch.arange(num_mel_bins, device="cpu")
    left, centre, right = (low + (index + shift) * step for shift in (0.0, 1.0, 2.0))
    bins = torch.arange(num_bins, dtype=torch.float32, device="cpu")
    hz = sampling_rate / (2 * num_bins) * bins  # (K,)
    mel = (1127.0 * (1.0 + hz / 700.0).log()).unsqueeze(1)  # (K, 1)
    rising = (mel - left) / (centre - left)  # (K, F)
    falling = (right - mel) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0.0)


def mel_of_hz(hz: float) -> float:
    """A frequency in mel."""
    return 1127.0 * math.log(1.0 + hz / 700.0)


__all__ = [
    "LOW_HZ",
    "POWER_FLOOR",
    "PREEMPHASIS",
    "built_once",
    "count_frames",
    "fbank",
    "hann_window",
    "mel_filters",
    "mel_of_hz",
    "num_fft_bins",
]
