"""The frames of a FLAC file, without decoding them: where they begin, and whether all are there.

A file says in its first block how many samples it has. Its frames say more: each has a number and
a checksum of its header, so that frames that are missing, doubled, or more than announced can be
found in less than a millisecond.

Source: RFC 9639, sections 6, 8 and 9.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

# The first bytes of a FLAC file: its mark, and the header of the first block, which has 34 bytes.
# The first bit of the header is set if no other block follows.
FLAC_BEGINNINGS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
# The first bytes of a FLAC file, up to the end of its number of samples.
FLAC_START_BYTES = 26
# A file with more blocks before its frames is not read as FLAC.
MOST_FLAC_BLOCKS = 1000
SEARCH_BYTES = 2**18
# In so many bytes at the end of a file are its last two frames, if they are of usual sizes.
END_BYTES = 2**18
# How a frame begins: the sync code, then a bit that is set if the lengths of frames vary.
FRAME_MARKS = (b"\xff\xf8", b"\xff\xf9")
# The header of a frame has at most so many bytes.
HEADER_BYTES = 16
# A file with more places that begin like a frame, or like a FLAC file, and are none is not searched
# any further.
MOST_TRIES, MOST_FALSE_STARTS = 20_000, 20
# Bits of a sample by 3 bits of a frame's header; 0 for "as in the first block", -1 for reserved.
SAMPLE_BITS = (0, 8, 12, -1, 16, 20, 24, 32)
# Samples of a frame by 4 bits of its header.
FRAME_SAMPLES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << power for power in range(8)))
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
    if bytes_at(file, start, 8) not in FLAC_BEGINNINGS:
        return None
    position = start + 4
    for _ in range(MOST_FLAC_BLOCKS):
        header = bytes_at(file, position, 4)
        if len(header) < 4:
            return None
        position += 4 + int.from_bytes(header[1:], "big")
        if header[0] & 0x80:
            sync = bytes_at(file, position, 2)
            return position if len(sync) == 2 and sync[0] == 0xFF and sync[1] >> 2 == 0x3E else None
    return None


def joined_flac_files(file: BinaryIO, start: int) -> list[int]:
    """Where the FLAC files that were joined begin, the first at `start`."""
    starts: list[int] = []
    overlap = len(FLAC_BEGINNINGS[0]) - 1
    found: int | None = start
    false_starts = 0
    while found is not None:
        starts.append(found)
        # Pictures and other blocks may hold FLAC files; only what comes after them is searched.
        position, found = first_frame(file, found) or 0, None
        while found is None and len(block := bytes_at(file, position, SEARCH_BYTES)) > overlap:
            for place in _places(block, b"fL"):
                if not block.startswith(FLAC_BEGINNINGS, place):
                    continue
                if first_frame(file, position + place):
                    found = position + place
                    break
                false_starts += 1
                if false_starts == MOST_FALSE_STARTS:
                    return starts
            position += len(block) - overlap
    return starts


def frames(content: bytes, start: FlacStart, position: int = 0) -> Iterator[FlacFrame]:
    """The headers of frames whose checksum is right, in order, from a position on.

    Among random bytes, 1 of 100,000,000 or fewer pass as a header by chance. The search ends if it
    has found MOST_TRIES places that begin like a frame and are none.
    """
    tries = 0
    for first in range(position, len(content), SEARCH_BYTES):
        # One byte more, so that a mark at the end of the block is found.
        for place in _places(content[first : first + SEARCH_BYTES + 1], *FRAME_MARKS):
            frame = _frame(content, first + place, start)
            tries += frame is None
            if tries > MOST_TRIES:
                return
            if frame is not None:
                yield frame


def has_all_frames(content: bytes, position: int) -> bool:
    """Whether a FLAC file has exactly the frames that its first block announces, in order.

    Args:
        content: Of the whole file.
        position: Where its first frame begins.
    """
    start = flac_start(content)
    num_samples = 0
    for number, frame in enumerate(frames(content, start, position)):
        left = start.num_samples - num_samples
        if not _is_next(frame, number, start) or frame.block_samples > left:
            return False
        if frame.block_samples != min(start.block_samples, left):
            return False
        num_samples += frame.block_samples
    return 0 < num_samples == start.num_samples


def lacks_frames(content: bytes, position: int) -> bool:
    """Whether frames that the first block announces are missing; False if it cannot be known."""
    start = flac_start(content)
    if not start.block_samples or not start.num_samples:
        return False
    found = [frame.number for frame in frames(content, start, position)]
    # Numbers need not begin at 0: the file may be the end of a longer one.
    first = found[0] if found else 0
    num_frames = -(-start.num_samples // start.block_samples)
    return not set(found).issuperset(range(first, first + num_frames))


def counted_samples(file: BinaryIO, size: int, position: int) -> tuple[int, bool]:
    """Samples of a FLAC file, of one channel, by its frames.

    All headers are read only if those of the last two frames contradict the first block.

    Args:
        file, size: The file and its number of bytes.
        position: Where its first frame begins.
    Returns:
        The samples up to the end of the last of the frames that follow one another from the first
        on; and whether other frames are behind them. (0, False) if they cannot be
        counted: the lengths of frames vary, or fewer than two frames are at the end of the file.
    """
    start = flac_start(bytes_at(file, 0, FLAC_START_BYTES))
    last = list(frames(bytes_at(file, max(0, size - END_BYTES), END_BYTES), start))[-2:]
    if len(last) < 2 or not start.block_samples or last[-1].has_varying_lengths:
        return 0, False
    num_samples = last[-1].number * start.block_samples + last[-1].block_samples
    if last[0].number + 1 == last[1].number and num_samples == start.num_samples:
        return num_samples, False
    number = num_samples = 0
    while position < size:
        block = bytes_at(file, position, SEARCH_BYTES + HEADER_BYTES)
        for frame in frames(block, start):
            if frame.place >= SEARCH_BYTES:
                break  # the next block begins with it
            is_full = num_samples == number * start.block_samples
            if not is_full or not _is_next(frame, number, start):
                return num_samples, number > 0
            num_samples += frame.block_samples
            number += 1
        position += SEARCH_BYTES
    return num_samples, False


def _is_next(frame: FlacFrame, number: int, start: FlacStart) -> bool:
    """Whether a frame has this number, and no more samples than frames of its file have."""
    return (
        not frame.has_varying_lengths
        and frame.number == number
        and frame.block_samples <= start.block_samples
    )


def with_num_samples(content: bytes, num_samples: int) -> bytes:
    """The first FLAC_START_BYTES of a FLAC file, with another number of samples."""
    bits = int.from_bytes(content[18:FLAC_START_BYTES], "big") >> 36 << 36 | num_samples
    return content[:18] + bits.to_bytes(8, "big")


def _frame(content: bytes, place: int, start: FlacStart) -> FlacFrame | None:
    """The header of a frame that begins here; None if it is none, or not one of this file."""
    header = content[place : place + HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
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
        block_samples = FRAME_SAMPLES[size]
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


def bytes_at(file: BinaryIO, start: int, count: int) -> bytes:
    """So many bytes of a file, or fewer at its end."""
    file.seek(start)
    return file.read(count)


__all__ = [
    "FLAC_START_BYTES",
    "SEARCH_BYTES",
    "FlacFrame",
    "FlacStart",
    "bytes_at",
    "counted_samples",
    "first_frame",
    "flac_start",
    "frames",
    "has_all_frames",
    "joined_flac_files",
    "lacks_frames",
    "with_num_samples",
]
