"""Audio at one sampling rate -> at another, whole or block by block.

soxr resamples, with its quality "HQ": flat up to 0.91 of the lower Nyquist frequency, and over
100 dB of attenuation above it. It supports neither gradients nor GPUs; for tensors with a gradient
or on a GPU torchaudio is used, whose filter is shorter (-2 dB at 7 kHz, from 48 kHz to 16 kHz).
soxr and torchaudio are imported when they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

# The lowest and highest sampling rates that are accepted. A damaged header may state any rate, and
# 60 kB at 1 Hz would become gigabytes at 16 kHz.
LOWEST_HZ, HIGHEST_HZ = 100, 1_000_000
# torchaudio's table of filters has numerator x denominator entries: 47999 -> 16000 Hz would take
# gigabytes. The usual rates have denominators of at most 640.
LARGEST_DENOMINATOR = 2000

Samples = TypeVar("Samples", np.ndarray, Tensor)


def resample(waveform: Samples, given: int, wanted: int) -> Samples:
    """Resamples by windowed-sinc interpolation.

    Args:
        waveform: (..., S), float32 or float64, at `given` Hz, an array or a tensor.
        given, wanted: Rates, in Hz, from 100 to 1,000,000.
    Returns:
        (..., `resampled_length(S, given, wanted)`), an array for an array and a tensor, on its
        device and with its gradient, for a tensor; `waveform` itself if the rates are equal.
    Raises:
        ValueError: A rate is not a whole number in that range.
        ImportError: torchaudio cannot be loaded, and the tensor has a gradient or is on a GPU.
    Source: soxr 1.1, quality HQ. For tensors with a gradient or on a GPU torchaudio 2.11's
        functional.resample with its defaults; there a ratio that needs a denominator above 2000
        (47999 : 16000) is replaced by the nearest that does not.
    """
    given, wanted = checked_rate(given), checked_rate(wanted)
    if given == wanted:
        return waveform
    if not isinstance(waveform, Tensor):
        return _by_soxr(waveform, given, wanted)
    if waveform.is_cpu and not waveform.requires_grad:
        return torch.from_numpy(_by_soxr(waveform.numpy(), given, wanted))
    return _by_torchaudio(waveform, given, wanted)


def resampled_blocks(blocks: Iterable[np.ndarray], given: int, wanted: int) -> Iterator[np.ndarray]:
    """Resamples audio that comes in blocks. The joined result equals that of the whole audio.

    Args:
        blocks: (S,) each, float32, at `given` Hz. The memory of a block may be used again when the
            next block is requested.
        given, wanted: Rates, in Hz, from 100 to 1,000,000.
    Returns:
        (R,) each, float32, at `wanted` Hz, each in memory of its own. Their lengths are not those
        of the blocks.
    """
    given, wanted = checked_rate(given), checked_rate(wanted)
    if given == wanted:
        yield from (block.copy() for block in blocks)
        return
    import soxr

    stream = soxr.ResampleStream(given, wanted, num_channels=1, dtype="float32", quality="HQ")
    num_given = num_done = 0
    for block in blocks:
        num_given += len(block)
        resampled = stream.resample_chunk(block)
        num_done += len(resampled)
        yield resampled
    rest = stream.resample_chunk(np.empty(0, np.float32), last=True)
    # soxr may round a length of x.5 down.
    missing = resampled_length(num_given, given, wanted) - num_done - len(rest)
    yield np.pad(rest, (0, missing))


def resampled_length(num_samples: int, given: int, wanted: int) -> int:
    """Number of samples after resampling: num_samples * wanted / given, rounded, halves up."""
    return (2 * num_samples * wanted + given) // (2 * given)


def _by_soxr(waveform: np.ndarray, given: int, wanted: int) -> np.ndarray:
    import soxr

    if waveform.dtype not in (np.float32, np.float64):
        waveform = waveform.astype(np.float32)
    rows = waveform.reshape(math.prod(waveform.shape[:-1]), waveform.shape[-1])  # (N, S)
    length = resampled_length(rows.shape[1], given, wanted)
    out = np.zeros((len(rows), length), rows.dtype)
    for row, target in zip(rows, out):
        resampled = soxr.resample(np.ascontiguousarray(row), given, wanted, quality="HQ")
        target[: len(resampled)] = resampled  # soxr may round a length of x.5 down
    return out.reshape(*waveform.shape[:-1], length)


def _by_torchaudio(waveform: Tensor, given: int, wanted: int) -> Tensor:
    try:
        from torchaudio import functional
    # torchaudio fails in any of these ways if it was built for another version of torch.
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"the audio is at {given} Hz and must be resampled to {wanted} Hz, but torchaudio, "
            f"which does this for tensors with a gradient or on a GPU, cannot be loaded ({error}); "
            f"install torch>=2.11,<2.15 with torchaudio>=2.11,<2.12, or give audio at {wanted} Hz"
        ) from error
    ratio = Fraction(given, wanted).limit_denominator(LARGEST_DENOMINATOR)
    resampled = functional.resample(waveform, ratio.numerator, ratio.denominator)
    return resampled[..., : resampled_length(waveform.shape[-1], given, wanted)]


def is_number(value: Any) -> bool:
    """Whether this is one real number; it may be an array or a tensor without axes."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 0 and value.dtype not in (bool, torch.bool, np.dtype(object))
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_rate(rate: Any) -> int:
    """A sampling rate as an int.

    Raises:
        ValueError: It is not a whole number of Hz from 100 to 1,000,000.
    """
    if not is_number(rate) or not math.isfinite(rate) or int(rate) != rate or rate <= 0:
        raise ValueError(f"a sampling rate is {rate}; it must be a positive whole number of Hz")
    if not LOWEST_HZ <= rate <= HIGHEST_HZ:
        raise ValueError(
            f"a sampling rate is {int(rate)} Hz; it must be from {LOWEST_HZ} to {HIGHEST_HZ} Hz, "
            f"so the header or the number given is wrong"
        )
    return int(rate)


__all__ = [
    "checked_rate",
    "is_number",
    "resample",
    "resampled_blocks",
    "resampled_length",
]
