"""A part of a file as a file of its own, for decoders that read a whole file."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from .file_streams import Stretch


class Section(io.RawIOBase):
    """A stretch of a file as a file of its own, which soundfile can read.

    Args:
        file: Opened in binary mode; closed with the section.
    """

    def __init__(self, file: BinaryIO, stretch: Stretch):
        super().__init__()
        self.file = file
        self.header = stretch.header
        self.start = stretch.start - len(stretch.header)  # of the section, in the file
        self.size = min(file.seek(0, os.SEEK_END), stretch.stop) - self.start
        self.position = 0
        self.hides_end = stretch.hides_end
        self.times_asked = 0  # how often its end was asked for

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self.times_asked += 1
        # soundfile asks for the end first and needs the true one. The decoder asks next: for a file
        # whose end is at 0, such as a pipe, it does not assume a length.
        if whence == os.SEEK_END and self.hides_end and self.times_asked > 1:
            self.position = 0
        else:
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
            self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer) -> int:
        view = memoryview(buffer)
        count = min(len(view), max(0, self.size - self.position))
        part = self.header[self.position : self.position + count]
        view[: len(part)] = part
        if len(part) < count:
            self.file.seek(self.start + self.position + len(part))
            read = self.file.read(count - len(part))
            count = len(part) + len(read)
            view[len(part) : count] = read
        self.position += count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


__all__ = ["Section"]
