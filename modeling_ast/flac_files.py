"""The frames of a FLAC file, without decoding them: where they begin, and whether all are there.

A file says in its first block how many samples it has. Its frames say more: each has a number and
a checksum of its header, so that frames that are missing, doubled, or more than announced can be
found in less than a millisecond.

Source: RFC 9639, sections 6, 8 and 9.1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

# The first bytes of a FLAC file: its mark, and the header of the first block, which has 34 bytes.
# The first bit of the header is set if no other block follows.
FLAC_BEGINNINGS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
# So many bytes of a FLAC file say how many samples it has.
FLAC_START_BYTES = 26
# A FLAC file has at most so many blocks before its frames.
MOST_FLAC_BLOCKS = 10_000
SEARCH_BYTES = 2**18
# In so many bytes at the end of a file are its last two frames, if they are of usual sizes.
END_BYTES = 2**18
# How a frame begins: the sync code, then a bit that is set if the lengths of frames vary.
FIXED_LENGTHS, VARYING_LENGTHS = b"\xff\xf8", b"\xff\xf9"
# Bits of a sample by 3 bits of a frame's header; 0 for "as in the first block", -1 for reserved.
SAMPLE_BITS = (0, 8, 12, -1, 16, 20, 24, 32)
# Samples of a frame by 4 bits of its header.
BLOCK_SAMPLES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << power for power in range(8)))
# The number of a frame has as many bytes as its first byte has leading ones; without any, one byte.
MOST_NUMBER_BYTES = 7


class FlacStart(NamedTuple):
    """What the first block of a FLAC file says of its samples."""

    block_samples: int  # in each frame but the last, of one channel; 0 if that varies
    channels: int
    sample_bits: int
    num_samples: int  # of one channel; 0 if unknown


class FlacFrame(NamedTuple):
    """What the header of a frame says."""

    place: int  # where it begins, in bytes
    number: int  # of the frame; of its first sample if the lengths of frames vary
    has_varying_lengths: bool
    block_samples: int  # of one channel


def flac_start(content: bytes) -> FlacStart:
    """Reads the first FLAC_START_BYTES of a FLAC file."""
    least, most = (int.from_bytes(content[i : i + 2], "big") for i in (8, 10))
    bits = int.from_bytes(content[18:FLAC_START_BYTES], "big")  # 20 of the rate, 3, 5, 36
    return FlacStart(
        most if least == most else 0, (bits >> 41 & 7) + 1, (bits >> 36 & 31) + 1, bits % 2**36
    )


def first_frame(file: BinaryIO, start: int) -> int | None:
    """Where the first frame of the FLAC file that begins at `start` is; None if none begins."""
    if _bytes_at(file, start, 8) not in FLAC_BEGINNINGS:
        return None
    position = start + 4
    for _ in range(MOST_FLAC_BLOCKS):
        header = _bytes_at(file, position, 4)
        if len(header) < 4:
            return None
        position += 4 + int.from_bytes(header[1:], "big")
        if header[0] & 0x80:
            sync = _bytes_at(file, position, 2)
            return position if len(sync) == 2 and sync[0] == 0xFF and sync[1] >> 2 == 0x3E else None
    return None


def joined_flac_files(file: BinaryIO, start: int) -> list[int]:
    """Where the FLAC files that were joined begin, the first at `start`."""
    starts: list[int] = []
    overlap = len(FLAC_BEGINNINGS[0]) - 1
    found: int | None = start
    while found is not None:
        starts.append(found)
        # Pictures and other blocks may hold FLAC files; only what comes after them is searched.
        position, found = first_frame(file, found) or 0, None
        while found is None and len(block := _bytes_at(file, position, SEARCH_BYTES)) > overlap:
            places = (
                position + place
                for place in _places(block, b"fL")
                if block.startswith(FLAC_BEGINNINGS, place)
            )
            found = next((place for place in places if first_frame(file, place)), None)
            position += len(block) - overlap
    return starts


def frames(content: bytes, start: FlacStart, position: int = 0) -> Iterator[FlacFrame]:
    """The headers of frames whose checksum is right, in order, from a position on.

    Among random bytes, 1 of 100,000,000 or fewer pass as a header by chance.
    """
    for place in _places(content, FIXED_LENGTHS, VARYING_LENGTHS):
        if place >= position and (frame := _frame(content, place, start)) is not None:
            yield frame


def has_all_frames(content: bytes, position: int) -> bool:
    """Whether a FLAC file has exactly the frames that its first block announces, in order.

    Args:
        content: Of the whole file.
        position: Where its first frame begins.
    """
    start = flac_start(content)
    if not start.block_samples or not start.num_samples:
        return False
    num_frames = -(-start.num_samples // start.block_samples)
    found = list(frames(content, start, position))
    return [(frame.number, frame.has_varying_lengths) for frame in found] == [
        (number, False) for number in range(num_frames)
    ]


def counted_samples(file: BinaryIO, size: int) -> int:
    """Samples of a FLAC file, of one channel, by the headers of its last two frames; 0 if these do
    not say it."""
    start = flac_start(_bytes_at(file, 0, FLAC_START_BYTES))
    found = list(frames(_bytes_at(file, max(0, size - END_BYTES), END_BYTES), start))
    if len(found) < 2:
        return 0
    before, last = found[-2:]
    if last.has_varying_lengths:
        follows = before.number + before.block_samples == last.number
        return last.number + last.block_samples if follows else 0
    if before.number + 1 != last.number or before.block_samples != start.block_samples:
        return 0
    return last.number * start.block_samples + last.block_samples


def with_num_samples(content: bytes, num_samples: int) -> bytes:
    """The first FLAC_START_BYTES of a FLAC file, with another number of samples."""
    bits = int.from_bytes(content[18:FLAC_START_BYTES], "big") >> 36 << 36 | num_samples
    return content[:18] + bits.to_bytes(8, "big")


def _frame(content: bytes, place: int, start: FlacStart) -> FlacFrame | None:
    """The header of a frame that begins here; None if it is none, or not one of this file."""
    header = content[place : place + 16]
    if len(header) < 16:
        header += bytes(16 - len(header))
    size, rate, channels, bits = header[2] >> 4, header[2] & 15, header[3] >> 4, header[3] >> 1 & 7
    num_channels = channels + 1 if channels < 8 else 2
    is_of_file = num_channels == start.channels and SAMPLE_BITS[bits] in (0, start.sample_bits)
    if size == 0 or rate == 15 or channels > 10 or header[3] & 1 or not is_of_file:
        return None
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    if ones == 1 or ones > MOST_NUMBER_BYTES:
        return None
    end = 4 + max(ones, 1)
    number = header[4] & (0x7F >> ones)
    for byte in header[5:end]:
        number = number << 6 | byte & 0x3F
    if size in (6, 7):  # the length is in one or two bytes
        block_samples = int.from_bytes(header[end : end + size - 5], "big") + 1
        end += size - 5
    else:
        block_samples = BLOCK_SAMPLES[size]
    end += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if _checksum(header[:end]) != header[end]:
        return None
    return FlacFrame(place, number, header[1] & 1 == 1, block_samples)


def _checksum_table() -> bytes:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value << 1) ^ (0x107 if value & 0x80 else 0)
        table.append(value)
    return bytes(table)


CHECKSUM_TABLE = _checksum_table()


def _checksum(header: bytes) -> int:
    """CRC-8 of a frame's header, with the polynomial x^8 + x^2 + x + 1."""
    value = 0
    for byte in header:
        value = CHECKSUM_TABLE[value ^ byte]
    return value


def _places(block: bytes, *marks: bytes) -> Iterator[int]:
    """Where marks of two bytes are in a block, in order.

    numpy compares two bytes at once; bytes.find takes several times as long.
    """
    if len(block) < 2:
        return
    found = []
    for first in (0, 1):
        pairs = np.frombuffer(block, np.uint16, (len(block) - first) // 2, first)
        for mark in marks:
            found.append(first + 2 * np.flatnonzero(pairs == np.frombuffer(mark, np.uint16)))
    yield from np.sort(np.concatenate(found)).tolist()


def _bytes_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start, os.SEEK_SET)
    return file.read(count)


__all__ = [
    "FLAC_START_BYTES",
    "FlacFrame",
    "FlacStart",
    "counted_samples",
    "first_frame",
    "flac_start",
    "frames",
    "has_all_frames",
    "joined_flac_files",
    "with_num_samples",
]
