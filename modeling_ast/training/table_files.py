"""Finds the audio file that a row of a table names.

A name may lack its folder, if only one file has this name, and its suffix (FSD50K). Clips of
AudioSet are named after their video, as by common download tools: `YTID.wav`, `YYTID.wav`, and with
the segment in seconds or milliseconds: `YTID_30000.flac`, `YTID_30.000_40.000.wav`.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..audio_files import AUDIO_SUFFIXES, audio_files, suffix_of

YTID_LENGTH = 11
# The part of a file's name after the YTID: the segment's start and maybe its end.
SEGMENT_NAME = re.compile(r"[ _.-]+(\d+(?:\.\d+)?)(?:[ _-]+\d+(?:\.\d+)?)?")
MILLISECONDS = 1000


class FoundFile(NamedTuple):
    """A file, and the wanted seconds of it in case it is the whole video."""

    path: str  # relative to the root
    start: float | None = None
    end: float | None = None


class FileFinder:
    """Finds the files of a table.

    Args:
        root: The folder of the files; it is listed only if a name is not the path of a file in it.
        prefix: Put before the paths that are returned; without it they are relative to the root.
    """

    def __init__(self, root: Path, prefix: str = ""):
        self.root = root
        self.prefix = prefix
        self.reason = ""  # why the last name was not found

    def find(self, name: str, span: tuple[float, float] | None = None) -> FoundFile | None:
        """The file of a name, or None; `reason` then says why.

        Args:
            span: (start, end) of the row's segment, in seconds, if it has one.
        """
        found = self._find(name, span)
        if found is None or "://" in found.path:
            return found
        return found._replace(path=os.path.join(self.prefix, found.path))

    def _find(self, name: str, span: tuple[float, float] | None = None) -> FoundFile | None:
        self.reason = f"no such file in {self.root}"
        if not name:
            self.reason = "row without a file name"
            return None
        spans = span or (None, None)
        if "://" in name:
            return FoundFile(name, *spans)
        if suffix_of(name) in AUDIO_SUFFIXES or "/" in name:
            for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
                if os.path.isfile(self.root / spelled):
                    return FoundFile(spelled, *spans)
        if span is not None and len(name) == YTID_LENGTH and (found := self._segment(name, span)):
            return found
        path = self._by_stem(name.replace("\\", "/"))
        if path is None and os.path.isfile(self.root / name):
            path = name
        return None if path is None else FoundFile(path, *spans)

    def _by_stem(self, name: str) -> str | None:
        """A file by its path without suffix or, without a folder in the name, by its bare name."""
        if name in self._paths:
            return self._paths[name]
        if "/" in name:
            return None
        places = self._bare_names.get(name, [])
        if len({str(PurePosixPath(place).parent) for place in places}) > 1:
            self.reason = f"several files have this name: {places[0]}, {places[1]}, ..."
            return None
        return places[0] if places else None

    def _segment(self, video: str, span: tuple[float, float]) -> FoundFile | None:
        whole = None
        for path, start in self._videos.get(video, []):
            if start is None:
                whole = whole or FoundFile(path, *span)
            elif is_start(start, span[0]):
                return FoundFile(path)
        return whole

    @cached_property
    def _files(self) -> list[str]:
        return audio_files(self.root).files

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Path without suffix -> path, relative to the root."""
        return {os.path.splitext(path)[0]: path for path in reversed(self._files)}

    @cached_property
    def _bare_names(self) -> dict[str, list[str]]:
        """Name without folder, with and without suffix -> paths."""
        names: dict[str, list[str]] = {}
        for path in self._files:
            bare = path.rpartition("/")[2]
            for name in (bare, os.path.splitext(bare)[0]):
                names.setdefault(name, []).append(path)
        return names

    @cached_property
    def _videos(self) -> dict[str, list[tuple[str, float | None]]]:
        """YTID -> files that may be of this video, with the start in their names."""
        videos: dict[str, list[tuple[str, float | None]]] = {}
        for path in self._files:
            stem = os.path.splitext(path.rpartition("/")[2])[0]
            # A YTID may itself begin with Y: both readings are kept.
            for rest in (stem, stem[1:]) if stem.startswith("Y") else (stem,):
                video, behind = rest[:YTID_LENGTH], rest[YTID_LENGTH:]
                segment = SEGMENT_NAME.fullmatch(behind)
                if segment or not behind:
                    start = float(segment[1]) if segment else None
                    videos.setdefault(video, []).append((path, start))
        return videos


def is_start(number: float, start_seconds: float) -> bool:
    """Whether a number in a file's name is the segment's start, in seconds or milliseconds."""
    if abs(number - start_seconds) < 1:
        return True
    return number >= MILLISECONDS and abs(number / MILLISECONDS - start_seconds) < 1


__all__ = ["FileFinder", "FoundFile"]
