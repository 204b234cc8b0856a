"""Where in a file libsndfile must begin to decode, so that it decodes all of it.

libsndfile decodes one stream of a file: of a chained OGG file the first link, of joined MP3 files
the first one. It believes a WAV header that gives its data no bytes, and of an MP3 without a count
of its frames it guesses the length by the first of them. Here the headers are read, nothing is
decoded.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import BinaryIO

WHOLE_FILE_BYTES = 2**63 - 1


@dataclass(frozen=True)
class Stretch:
    """A range of a file's bytes that holds one stream."""

    start: int = 0
    stop: int = WHOLE_FILE_BYTES
    header: bytes = b""  # what the decoder reads before them
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
        One stretch or more; and a sentence without its subject about what is wrong with the file
        although it can be heard, or "".
    """
    file.seek(0, os.SEEK_END)
    return [Stretch()], ""


class Section(io.RawIOBase):
    """A stretch of a file as a file of its own, as soundfile reads it.

    Args:
        file: Opened in binary mode; closed with the section.
    """

    def __init__(self, file: BinaryIO, stretch: Stretch):
        super().__init__()
        self.file = file
        self.stretch = stretch


__all__ = ["Section", "Stretch", "find_streams"]
