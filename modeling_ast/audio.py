"""Whatever a user calls a clip -> a checked mono waveform at the wanted rate, or the reason.

The one rule of the package: the extractor, `AudioTagger`, every command, training and its
evaluations read a clip here. `open_clip` finds out what was given, without decoding anything, so
that it can be sent to another process; `decode_clip` makes the waveform; `read_clip` does both.

libsndfile (bundled with soundfile) decodes WAV, FLAC, OGG, Opus, MP3 and more, without ffmpeg;
torchaudio resamples. Both are imported where they are needed: the package works without torchaudio
as long as a clip has the wanted rate already.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .configuration_ast import ASTConfig, whole_samples
from .errors import one_line

PCM_SCALES = {torch.int16: 2.0**15, torch.int32: 2.0**31}
# Ambisonics of the seventh order has so many; more than that is no audio with a channel axis.
MOST_CHANNELS = 64
# An array (S, channels) with more channels than these counts as a batch of short clips.
MOST_CHANNELS_OF_AN_ARRAY = 8
# torchaudio's table of filters has numerator x denominator entries: 47999 -> 16000 Hz would take
# gigabytes. The usual rates have denominators of at most 640.
LARGEST_DENOMINATOR = 2000


@dataclass(frozen=True)
class ClipSource:
    """A clip before it is decoded."""

    name: str  # what errors call it
    content: str | Path | bytes | np.ndarray | Tensor | list | tuple  # a file, or samples
    # Of samples, in Hz; None if nobody said it, and for files, which say it themselves.
    sampling_rate: int | None = None
    channel_axis: int | None = None  # of samples (2-D); None if it must be found by their shape

    @property
    def is_file(self) -> bool:
        """Whether it is a path or the content of a file, and no samples."""
        return isinstance(self.content, str | Path | bytes)


def is_single_clip(given: Any) -> bool:
    """Whether this is one clip, and not a collection of clips.

    A list of numbers is one clip, so is a pair of samples and their rate, and an array (S,) or
    (S, channels); an array (B, S) is B clips.
    """
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Mapping):
        return True
    if isinstance(given, np.ndarray | Tensor):
        if given.ndim == 2:
            return given.shape[1] <= MOST_CHANNELS_OF_AN_ARRAY < given.shape[0]
        return given.ndim == 0 or (given.ndim == 1 and given.dtype != object)
    if isinstance(given, list | tuple):
        return _rate_place(given) is not None or bool(len(given) and _is_number(given[0]))
    return _is_decoder(given) or hasattr(given, "read")


def read_clip(
    clip: Any, sampling_rate: int, name: str = "the clip", min_samples: int | None = None
) -> Tensor:
    """Reads one clip.

    Args:
        clip: The path of an audio file, its content (bytes) or an open file; samples as an array,
            a tensor or a list of numbers, (S,), (channels, S) or (S, channels), in [-1, 1] or as
            int16 or int32 PCM; a pair of samples and their rate, in either order; a dict with
            "array" (or "raw") and "sampling_rate", or with "bytes" or "path"; a row of a data set
            with such a clip in the column "audio"; an `AudioDecoder` of torchcodec.
        sampling_rate: Wanted, in Hz. Samples without a rate of their own are taken to have it.
        name: What errors call the clip, unless it has a path.
        min_samples: Samples that one frame needs, `extractor.window_samples`; by default those of
            25 ms. A shorter clip is refused.
    Returns:
        (S,), float32, mono (the mean of the channels), at least `min_samples` long. On a CPU it is
        known to be finite. A tensor keeps its device and its gradient.
    Raises:
        TypeError: It is nothing of the above.
        FileNotFoundError, ValueError: It is, but cannot be used; one sentence says why.
        ImportError: It must be resampled and torchaudio cannot be loaded.
    """
    return decode_clip(open_clip(clip, name), sampling_rate, min_samples)


def open_clip(clip: Any, name: str = "the clip") -> ClipSource:
    """Finds out what was given, as in `read_clip`; no file is opened.

    Raises:
        TypeError, ValueError: It is no clip, or cannot be used.
    """
    if isinstance(clip, Mapping) and clip.get("audio") is not None:
        clip = clip["audio"]
    if isinstance(clip, str | os.PathLike):
        path = os.fsdecode(clip)
        return ClipSource(path, path)
    if isinstance(clip, bytes | bytearray | memoryview):
        return ClipSource(name, bytes(clip))
    if _is_decoder(clip):
        samples = _called(clip.get_all_samples, name)
        return _from_samples(samples.data, samples.sample_rate, name, channel_axis=0)
    if isinstance(clip, Mapping):
        return _open_mapping(clip, name)
    if isinstance(clip, tuple) and (place := _rate_place(clip)) is not None:
        return _from_samples(clip[1 - place], clip[place], name)
    if isinstance(clip, np.ndarray | Tensor | list | tuple):
        return _from_samples(clip, None, name)
    if hasattr(clip, "read") and isinstance(content := _called(clip.read, name), bytes):
        return ClipSource(name, content)
    raise TypeError(
        f"{name} is a {type(clip).__name__}; give a path, bytes, an array, (array, sampling rate), "
        f'a dict with "array", "bytes" or "path", or a row with the column "audio"'
    )


def decode_clip(
    source: ClipSource, sampling_rate: int, min_samples: int | None = None, copy: bool = False
) -> Tensor:
    """The waveform of an opened clip, as in `read_clip`.

    Args:
        min_samples: As in `read_clip`.
        copy: Whether it must have memory of its own; else it may share that of the samples given.
    """
    if source.is_file:
        x = torch.from_numpy(read_audio(source.content, sampling_rate))
        check_finite(x, source.name)
    else:
        x = _as_tensor(source.content, source.name, copy)
        x = scale_samples(x, f"{source.name} holds")
        x = _mixed_down(x, source.name, source.channel_axis)
        if x.is_cpu:
            check_finite(x, source.name)
        if source.sampling_rate is not None:
            x = resample(x, source.sampling_rate, sampling_rate)
    if min_samples is None:
        min_samples = whole_samples(ASTConfig.window_seconds, sampling_rate)
    if len(x) < min_samples:
        what = "is empty" if len(x) == 0 else f"has {len(x)} samples"
        raise ValueError(
            f"{source.name} {what} but one window needs {min_samples} samples "
            f"({1000 * min_samples / sampling_rate:g} ms at {sampling_rate} Hz); drop it "
            f"or pad it with zeros"
        )
    return x


def scale_samples(x: Tensor, what: str) -> Tensor:
    """Samples as float32, those of int16 and int32 PCM brought to [-1, 1].

    Args:
        what: Begins the message, such as "clip 3 holds".
    Raises:
        ValueError: They are of a type whose scale nobody knows.
    """
    if x.dtype in PCM_SCALES:
        return x.float() / PCM_SCALES[x.dtype]
    if not x.is_floating_point():
        raise ValueError(
            f"{what} {x.dtype} values, whose scale is unknown; pass floats in [-1, 1] or int16 or "
            f"int32 PCM"
        )
    return x.float()


def check_finite(x: Tensor, name: str) -> None:
    """Refuses NaN and infinity; of samples on a GPU the host waits for the answer.

    Raises:
        ValueError: There are some, as it says with their number.
    """
    if is_sum_finite(x):
        return
    bad = int((~torch.isfinite(x)).sum())
    if bad > 0:
        raise ValueError(
            f"{name} holds NaN or infinity in {bad} of {len(x)} samples; all samples must be "
            f"finite, so repair or drop the clip"
        )


def is_sum_finite(x: Tensor) -> bool:
    """Then all samples are. Otherwise they may still be, near float32's limit."""
    return math.isfinite(x.sum().item())


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
    mono = _mixed_down(torch.from_numpy(samples), name, channel_axis=1)
    return resample(mono, rate, sampling_rate).numpy()


def _open(source: str | Path | bytes) -> tuple[str | bytes | io.BytesIO, str]:
    """What soundfile can open, and the name that errors give it."""
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"the audio of {len(source)} bytes"
        if not len(source):
            raise ValueError(f"{name} is empty; give the content of an audio file")
        return io.BytesIO(source), name
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"source is a {type(source).__name__}; give the path of an audio file or its bytes"
        )
    text = os.fsdecode(source)
    if "://" in text:
        raise ValueError(f"{text!r} is a URL, which is not read; download the file first")
    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(f"no file at {text!r}; check the path")
    if not text or not path.is_file():
        raise ValueError(f"{text!r} is no file; give the path of one audio file")
    if path.stat().st_size == 0:
        raise ValueError(f"{text!r} is empty (0 bytes); fetch or write it again")
    # As bytes, except on Windows: soundfile takes text only where it is valid Unicode.
    return text if os.name == "nt" else os.fsencode(text), repr(text)


def resample(waveform: np.ndarray | Tensor, given: int, wanted: int) -> np.ndarray | Tensor:
    """Resamples by windowed-sinc interpolation.

    The ratio of the rates is kept exactly for all usual rates; one that needs a denominator above
    2000 (such as 47999 : 16000) is replaced by the nearest that does not, which shifts the pitch by
    less than a thousandth.

    Args:
        waveform: (..., S), float32, at `given` Hz, an array or a tensor.
        given, wanted: Rates, in Hz.
    Returns:
        (..., ceil(S * wanted / given)), float32, an array for an array and a tensor, on its device
        and with its gradient, for a tensor; `waveform` itself if the rates are equal.
    Raises:
        ValueError: A rate is not a positive whole number.
        ImportError: The rates differ and torchaudio cannot be loaded.
    Source: torchaudio 2.11's functional.resample, with its defaults.
    """
    given, wanted = _checked_rate(given), _checked_rate(wanted)
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
    ratio = Fraction(given, wanted).limit_denominator(LARGEST_DENOMINATOR)
    if isinstance(waveform, Tensor):
        return functional.resample(waveform, ratio.numerator, ratio.denominator)
    tensor = torch.from_numpy(np.ascontiguousarray(waveform))
    return functional.resample(tensor, ratio.numerator, ratio.denominator).numpy()


def _rate_place(pair: Any) -> int | None:
    """Where the rate is in (samples, rate) or (rate, samples); None if it is no such pair."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        return None
    first, second = (_is_number(part) for part in pair)
    other = pair[1] if first else pair[0]
    if first == second or not isinstance(other, np.ndarray | Tensor | list | tuple):
        return None
    return 0 if first else 1


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 0 and value.dtype not in (bool, torch.bool, np.dtype(object))
    return isinstance(value, Real) and not isinstance(value, bool)


def _checked_rate(rate: Any) -> int:
    if not _is_number(rate) or not math.isfinite(rate) or int(rate) != rate or rate <= 0:
        raise ValueError(f"a sampling rate is {rate}; it must be a positive whole number of Hz")
    return int(rate)


def _is_decoder(clip: Any) -> bool:
    """torchcodec's AudioDecoder, which `datasets` gives too; torchcodec need not be installed."""
    return hasattr(clip, "get_all_samples")


def _called(read: Callable[[], Any], name: str) -> Any:
    """What somebody else's code reads; whatever it raises is the clip's reason."""
    try:
        return read()
    except Exception as error:
        raise ValueError(f"{name} cannot be read ({one_line(error)}); drop it") from error


def _open_mapping(clip: Mapping, name: str) -> ClipSource:
    path = clip.get("path")
    if isinstance(path, str | os.PathLike):
        name = os.fsdecode(path)
    for key in ("array", "raw"):  # of `datasets`, and of transformers' pipelines
        if clip.get(key) is not None:
            return _from_samples(clip[key], clip.get("sampling_rate"), name)
    content = path if clip.get("bytes") is None else clip["bytes"]
    if content is None:
        raise ValueError(
            f"{name} has the keys {sorted(map(str, clip))} but none of audio, array, bytes and "
            f"path with something in it; give one of these"
        )
    if not isinstance(content, str | os.PathLike | bytes | bytearray | memoryview):
        raise TypeError(f"{name} is a {type(content).__name__}; give a path or the bytes of a file")
    return replace(open_clip(content), name=name)


def _from_samples(
    samples: Any, rate: Any, name: str, channel_axis: int | None = None
) -> ClipSource:
    """A source of samples; refuses what has no values that can be read here."""
    if not isinstance(samples, np.ndarray | Tensor | list | tuple):
        raise TypeError(
            f"{name} has a {type(samples).__name__} in the place of samples; give an array, a "
            f"tensor or a list of floats"
        )
    if isinstance(samples, Tensor) and (samples.is_meta or samples.layout != torch.strided):
        raise ValueError(f"{name} is a tensor without values of its own; give a dense one")
    if isinstance(samples, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array; give its .filled(0), or .compressed()")
    rate = None if rate is None else _checked_rate(rate)
    return ClipSource(name, samples, rate, channel_axis)


def _as_tensor(samples: Any, name: str, copy: bool) -> Tensor:
    if isinstance(samples, Tensor):
        return samples.clone() if copy else samples
    try:
        array = np.asarray(samples)
    # A list of tensors with a gradient is a RuntimeError.
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_numbers(samples, name, one_line(error)) from error
    if array.dtype.kind not in "fiubc":
        raise _no_numbers(samples, name, f"its type is {array.dtype}")
    if isinstance(samples, list | tuple) and array.dtype == np.float64:
        array = array.astype(np.float32)
    try:
        # torch knows neither other byte orders nor negative strides nor read-only memory.
        copy = copy or not array.flags.writeable
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=copy)
        return torch.from_numpy(native)
    except (TypeError, ValueError) as error:  # such as float128
        raise _no_numbers(samples, name, f"its type is {array.dtype}") from error


def _no_numbers(samples: Any, name: str, why: str) -> TypeError:
    return TypeError(
        f"{name} is a {type(samples).__name__} that holds no numbers ({why}); pass audio as an "
        f"array, a tensor or a list of floats"
    )


def _mixed_down(x: Tensor, name: str, channel_axis: int | None = None) -> Tensor:
    """(S,), (channels, S) or (S, channels) -> (S,), the mean of the channels.

    Where nobody says it, the shorter of the two axes holds the channels.
    """
    if x.ndim == 1:
        return x
    if x.ndim != 2 or (channel_axis is None and min(x.shape) > MOST_CHANNELS):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} but must be (samples,), (channels, samples) or "
            f"(samples, channels) with at most {MOST_CHANNELS} channels; pick out one clip"
        )
    if channel_axis is None:
        channel_axis = 0 if x.shape[0] <= x.shape[1] else 1
    channels = x.unbind(channel_axis)
    if not channels:
        return x.flatten()  # (0,)
    # Not x.mean(axis), which is slow over an axis of two.
    return channels[0] if len(channels) == 1 else sum(channels) / len(channels)


__all__ = [
    "ClipSource",
    "check_finite",
    "decode_clip",
    "is_single_clip",
    "is_sum_finite",
    "open_clip",
    "read_audio",
    "read_clip",
    "resample",
    "scale_samples",
]
