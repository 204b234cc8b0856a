"""The streams of a file, so that libsndfile decodes all of the file.

libsndfile decodes only one stream of a file: the first link of a chained OGG file, or the first of
several joined MP3, FLAC or WAV files. If an MP3 does not state its number of frames, libsndfile
guesses the length from the first frame; and it trusts a WAV header that announces no samples. Only
headers are read here; nothing is decoded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import BinaryIO

from .flac_files import (
    FLAC_START_BYTES,
    SEARCH_BYTES,
    bytes_at,
    counted_samples,
    first_frame,
    flac_start,
    joined_flac_files,
    with_num_samples,
)

END_OF_FILE = 2**63 - 1
# Bytes of tags (ID3, APE, lyrics, a picture) that may stand between joined MP3 files. Often there
# are none, so that a few bytes are read first.
MOST_TAG_BYTES, FEW_TAG_BYTES = 2**22, 2**12
# A file with more places that could be frames and are none, or with more damages, is searched no
# further: the rest counts as one stream.
MOST_TRIES, MOST_DAMAGES = 20_000, 1000
# How a frame of MPEG audio, layer III, may begin, see `_mp3_frame_bytes`.
MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")
W64_MARK = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb"
# So many bytes behind the samples of a WAV file that are no chunk are worth a note.
MANY_BYTES = 1000
# At most so many chunks after the samples of a WAV file are searched for a joined file.
MOST_CHUNKS = 10_000
# MPEG audio, layer III: kbit/s by 4 bits of a frame's header, for version 1, and for 2 and 2.5.
KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
# Rate in Hz by 2 bits, for version 1; version 2 has half the rate, version 2.5 a quarter.
MP3_RATES = (44100, 48000, 32000)


@dataclass(frozen=True)
class Stretch:
    """A range of a file's bytes that holds one stream."""

    start: int = 0
    stop: int = END_OF_FILE
    header: bytes = b""  # what the decoder reads before these bytes
    # Whether libsndfile must not see where the stream ends: it then counts the frames of an MP3
    # instead of guessing their number.
    hides_end: bool = False

    @property
    def is_whole_file(self) -> bool:
        return self == Stretch()


def find_streams(file: BinaryIO) -> tuple[list[Stretch], str]:
    """The streams of a file, in order.

    Args:
        file: Opened in binary mode; it must be able to seek.
    Returns:
        One stretch or more; and a note on damage that does not prevent decoding, or "".
    """
    size = file.seek(0, os.SEEK_END)
    head = bytes_at(file, 0, 12)
    if head[:4] == b"OggS":
        return _joined(_ogg_links(file, size)), ""
    if _is_wav(head):
        return _wav(file, size)
    announced = _announced_bytes(bytes_at(file, 0, 24))
    if announced > size:
        return [Stretch()], f"its header announces {announced:,} bytes; the {size:,} there are used"
    if head.startswith(W64_MARK) and 0 < announced < size:
        # libsndfile would take the bytes behind it as samples.
        return [Stretch(0, announced)], ""
    audio = _after_id3(file, 0)
    if first_frame(file, audio) is not None:
        return _flac(file, audio, size)
    if _mp3_frame_bytes(bytes_at(file, audio, 4)):
        return _mp3_streams(file, size), ""
    return [Stretch()], ""


def _joined(starts: list[int]) -> list[Stretch]:
    """Stretches that begin at these bytes; each ends where the next one begins."""
    if len(starts) < 2:
        return [Stretch()]
    return [Stretch(start, stop) for start, stop in zip(starts, [*starts[1:], END_OF_FILE])]


def _ogg_links(file: BinaryIO, size: int) -> list[int]:
    """Where the links of a chained OGG file begin: at pages that begin a stream and follow a page
    that does not.

    Source: RFC 3533, section 6.
    """
    links, position, was_first = [], 0, False
    while 0 <= position < size:
        header = bytes_at(file, position, 27)
        if len(header) < 27 or header[:4] != b"OggS":  # damage
            position = _find(file, b"OggS", position + 1)
            continue
        is_first = bool(header[5] & 2)
        if is_first and not was_first:
            links.append(position)
        was_first = is_first
        position += 27 + header[26] + sum(file.read(header[26]))
    return links


def _find(file: BinaryIO, mark: bytes, position: int) -> int:
    """The next position of `mark`; -1 if there is none."""
    while block := bytes_at(file, position, SEARCH_BYTES):
        found = block.find(mark)
        if found >= 0:
            return position + found
        if len(block) < SEARCH_BYTES:
            break
        position += len(block) - len(mark) + 1
    return -1


def _flac(file: BinaryIO, start: int, size: int) -> tuple[list[Stretch], str]:
    """The streams of a FLAC file, or of several that were joined."""
    streams = _joined(joined_flac_files(file, start))
    if len(streams) > 1 or start:
        return streams, ""
    head = bytes_at(file, 0, FLAC_START_BYTES)
    announced = flac_start(head).num_samples
    counted, has_others = counted_samples(file, size, first_frame(file, 0) or 0)
    if not announced or not counted:
        return streams, ""
    said = f"its header announces {announced:,} samples"
    if counted > announced and not has_others:
        patched = Stretch(FLAC_START_BYTES, header=with_num_samples(head, counted))
        return [patched], f"{said}; the {counted:,} there are used"
    if has_others and counted >= announced:
        return streams, f"{said}; the frames behind these are not used"
    return streams, ""


def _announced_bytes(head: bytes) -> int:
    """The size of an AIFF, AU or W64 file by its first 24 bytes; 0 if it does not state it.

    Source: Apple's Audio Interchange File Format 1.3; Sun's audio file format; Sony Wave64.
    """
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return 8 + int.from_bytes(head[4:8], "big")
    if head[:4] == b".snd" and head[8:12] != b"\xff" * 4:
        return int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    if head.startswith(W64_MARK):
        return int.from_bytes(head[16:24], "little")
    return 0


def _is_wav(head: bytes) -> bool:
    """Whether the first 12 bytes are those of a WAV file."""
    return head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE"


def _wav_files(file: BinaryIO, position: int, size: int) -> list[int]:
    """Where the WAV files that were joined begin: the first at 0, others after its samples.

    Args:
        position: Of the first chunk after the samples.
    """
    starts = [0]
    for _ in range(MOST_CHUNKS):
        head = bytes_at(file, position, 12)
        if position + 12 > size or not all(0x20 <= byte < 0x7F for byte in head[:4]):
            break  # the end, or no chunk
        if _is_wav(head):
            starts.append(position)
            position += 12
        else:
            num_bytes = int.from_bytes(head[4:8], "little")
            position += 8 + num_bytes + num_bytes % 2
    return starts


def _wav(file: BinaryIO, size: int) -> tuple[list[Stretch], str]:
    """The streams of a WAV file. Its recorder may have died before it wrote the number of bytes.

    Source: Microsoft's and IBM's Multimedia Programming Interface, 1991; RF64: EBU Tech 3306.
    """
    position, chunks = 12, {}
    while len(header := bytes_at(file, position, 8)) == 8 and header[:4] != b"data":
        num_bytes = int.from_bytes(header[4:], "little")
        if header[:4] in (b"fmt ", b"ds64"):
            chunks[header[:4]] = header + file.read(min(num_bytes, SEARCH_BYTES))
        position += 8 + num_bytes + num_bytes % 2
    if header[:4] != b"data":
        return [Stretch()], ""
    start, num_bytes = position + 8, int.from_bytes(header[4:], "little")
    if num_bytes == 2**32 - 1 and b"ds64" in chunks:
        num_bytes = int.from_bytes(chunks[b"ds64"][16:24], "little")
    there = size - start
    if num_bytes > there:
        # libsndfile stops at the end of the file. A program that writes to a pipe sets all bits.
        note = f"its header announces {num_bytes:,} bytes of samples, {there:,} are there"
        return [Stretch()], "" if num_bytes == 2**32 - 1 else f"{note} and used"
    if num_bytes:
        behind = start + num_bytes + num_bytes % 2
        files = _wav_files(file, behind, size)
        note, left = "", size - behind
        if len(files) == 1 and left >= MANY_BYTES and not _is_chunk(file, behind, size):
            note = f"its header announces {num_bytes:,} bytes of samples; {left:,} bytes behind "
            note += "these are not used"
        return _joined(files), note
    if not there or b"fmt " not in chunks or _is_chunk(file, start, size):
        return [Stretch()], ""
    endless = b"\xff" * 4
    header = b"RIFF" + endless + b"WAVE" + chunks[b"fmt "] + b"data" + endless
    note = f"its header announces no samples; the {there:,} bytes after it are used"
    return [Stretch(start, header=header)], note


def _is_chunk(file: BinaryIO, start: int, size: int) -> bool:
    """Whether a chunk of a WAV file begins here, and not samples."""
    header = bytes_at(file, start, 8)
    stop = start + 8 + int.from_bytes(header[4:], "little")
    return len(header) == 8 and header[:4].isalnum() and stop <= size


def _mp3_streams(file: BinaryIO, size: int) -> list[Stretch]:
    """The MP3 files that were joined to this one."""
    stretches, start = [], 0
    while start < size:
        num_frames, num_bytes = _xing(file, start)
        if not num_frames:
            stop = _next_format(file, start, size)
        else:
            stop = _next_mp3(file, start + num_bytes, size) if num_bytes else END_OF_FILE
        stretches.append(Stretch(start, stop, hides_end=not num_frames))
        start = stop
    # It is faster if libsndfile reads the file itself.
    return [Stretch()] if stretches == [Stretch(0, END_OF_FILE)] else stretches


def _xing(file: BinaryIO, start: int) -> tuple[int, int]:
    """(frames, bytes up to the end of the last frame), as the first frame of an MP3 states them;
    0 for a number that it does not state.

    LAME and other encoders write such a frame, with the mark "Xing", "Info" or "VBRI".
    """
    first = _after_id3(file, start)
    frame = bytes_at(file, first, 192)
    if len(frame) < 192 or not _mp3_frame_bytes(frame):
        return 0, 0
    is_version_1, is_mono = frame[1] & 0x18 == 0x18, frame[3] & 0xC0 == 0xC0
    place = 4 + ((17 if is_mono else 32) if is_version_1 else (9 if is_mono else 17))
    before = first - start
    if frame[36:40] == b"VBRI":
        num_bytes, num_frames = (int.from_bytes(frame[i : i + 4], "big") for i in (46, 50))
        return num_frames, num_bytes and before + num_bytes
    place += 2 * (not frame[1] & 1)  # a checksum
    if frame[place : place + 4] not in (b"Xing", b"Info"):
        return 0, 0
    flags, place, numbers = frame[place + 7], place + 8, []
    for flag in (1, 2):
        numbers.append(int.from_bytes(frame[place : place + 4], "big") if flags & flag else 0)
        place += 4 * bool(flags & flag)
    return numbers[0], numbers[1] and before + numbers[1]


def _next_mp3(file: BinaryIO, position: int, size: int) -> int:
    """Where the next of joined MP3 files begins; END_OF_FILE if only tags follow."""
    if size - position < 4:
        return END_OF_FILE
    begin = _after_id3(file, position)
    for num_read in (FEW_TAG_BYTES, MOST_TAG_BYTES):
        block = bytes_at(file, begin, num_read)
        for tries, match in enumerate(MP3_FRAME.finditer(block)):
            if tries == MOST_TRIES:
                return END_OF_FILE
            place = match.start()
            num_bytes = _mp3_frame_bytes(block[place : place + 4])
            following = block[place + num_bytes : place + num_bytes + 4]
            # Two frames in a row, or one that ends the file: two bytes alone can match by chance.
            if num_bytes and (_mp3_frame_bytes(following) or begin + place + num_bytes == size):
                return position if place == 0 else begin + place
        if len(block) < num_read:
            break
    return END_OF_FILE


def _next_format(file: BinaryIO, start: int, size: int) -> int:
    """Where the frames of an MP3 change their rate or number of channels; END_OF_FILE if never."""
    position, block_start, block, first_format = _after_id3(file, start), 0, b"", None
    num_damages = 0
    while position + 4 <= size and num_damages < MOST_DAMAGES:
        if position + 4 > block_start + len(block):
            block_start, block = position, bytes_at(file, position, SEARCH_BYTES)
        header = block[position - block_start : position - block_start + 4]
        num_bytes = _mp3_frame_bytes(header)
        if not num_bytes:  # a tag, or damage
            position = _next_mp3(file, position + 1, size)
            num_damages += 1
            continue
        format_now = (header[1] & 0x18, header[2] & 0x0C, header[3] & 0xC0 == 0xC0)
        first_format = first_format or format_now
        if format_now != first_format:
            return position
        position += num_bytes
    return END_OF_FILE


def _after_id3(file: BinaryIO, start: int) -> int:
    """Where an ID3v2 tag that begins here ends; `start` if there is none."""
    header = bytes_at(file, start, 10)
    if len(header) < 10 or header[:3] != b"ID3":
        return start
    # Seven bits in each of four bytes; bit 4 of the flags announces a footer.
    num_bytes = sum(byte << shift for byte, shift in zip(header[6:], (21, 14, 7, 0)))
    return start + 10 + num_bytes + 10 * bool(header[5] & 0x10)


def _mp3_frame_bytes(header: bytes) -> int:
    """Length of the frame of MPEG audio, layer III, with this header of 4 bytes; 0 if it is none.

    Source: ISO/IEC 11172-3 and 13818-3, section 2.4.1.3.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return 0
    padding = header[2] >> 1 & 1
    if version == 3:
        return 144_000 * KBITS_1[kbits] // MP3_RATES[rate] + padding
    return 72_000 * KBITS_2[kbits] // (MP3_RATES[rate] // (2 if version == 2 else 4)) + padding


__all__ = ["Stretch", "find_streams"]
