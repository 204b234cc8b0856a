"""An audio file -> its samples in blocks, to its end.

libsndfile (bundled with soundfile) decodes WAV, FLAC, OGG, Opus, MP3 and more, without ffmpeg. It
is imported when it is needed. `file_streams.py` finds the streams of a file, so that libsndfile
does not stop early. `quick_flac.py` decodes FLAC files without damage in less time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from transformers.utils import logging

from .errors import one_line
from .file_kinds import kind_of_file
from .file_section import Section
from .file_streams import Stretch, find_streams
from .quick_flac import MOST_BYTES, MOST_SAMPLES, DamagedFlacError, decode_quickly
from .resampling import checked_rate, resampled_length

if TYPE_CHECKING:
    from soundfile import SoundFile

logger = logging.get_logger(__name__)

# Samples of a block, all channels together: they stay in the cache.
BLOCK_SAMPLES = 2**17
# The number of frames that libsndfile gives if the file does not state it.
UNKNOWN_FRAMES = 2**63 - 1


class DecodingError(ValueError):
    """A file that cannot be decoded any further.

    Args:
        message: One sentence, with the name of the file.
        seconds: Of audio that were decoded before the error.
    """

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class AudioFile:
    """An audio file, opened.

    Args:
        source: Its path, or its content.
    Attributes:
        name: What errors call it.
        streams: Its streams, in order: one, or several in a chained OGG file or in joined MP3
            files. Their rates may differ.
    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a directory, empty, or no audio.
        TypeError: `source` is neither a path nor bytes.
    """

    def __init__(self, source: str | Path | bytes):
        self.source, self.name = _checked_source(source)
        with self._bytes() as file:
            try:
                stretches, note = find_streams(file)
            except OSError as error:
                raise ValueError(f"{self.name} cannot be read ({one_line(error)})") from error
        if note:
            logger.warning(f"{self.name}: {note}")
        self.streams = [AudioStream(self, stretch) for stretch in stretches]

    def _bytes(self) -> BinaryIO:
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        return open(self.source, "rb")

    def content(self, most_bytes: int) -> bytes | None:
        """All bytes of the file; None if they are more than `most_bytes` or cannot be read."""
        if isinstance(self.source, bytes):
            return self.source if len(self.source) <= most_bytes else None
        try:
            if os.path.getsize(self.source) > most_bytes:
                return None
            with self._bytes() as file:
                return file.read(most_bytes)
        except OSError:  # the decoder says the reason
            return None

    def length_at(self, sampling_rate: int) -> int | None:
        """Samples that the whole file has at this rate; None if it does not say its length."""
        length = 0
        for stream in self.streams:
            own = stream.length_at(sampling_rate)
            if own is None:
                return None
            length += own
        return length

    def open_stretch(self, stretch: Stretch) -> SoundFile:
        """libsndfile's handle of a part of the file.

        Raises:
            ValueError: libsndfile cannot decode it.
        """
        import soundfile

        opened: Section | io.BytesIO | str | bytes
        if not stretch.is_whole_file:
            opened = Section(self._bytes(), stretch)
        elif isinstance(self.source, bytes):
            opened = _Content(self.source)
        else:
            # A path is given as bytes, except on Windows: as text it must be valid Unicode.
            opened = self.source if os.name == "nt" else os.fsencode(self.source)
        try:
            file = soundfile.SoundFile(opened)
        # For a name that ends in .raw soundfile raises a TypeError, because it needs the format.
        except (soundfile.SoundFileError, TypeError) as error:
            reason = str(getattr(error, "error_string", error)).rstrip(".")
            with self._bytes() as content:
                kind = kind_of_file(content)
            raise ValueError(
                f"{self.name} cannot be decoded as audio ({reason}"
                f"{f': it is {kind}' if kind else ''}); give a whole WAV, FLAC, OGG, Opus or MP3 "
                f"file, or convert it first, e.g. with ffmpeg"
            ) from error
        # soundfile seeks after each block of a seekable file, which costs time and fails if the
        # number of frames is unknown.
        file.seekable = lambda: False
        return file


class _Content(io.BytesIO):
    """The content of a file. In a damaged one, libsndfile may seek to a place before the first
    byte, which becomes the first byte here."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return super().seek(0)


class AudioStream:
    """A part of a file that libsndfile decodes in one go.

    Attributes:
        rate: In Hz, from 100 to 1,000,000.
        channels: Their number.
        num_frames: Samples of each channel; None if the file does not say it.
        is_flac: Whether it is FLAC in a file of its own, not in OGG.
    """

    def __init__(self, file: AudioFile, stretch: Stretch):
        self.file = file
        self.stretch = stretch
        self.opened: SoundFile | None = file.open_stretch(stretch)
        try:
            self.rate = checked_rate(self.opened.samplerate)
        except ValueError as error:
            raise ValueError(f"{file.name} cannot be used: {error}") from None
        self.channels = self.opened.channels
        frames = self.opened.frames
        self.num_frames = None if frames >= UNKNOWN_FRAMES else frames
        self.is_flac = self.opened.format == "FLAC"
        if not stretch.is_whole_file:  # not kept open: there may be hundreds of streams
            self.opened.close()
            self.opened = None

    def length_at(self, sampling_rate: int) -> int | None:
        """Samples that the stream has at this rate; None if it does not say its length."""
        if self.num_frames is None:
            return None
        return resampled_length(self.num_frames, self.rate, sampling_rate)

    def mono_blocks(self, begin_seconds: float = 0.0) -> Iterator[np.ndarray]:
        """Decodes the stream; a block is valid until the next one is requested.

        Args:
            begin_seconds: Where the stream begins in the file; times in errors include it.
        Returns:
            (S,) each, float32: the mean of the channels.
        Raises:
            DecodingError: Decoding failed; the blocks before the error have been returned.
        """
        is_damaged = False
        try:
            mono = self._decoded_quickly()
        except DamagedFlacError:
            mono, is_damaged = None, True
        if mono is not None:
            self.opened = None
            for start in range(0, len(mono), BLOCK_SAMPLES):
                yield mono[start : start + BLOCK_SAMPLES]
            return
        import soundfile

        opened = self.opened or self.file.open_stretch(self.stretch)
        self.opened = None  # read once; a second call opens it again
        buffer = np.empty((max(1, BLOCK_SAMPLES // self.channels), self.channels), np.float32)
        done = 0
        with opened:
            while True:
                try:
                    block = opened.read(out=buffer)  # (S, channels)
                except soundfile.SoundFileError as error:
                    decoded = max(0, opened.tell() - done)  # of this block
                    if decoded:
                        yield mean_of_columns(buffer[:decoded])
                    has_all = self.num_frames is not None and done + decoded >= self.num_frames
                    # Then the error is in a tag or filling behind the samples. For a damaged FLAC
                    # this is not certain, because libFLAC replaces lost frames by silence.
                    if has_all and not is_damaged:
                        return
                    reason = one_line(getattr(error, "error_string", None) or error)
                    raise self._broken(begin_seconds, done + decoded, reason.rstrip(".")) from error
                if len(block) == 0:
                    break
                done += len(block)
                yield mean_of_columns(block)
        if self.num_frames is not None and done < self.num_frames:
            if self.is_flac:
                announced = f"{self.num_frames / self.rate:.2f} s were announced"
                raise self._broken(begin_seconds, done, announced)
            logger.warning(
                f"{self.file.name} ends after {done / self.rate:.2f} s but announces "
                f"{self.num_frames / self.rate:.2f} s; what is there is used"
            )

    def _decoded_quickly(self) -> np.ndarray | None:
        """(S,): the mean of the channels of a short FLAC file; None for all others.

        Raises:
            DamagedFlacError: It is damaged.
        """
        is_short = self.num_frames is not None and self.num_frames <= MOST_SAMPLES
        if not (self.is_flac and self.stretch.is_whole_file and is_short):
            return None
        content = self.file.content(MOST_BYTES)
        return None if content is None else decode_quickly(content, BLOCK_SAMPLES, mean_of_columns)

    def _broken(self, begin_seconds: float, frames: int, reason: str) -> DecodingError:
        seconds = begin_seconds + frames / self.rate
        return DecodingError(
            f"{self.file.name} cannot be decoded as audio after {seconds:.2f} s ({reason}); give a "
            f"whole file, or convert it first, e.g. with ffmpeg",
            seconds,
        )


def mean_of_columns(samples: np.ndarray) -> np.ndarray:
    """(S, channels) -> (S,): the mean of the channels; a view if there is one channel."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    # samples.mean(1) is not used: numpy's mean over so short an axis is slow.
    mono = samples[:, 0] + samples[:, 1]  # (S,)
    for channel in range(2, samples.shape[1]):
        mono += samples[:, channel]
    mono /= samples.shape[1]
    return mono


def _checked_source(source: str | Path | bytes) -> tuple[str | bytes, str]:
    """A path as text, or the content of a file; and the name that errors give it."""
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"the audio of {len(source)} bytes"
        if not len(source):
            raise ValueError(f"{name} is empty; give the content of an audio file")
        return bytes(source), name
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"source is a {type(source).__name__}; give the path of an audio file or its bytes"
        )
    text = os.fsdecode(source)
    if "://" in text:
        raise ValueError(f"{text!r} is a URL, which is not read; download the file first")
    if "\0" in text:
        raise ValueError(f"{text!r} has a null character; give the path of one audio file")
    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(f"no file at {text!r}; check the path")
    if text and path.is_dir():
        raise ValueError(
            f"{text!r} is a folder; give the path of one audio file, or take all files of the "
            f"folder with `modeling-ast tag`"
        )
    if not text or not path.is_file():
        raise ValueError(f"{text!r} is no file; give the path of one audio file")
    if path.stat().st_size == 0:
        raise ValueError(f"{text!r} is empty (0 bytes); fetch or write it again")
    return text, repr(text)


__all__ = ["AudioFile", "AudioStream", "DecodingError", "mean_of_columns"]
