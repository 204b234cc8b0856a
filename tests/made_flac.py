"""Writes FLAC files by hand: frames of any length and number, which encoders do not write.

Samples are not compressed. Source: RFC 9639, sections 8.2 and 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RATE = 16000


def crc(content: bytes, bits: int, polynomial: int) -> int:
    """The checksum of a frame's header (8 bits) or of a whole frame (16 bits)."""
    value, top = 0, 1 << bits - 1
    for byte in content:
        value ^= byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & (2 * top - 1)
    return value


def coded(number: int) -> bytes:
    """A frame's number, in the extended form of UTF-8."""
    if number < 128:
        return bytes([number])
    count = 2
    while number >= 1 << 5 * count + 1:
        count += 1
    rest = [0x80 | number >> 6 * i & 63 for i in reversed(range(count - 1))]
    return bytes([0xFF << 8 - count & 0xFF | number >> 6 * (count - 1), *rest])


def made_frame(samples: np.ndarray, number: int) -> bytes:
    """A frame of int16 samples (S,) with fixed blocking, one channel and 16 bits."""
    header = b"\xff\xf8\x70\x08" + coded(number) + (len(samples) - 1).to_bytes(2, "big")
    frame = header + bytes([crc(header, 8, 0x107)]) + b"\x02" + samples.astype(">i2").tobytes()
    return frame + crc(frame, 16, 0x18005).to_bytes(2, "big")


def made_flac(
    samples: np.ndarray,
    block: int = 192,
    lengths: Sequence[int] = (),
    numbers: Sequence[int] = (),
    announced: int | None = None,
) -> tuple[bytes, list[bytes]]:
    """The begin of a FLAC file of int16 samples (S,), and its frames.

    Args:
        block: Samples of a frame, as the first block states them.
        lengths: Of the frames; by default `block`, and what is left in the last one.
        numbers: Of the frames; by default they count from 0.
        announced: Samples that the first block states; by default all.
    """
    lengths = lengths or [
        len(part) for part in np.split(samples, range(block, len(samples), block))
    ]
    parts = np.split(samples, np.cumsum(lengths)[:-1])
    num_samples = len(samples) if announced is None else announced
    bits = RATE << 44 | 0 << 41 | 15 << 36 | num_samples
    info = 2 * block.to_bytes(2, "big") + bytes(6) + bits.to_bytes(8, "big") + bytes(16)
    numbers = numbers or range(len(parts))
    made = [made_frame(part, number) for part, number in zip(parts, numbers)]
    return b"fLaC\x80\x00\x00\x22" + info, made
