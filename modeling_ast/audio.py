"""An audio file, or the bytes of one -> a mono waveform at the wanted rate.

libsndfile (bundled with soundfile) decodes WAV, FLAC, OGG, Opus, MP3 and more, without ffmpeg;
torchaudio resamples. Both are imported where they are needed: the package works without torchaudio
as long as a file has the wanted rate already.
"""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from .configuration_ast import ASTConfig

# torchaudio's table of filters has numerator x denominator entries: 47999 -> 16000 Hz would take
# gigabytes. The usual rates have denominators of at most 640.
LARGEST_DENOMINATOR = 2000


def read_audio(
    source: str | Path | bytes, sampling_rate: int = ASTConfig.sampling_rate
) -> np.ndarray:
    """Decodes an audio file, mixes it down to the mean of its channels, and resamples it.

    Args:
        source: Path of the file, or its content.
        sampling_rate: Wanted rate, in Hz.
    Returns:
        (S,), float32, in [-1, 1], at `sampling_rate`.
    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `source` is a directory, empty, no audio, or audio without a sample.
        TypeError: `source` is neither a path nor bytes.
        ImportError: The rate differs and torchaudio cannot be loaded.
    """
    import soundfile

    file, name = _open(source)
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)  # (S, channels)
    # A name that ends in .raw makes soundfile ask for the format it cannot know: a TypeError.
    except (soundfile.SoundFileError, TypeError) as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(
            f"{name} cannot be decoded as audio ({reason}); give a whole WAV, FLAC, OGG, Opus or "
            f"MP3 file, or convert it first, e.g. with ffmpeg"
        ) from error
    if len(samples) == 0:
        raise ValueError(f"{name} is audio of zero length; drop it or record it again")
    return resample(samples.mean(axis=1), rate, sampling_rate)


def _open(source: str | Path | bytes) -> tuple[str | bytes | io.BytesIO, str]:
    """What soundfile can open, and the name that errors give it."""
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"the audio of {len(source)} bytes"
        if not len(source):
            raise ValueError(f"{name} is empty; give the content of an audio file")
        return io.BytesIO(source), name
    if not isinstance(source, str | Path):
        raise TypeError(
            f"source is a {type(source).__name__}; give the path of an audio file or its bytes"
        )
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no file at {str(path)!r}; check the path")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no file; give the path of one audio file")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty (0 bytes); fetch or write it again")
    # As bytes, except on Windows: soundfile takes text only where it is valid Unicode.
    return str(path) if os.name == "nt" else os.fsencode(path), repr(str(path))


def resample(waveform: np.ndarray, given: int, wanted: int) -> np.ndarray:
    """Resamples by windowed-sinc interpolation.

    The ratio of the rates is kept exactly for all usual rates; one that needs a denominator above
    2000 (such as 47999 : 16000) is replaced by the nearest that does not, which shifts the pitch by
    less than a thousandth.

    Args:
        waveform: (..., S), float32, at `given` Hz.
        given, wanted: Rates, in Hz.
    Returns:
        (..., ceil(S * wanted / given)), float32; `waveform` itself if the rates are equal.
    Raises:
        ValueError: A rate is not a positive whole number.
        ImportError: The rates differ and torchaudio cannot be loaded.
    Source: torchaudio 2.11's functional.resample, with its defaults.
    """
    for rate in (given, wanted):
        if int(rate) != rate or rate <= 0:
            raise ValueError(f"a sampling rate is {rate}; it must be a positive whole number of Hz")
    if given == wanted:
        return waveform
    try:
        from torchaudio import functional
    # Beside a torch that it was not built for, torchaudio fails in any of these ways.
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"the audio is at {given} Hz and must be resampled to {wanted} Hz, but torchaudio "
            f"cannot be loaded ({error}); install torch>=2.11,<2.15 with torchaudio>=2.11,<2.12, "
            f"or give audio at {wanted} Hz"
        ) from error
    ratio = Fraction(int(given), int(wanted)).limit_denominator(LARGEST_DENOMINATOR)
    tensor = torch.from_numpy(np.ascontiguousarray(waveform))
    return functional.resample(tensor, ratio.numerator, ratio.denominator).numpy()


__all__ = ["read_audio", "resample"]
