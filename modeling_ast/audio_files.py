"""Which files of a folder are audio, and why the others are left out: one rule for every tool.

The suffix of its name decides whether a file is audio; no file is opened. Each file that is left
out is listed with a reason, so that used and skipped files add up to all files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# File extensions treated as audio that libsndfile decodes, and those that it does not decode.
DECODED_NAMES = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64"
OTHER_AUDIO_NAMES = "m4a aac wma webm"
VIDEO_NAMES = "mp4 m4v mov mkv avi flv wmv mpg mpeg 3gp ogv"
AUDIO_SUFFIXES = frozenset(f".{name}" for name in f"{DECODED_NAMES} {OTHER_AUDIO_NAMES}".split())
CONVERTED_FIRST = frozenset(f".{name}" for name in f"{OTHER_AUDIO_NAMES} {VIDEO_NAMES}".split())

RESOURCE_FILE = "resource file of macOS (its name begins with ._), which has no sound"
HIDDEN = "hidden: its name begins with a dot"
HIDDEN_FOLDER = "hidden folder: its name begins with a dot"
DANGLING = "link to a file that is not there"
LISTED_FOLDER = "folder that is listed already, under another name"
EMPTY_FOLDER = "empty folder"
UNLISTED_FOLDER = "folder that cannot be listed"
NO_FILE = "neither a file nor a folder"
OTHER_SUFFIX = "no audio file, by its suffix"
# How many files a printed line names for each reason.
NAMED_FILES = 3


class Skipped(NamedTuple):
    """A file or folder that is left out."""

    file: str
    reason: str

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder; the files in it are not counted."""
        return self.reason in (HIDDEN_FOLDER, LISTED_FOLDER, EMPTY_FOLDER) or (
            self.reason.startswith(UNLISTED_FOLDER)
        )


class Listing(NamedTuple):
    """What is in a folder; each path is relative to it, with slashes, and the lists are sorted."""

    files: list[str]  # audio by their suffix, see AUDIO_SUFFIXES
    skipped: list[Skipped]  # all other files, and each folder that is empty or was not searched
    errors: list[OSError]  # of folders that could not be listed; these are in `skipped` as well


def audio_files(folder: str | Path) -> Listing:
    """Lists a folder with all in it.

    Links to folders are followed, after all folders that are no links. A folder is listed once,
    even if several links lead to it.
    """
    files: list[str] = []
    skipped: list[Skipped] = []
    errors: list[OSError] = []
    # (path to list, how its entries' names begin)
    waiting: list[tuple[str, str]] = [(os.fspath(folder), "")]
    links: list[tuple[str, str]] = []
    listed: set[tuple[int, int]] = set()  # device and number of each folder
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
            waiting.append(links.pop())
        path, prefix = waiting.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in listed:
                skipped.append(Skipped(prefix.rstrip("/"), LISTED_FOLDER))
                continue
            listed.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                inside = list(entries)
        except OSError as error:
            errors.append(error)
            reason = f"{UNLISTED_FOLDER}: {error.strerror}"
            skipped.append(Skipped(prefix.rstrip("/") or ".", reason))
            continue
        if not inside and prefix:
            skipped.append(Skipped(prefix.rstrip("/"), EMPTY_FOLDER))
        for entry in inside:
            name = prefix + entry.name
            # For a link that leads to itself, os.path.isdir returns False; entry.is_dir raises.
            if os.path.isdir(entry.path) and not entry.name.startswith("."):
                found = links if entry.is_symlink() else waiting
                found.append((entry.path, f"{name}/"))
            elif (left_out := _reason_to_skip(entry)) is not None:
                skipped.append(Skipped(name, left_out))
            else:
                files.append(name)
    return Listing(sorted(files), sorted(skipped), sorted(errors, key=lambda e: str(e.filename)))


def _reason_to_skip(entry: os.DirEntry) -> str | None:
    """Why an entry of a folder is no audio file; None if it is one."""
    if entry.name.startswith("."):
        return HIDDEN_FOLDER if os.path.isdir(entry.path) else skipped_by_name(entry.name)
    if not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
        return NO_FILE if os.path.exists(entry.path) else DANGLING
    return skipped_by_name(entry.name)


def skipped_by_name(name: str) -> str | None:
    """Why a file is not used as audio, by its name alone; None if it is used."""
    if name.startswith("."):
        return RESOURCE_FILE if name.startswith("._") else HIDDEN
    if suffix_of(name) in AUDIO_SUFFIXES:
        return None
    return unusable_by_name(name) or OTHER_SUFFIX


def unusable_by_name(name: str) -> str | None:
    """Why a file that is listed as audio cannot be decoded, by its name alone; else None."""
    if os.path.basename(name).startswith("._"):
        return RESOURCE_FILE
    suffix = suffix_of(name)
    if suffix not in CONVERTED_FIRST:
        return None
    return f"{suffix} is not decoded here; convert it first: ffmpeg -i NAME{suffix} NAME.wav"


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def by_reason(skipped: Iterable[Skipped]) -> list[str]:
    """A line for each reason: how many files are skipped for it, and the names of a few."""
    named: dict[str, list[str]] = {}
    for file, reason in skipped:
        named.setdefault(reason, []).append(file)
    lines = []
    for reason, count in Counter(
        {reason: len(files) for reason, files in named.items()}
    ).most_common():
        some = ", ".join(named[reason][:NAMED_FILES]) + (", ..." if count > NAMED_FILES else "")
        lines.append(f"{count} skipped: {reason} ({some})")
    return lines


__all__ = [
    "AUDIO_SUFFIXES",
    "DECODED_NAMES",
    "HIDDEN_FOLDER",
    "Listing",
    "Skipped",
    "audio_files",
    "by_reason",
    "skipped_by_name",
    "suffix_of",
    "unusable_by_name",
]
