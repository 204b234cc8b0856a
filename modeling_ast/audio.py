"""A clip in any form -> a checked mono waveform at the wanted rate, or the reason why not.

The extractor, `AudioTagger`, every command, training and its evaluations read clips with this file
alone. `open_clip` finds out what was given without decoding it, so that it can be sent to another
process; `decode_clip` makes the waveform; `read_clip` does both.

Files are decoded by `decoding.py`, whole (`read_audio`) or in blocks (`stream_audio`), and
`resampling.py` brings samples to the wanted rate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .configuration_ast import ASTConfig, whole_samples
from .decoding import AudioFile, DecodingError
from .errors import one_line
from .resampling import (
    checked_rate,
    is_number,
    resample,
    resampled_blocks,
    resampled_length,
)
from .samples import as_tensor, check_samples, mixed_down, scale_samples

# An array (S, channels) with more channels than this counts as a batch of short clips.
MOST_CHANNELS_OF_AN_ARRAY = 8
# The most bytes of samples that `read_audio` returns: 4.6 hours at 16 kHz.
MOST_BYTES = 2**30


@dataclass(frozen=True)
class ClipSource:
    """A clip before it is decoded."""

    name: str  # what errors call it
    content: str | Path | bytes | np.ndarray | Tensor | list | tuple  # a file, or samples
    # The rate of samples, in Hz. None if the caller gave none, and for files: they state their own.
    sampling_rate: int | None = None
    channel_axis: int | None = None  # of samples (2-D); None if it must be found by their shape

    @property
    def file(self) -> str | Path | bytes | None:
        """The path or the content of a file; None for samples."""
        return self.content if isinstance(self.content, str | Path | bytes) else None

    @property
    def is_file(self) -> bool:
        """Whether it is a path or the content of a file, and not samples."""
        return self.file is not None


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
        return _rate_place(given) is not None or bool(len(given) and is_number(given[0]))
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
        (S,), float32, mono (the mean of the channels), at least `min_samples` long. On a CPU all
        samples are finite and within a million; on a GPU this is not checked. A tensor keeps its
        device and its gradient.
    Raises:
        TypeError: It is none of the above.
        OSError, ValueError: It is one of them but cannot be used; one sentence says why.
        ImportError: It is a tensor with a gradient or on a GPU, must be resampled, and torchaudio
            cannot be loaded.
    """
    return decode_clip(open_clip(clip, name), sampling_rate, min_samples)


def open_clip(clip: Any, name: str = "the clip") -> ClipSource:
    """Finds out what was given, as in `read_clip`; no file is opened.

    Raises:
        TypeError, ValueError: It is not a clip, or cannot be used.
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
    source: ClipSource,
    sampling_rate: int,
    min_samples: int | None = None,
    copy: bool = False,
    max_bytes: int | None = MOST_BYTES,
) -> Tensor:
    """The waveform of an opened clip, as in `read_clip`.

    Args:
        min_samples: As in `read_clip`.
        copy: Whether it must have memory of its own; else it may share that of the samples given.
        max_bytes: As in `read_audio`.
    """
    try:
        x = _waveform(source, sampling_rate, copy, max_bytes)
    except (OSError, ValueError, TypeError, ImportError):
        raise
    # Any other error of a decoder or a resampler, and a lack of memory, becomes the clip's reason.
    except Exception as error:
        raise ValueError(f"{source.name} cannot be read ({one_line(error)}); drop it") from error
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


def _waveform(source: ClipSource, sampling_rate: int, copy: bool, max_bytes: int | None) -> Tensor:
    """(S,), at the wanted rate; samples on a GPU are not checked."""
    if source.file is None:
        return decode_samples(source, sampling_rate, copy, max_bytes, check=True)
    x = torch.from_numpy(read_audio(source.file, sampling_rate, max_bytes))
    check_samples(x, source.name)
    return x


def decode_samples(
    source: ClipSource,
    sampling_rate: int,
    copy: bool = False,
    max_bytes: int | None = None,
    check: bool = False,
) -> Tensor:
    """The waveform (S,) of an opened clip that is no file.

    Args:
        copy, max_bytes: As in `decode_clip`.
        check: Whether bad samples are refused, on a CPU; else NaN and infinity stay what they are.
    """
    x = as_tensor(source.content, source.name, copy)
    x = scale_samples(x, f"{source.name} holds")
    x = mixed_down(x, source.name, source.channel_axis)
    if check and x.is_cpu:
        check_samples(x, source.name)
    if source.sampling_rate is None:
        return x
    length = resampled_length(len(x), source.sampling_rate, sampling_rate)
    check_size(length, sampling_rate, max_bytes, source.name)
    return resample(x, source.sampling_rate, sampling_rate)


def read_audio(
    source: str | Path | bytes,
    sampling_rate: int = ASTConfig.sampling_rate,
    max_bytes: int | None = MOST_BYTES,
) -> np.ndarray:
    """Decodes an audio file, mixes it down to the mean of its channels, and resamples it.

    Args:
        source: Path of the file, or its content.
        sampling_rate: Wanted rate, in Hz.
        max_bytes: The most bytes that the samples may take, 4 each; None for no limit. A file can
            decode to 1400 times its own size. By default 1 GB, 4.6 hours at 16 kHz.
    Returns:
        (S,), float32, in [-1, 1], at `sampling_rate`.
    Raises:
        OSError: There is no such file, or it may not be read.
        ValueError: `source` is a directory, empty, no audio, audio without a sample, at a rate
            outside 100 Hz to 1 MHz, larger than `max_bytes` (`TooLargeError`), or cannot be decoded
            to its end (`DecodingError`).
        TypeError: `source` is neither a path nor bytes.
    """
    file = AudioFile(source)
    length = file.length_at(sampling_rate)
    check_size(length or 0, sampling_rate, max_bytes, file.name)
    samples, done = np.empty(length or 0, np.float32), 0
    for piece in _resampled_pieces(file, sampling_rate):
        stop = done + len(piece)
        if stop > len(samples):
            check_size(stop, sampling_rate, max_bytes, file.name)
            samples.resize(2 * stop, refcheck=False)  # in place, unlike np.concatenate
        samples[done:stop] = piece
        done = stop
    samples.resize(done, refcheck=False)
    return samples


def stream_audio(
    source: str | Path | bytes,
    sampling_rate: int = ASTConfig.sampling_rate,
    block_seconds: float = 10.0,
) -> Iterator[np.ndarray]:
    """Decodes an audio file of any length in blocks; `read_audio` decodes it as a whole.

    Only one block and the decoder's own data are in memory. Samples are not checked: a file of
    floats may hold NaN or infinity.

    Args:
        source: Path of the file, or its content.
        sampling_rate: Wanted rate, in Hz.
        block_seconds: Length of a block, at least one sample.
    Returns:
        (S,) each, float32, at `sampling_rate`: round(block_seconds * sampling_rate) samples, fewer
        in the last block. Joined, they equal the result of `read_audio`.
    Raises:
        OSError, ValueError, TypeError: As `read_audio`, at the call or while blocks are
            requested. `DecodingError`, which is a ValueError, comes after the blocks that could be
            decoded; its `seconds` say how much of the file that was.
    """
    block_samples = round(block_seconds * checked_rate(sampling_rate))
    if block_samples < 1:
        raise ValueError(
            f"block_seconds is {block_seconds}; at {sampling_rate} Hz give at least "
            f"{1 / sampling_rate:.2g}, one sample"
        )
    return _in_blocks(_resampled_pieces(AudioFile(source), sampling_rate), block_samples)


def _resampled_pieces(file: AudioFile, sampling_rate: int) -> Iterator[np.ndarray]:
    """(S,) each, of any lengths; refuses a file without a sample."""
    num_samples = 0
    for stream in file.streams:
        blocks = stream.mono_blocks(num_samples / sampling_rate)
        for piece in resampled_blocks(blocks, stream.rate, sampling_rate):
            num_samples += len(piece)
            yield piece
    if num_samples == 0:
        raise ValueError(f"{file.name} is audio of zero length; drop it or record it again")


def _in_blocks(pieces: Iterable[np.ndarray], block_samples: int) -> Iterator[np.ndarray]:
    """Pieces of any lengths -> blocks of one length; the last may be shorter."""
    waiting, num_waiting = [], 0
    try:
        for piece in pieces:
            waiting.append(piece)
            num_waiting += len(piece)
            if num_waiting < block_samples:
                continue
            joined = np.concatenate(waiting)
            stop = num_waiting - num_waiting % block_samples
            yield from np.split(joined[:stop], stop // block_samples)
            waiting, num_waiting = [joined[stop:]], num_waiting - stop
    except DecodingError:
        if num_waiting:
            yield np.concatenate(waiting)
        raise
    if num_waiting:
        yield np.concatenate(waiting)


class TooLargeError(ValueError):
    """A clip that takes more memory than is allowed; `stream_audio` reads a file of any length."""


def check_size(num_samples: int, sampling_rate: int, max_bytes: int | None, name: str) -> None:
    """Refuses a clip that takes too much memory.

    Raises:
        TooLargeError: It has more samples, of 4 bytes each, than `max_bytes` hold.
    """
    if max_bytes is not None and 4 * num_samples > max_bytes:
        raise TooLargeError(
            f"{name} has at least {num_samples / sampling_rate:.0f} s, {4 * num_samples:,} bytes "
            f"at {sampling_rate} Hz, but at most {max_bytes:,} bytes are read at once; cut it, or "
            f"read it with stream_audio"
        )


def _rate_place(pair: Any) -> int | None:
    """Where the rate is in (samples, rate) or (rate, samples); None if it is not such a pair."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        return None
    first, second = (is_number(part) for part in pair)
    other = pair[1] if first else pair[0]
    if first == second or not isinstance(other, np.ndarray | Tensor | list | tuple):
        return None
    return 0 if first else 1


def _is_decoder(clip: Any) -> bool:
    """Whether it is torchcodec's AudioDecoder, which `datasets` returns too. torchcodec need not be
    installed."""
    return hasattr(clip, "get_all_samples")


def _called(read: Callable[[], Any], name: str) -> Any:
    """Calls a reader of another library; any error that it raises becomes the clip's reason."""
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
    """A source of samples; refuses objects whose values cannot be read."""
    if not isinstance(samples, np.ndarray | Tensor | list | tuple):
        raise TypeError(
            f"{name} has a {type(samples).__name__} in the place of samples; give an array, a "
            f"tensor or a list of floats"
        )
    if isinstance(samples, Tensor) and (samples.is_meta or samples.layout != torch.strided):
        raise ValueError(f"{name} is a tensor without values of its own; give a dense one")
    if isinstance(samples, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array; give its .filled(0), or .compressed()")
    rate = None if rate is None else checked_rate(rate)
    return ClipSource(name, samples, rate, channel_axis)


__all__ = [
    "ClipSource",
    "TooLargeError",
    "check_size",
    "decode_clip",
    "decode_samples",
    "is_single_clip",
    "open_clip",
    "read_audio",
    "read_clip",
    "stream_audio",
]
