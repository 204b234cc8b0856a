"""A damaged recording -> all of it that can be decoded, each part at its time.

`stream_audio` ends at the first damage, but an hour with one bad second is still useful. Here
decoding begins again after the damage, at the first of several distances where it succeeds. Missing
samples become NaN, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .audio import stream_audio
from .decoding import AudioFile, AudioStream, DecodingError, mean_of_columns
from .errors import one_line
from .resampling import resampled_blocks

# Seconds after the last decoded sample where decoding is tried again. libsndfile can seek to any
# time in FLAC; in MP3 it can only do so if it need not count frames through the damage.
DISTANCES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
DECODED_SAMPLES = 2**16


def salvaged_blocks(
    source: str | Path | bytes, sampling_rate: int, block_seconds: float
) -> Iterator[tuple[np.ndarray, str | None]]:
    """Decodes an audio file as `stream_audio` does, and continues after damaged parts.

    The times after a damage are those that the decoder gives. It counts the frames of an MP3, so
    that these times may be too early by the length of what was lost.

    Args:
        source, sampling_rate, block_seconds: As in `stream_audio`.
    Returns:
        (samples, None) for a part that can be decoded, float32; (NaN for each missing sample, the
        reason) for a damage; at the end (no samples, the reason) if nothing after the last damage
        can be decoded.
    Raises:
        FileNotFoundError, ValueError, TypeError: As `stream_audio`, if nothing can be decoded.
    """
    done = 0  # samples given so far
    try:
        for block in stream_audio(source, sampling_rate, block_seconds):
            done += len(block)
            yield block, None
        return
    except DecodingError as error:
        if done == 0:
            raise
        reason = one_line(error)
    begin = 0  # of a stream, in samples
    streams = AudioFile(source).streams
    for stream in streams:
        length = stream.length_at(sampling_rate)
        if length is None or begin + length > done:
            is_last, is_lost = stream is streams[-1], False
            for block, why in _rest(stream, max(done - begin, 0), sampling_rate, reason):
                reason, is_lost = why or reason, len(block) == 0
                done += len(block)
                if is_last or not is_lost:
                    yield block, why
            # The next stream keeps its time if the length of this one is known; else what is lost
            # counts as one sample.
            lost = int(is_lost) if length is None else max(begin + length - done, 0)
            if lost and not is_last:
                done += lost
                yield np.full(lost, np.nan, np.float32), reason
        begin = done if length is None else begin + length


def _rest(
    stream: AudioStream, start: int, sampling_rate: int, reason: str
) -> Iterator[tuple[np.ndarray, str | None]]:
    """A stream behind a damage at sample `start`, as in `salvaged_blocks`; from 0 on all of it."""
    distances = DISTANCES if start else (0.0, *DISTANCES)
    while True:
        for distance in distances:
            missing, given = round(distance * sampling_rate), 0
            try:
                for block in _decoded_from(stream, start + missing, sampling_rate):
                    if given == 0 and missing:
                        yield np.full(missing, np.nan, np.float32), reason
                    given += len(block)
                    yield block, None
            except OSError as error:
                if given == 0:
                    continue
                start += missing + given
                reason, distances = f"it is damaged once more ({error})", DISTANCES
                break
            if given:
                return
        else:
            yield np.empty(0, np.float32), reason
            return


def _decoded_from(stream: AudioStream, start: int, sampling_rate: int) -> Iterator[np.ndarray]:
    """Blocks (S,) at the wanted rate, from sample `start` (at that rate) on.

    Raises:
        OSError: Decoding fails, at once or in the middle.
    """
    import soundfile

    try:
        with stream.file.open_stretch(stream.stretch) as file:
            first = round(start / sampling_rate * file.samplerate)
            if first >= file.frames:
                return
            file.seek(first)
            for block in resampled_blocks(_mono_blocks(file), file.samplerate, sampling_rate):
                if len(block):
                    yield block
    except (soundfile.SoundFileError, ValueError) as error:
        raise OSError(one_line(error)) from error


def _mono_blocks(file: Any) -> Iterator[np.ndarray]:
    """The rest of an open SoundFile: (S,) each, float32."""
    buffer = np.empty((DECODED_SAMPLES, file.channels), np.float32)
    while len(block := file.read(out=buffer)):
        yield mean_of_columns(block)


__all__ = ["salvaged_blocks"]
