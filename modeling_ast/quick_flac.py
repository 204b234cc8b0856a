"""A whole FLAC file -> its samples, with a decoder that is faster than libsndfile's.

That decoder, dr_flac in the package miniaudio, skips damaged frames without an error. Therefore it
is only given files that have the headers of exactly the announced frames, in order
(`flac_files.py`), and its samples are used only if they are as many as announced: then each frame
was decoded once, and its checksum was right. libsndfile decodes all other files.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

from .flac_files import first_frame, flac_start, has_all_frames, lacks_frames

# Longer files are decoded in blocks by libsndfile: here all samples are in memory until the last
# one is decoded. 87 s at 48 kHz.
MOST_SAMPLES = 2**22
# Of a file. Large pictures may stand before the frames.
MOST_BYTES = 2**26
# dr_flac does not decode samples of 32 bits, and float32 would not hold them.
MOST_SAMPLE_BITS = 24


class DamagedFlacError(ValueError):
    """Frames that the file announces are missing or damaged."""


def decode_quickly(
    content: bytes, block_samples: int, mix: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """Decodes a FLAC file without damage.

    Args:
        content: Of the whole file.
        block_samples: Samples that are decoded at once, counted over all channels.
        mix: (S, channels) -> (S,).
    Returns:
        (S,), float32, in [-1, 1]; None if it is for libsndfile to decode.
    Raises:
        DamagedFlacError: Frames that it announces are missing or damaged.
    """
    first = first_frame(io.BytesIO(content), 0)
    if first is None:
        return None
    start = flac_start(content)
    if not 0 < start.num_samples <= MOST_SAMPLES:
        return None
    if not has_all_frames(content, first):
        if lacks_frames(content, first):
            raise DamagedFlacError("frames are missing")
        return None
    if start.sample_bits > MOST_SAMPLE_BITS:
        return None
    try:
        from miniaudio import ffi, lib
    except ImportError:  # there are machines that it is not built for
        return None
    decoder = lib.ma_dr_flac_open_memory(content, len(content), ffi.NULL)
    if decoder == ffi.NULL:
        return None
    try:
        if decoder.channels != start.channels:
            return None
        mono = np.empty(start.num_samples, np.float32)
        block = np.empty((max(1, block_samples // start.channels), start.channels), np.float32)
        pointer = ffi.from_buffer("float[]", block)
        for done in range(0, len(mono), len(block)):
            wanted = min(len(block), len(mono) - done)
            if lib.ma_dr_flac_read_pcm_frames_f32(decoder, wanted, pointer) != wanted:
                raise DamagedFlacError("a frame is damaged")
            mono[done : done + wanted] = mix(block[:wanted])  # (wanted, channels) -> (wanted,)
    finally:
        lib.ma_dr_flac_close(decoder)
    return mono


__all__ = ["MOST_BYTES", "MOST_SAMPLES", "DamagedFlacError", "decode_quickly"]
