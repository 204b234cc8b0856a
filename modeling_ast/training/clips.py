"""A row of a data set -> a waveform, or an entry in the list of the clips that cannot be decoded.

Rows come from any `datasets` source with undecoded audio: `datasets` itself decodes with torchcodec
and ffmpeg; here soundfile does, in the worker that collates.

What happens to a bad clip. The workers of a DataLoader are processes of their own, so they share
what they find through a file, `bad_clips.txt`: each appends a line, and each counts the lines of
all, so that the share is that of the whole run, survives a resume, and counts a clip once however
often it is drawn. In training the collator puts another clip of the same batch in its place: the
batch keeps its size, which several processes and compiled models need. In an evaluation nothing may
be counted twice; `drop_bad_clips` takes them out before.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Value
from torch import Tensor

from .. import workers
from ..audio import decode_clip, open_clip
from ..configuration_ast import ASTConfig
from ..errors import one_line
from ..feature_extraction_ast import ASTFeatureExtractor

# Of one folder per label. load_dataset("audiofolder", data_dir=..., features=FOLDER_FEATURES) needs
# them: without them datasets 5 wants torchcodec even to list the files.
FOLDER_FEATURES = Features({"audio": Value("string"), "label": Value("string")})
# An error names so many bad clips; the file has them all.
NAMED_IN_ERROR = 10
# How much shorter than said a file may be, or longer than the segment that it holds.
SLACK_SECONDS = 0.5


class TooManyBadClips(ValueError):
    """More clips than the allowed share cannot be decoded."""


def undecoded(
    dataset: Dataset | IterableDataset, audio_column: str = "audio"
) -> Dataset | IterableDataset:
    """The data set with its audio as stored, {"bytes", "path"}, which needs no torchcodec.

    Args:
        audio_column: Column of type `Audio` that will be read; one of paths (strings) is left as it
            is. Other columns of audio are not decoded either.
    Raises:
        ValueError: There is no such column, or it holds numbers.
    """
    features = dataset.features
    # A stream may not know its columns before its first row.
    if features is None:
        return dataset
    if audio_column not in features:
        raise ValueError(
            f"the data set has no column {audio_column!r}; name the column of audio or of paths, "
            f"one of {sorted(features)}"
        )
    kind = features[audio_column]
    if isinstance(kind, Value) and kind.dtype.startswith(("int", "uint", "float", "bool")):
        raise ValueError(
            f"the column {audio_column!r} holds {kind.dtype}; name the column of audio or of "
            f"paths, one of {sorted(features)}"
        )
    return workers.undecoded(dataset)


def column_of(row: Mapping[str, Any], column: str) -> Any:
    """A row's value in a column; a KeyError says which columns there are instead."""
    if column not in row:
        raise KeyError(
            f"a row has the columns {sorted(row)} but not {column!r}; name the column you mean, "
            f"and train with TrainingArguments(remove_unused_columns=False)"
        )
    return row[column]


class ClipReader:
    """Row -> waveform: finds the clip of a row and reads it as `audio.read_clip` does.

    Args:
        sampling_rate: Wanted rate, in Hz.
        audio_column: Holds a clip in any form that `audio.read_clip` takes, or a URL; or a path
            with the seconds that are meant, {"path", "start", "end"}, see `Segment`.
        id_column: Names a clip in the list of bad ones; by default its path, else its content's
            hash does.
        root: Folder that relative paths start from; the working directory by default.
        min_samples: As in `audio.read_clip`.
    """

    def __init__(
        self,
        sampling_rate: int = ASTConfig.sampling_rate,
        audio_column: str = "audio",
        id_column: str | None = None,
        root: str | Path | None = None,
        min_samples: int | None = None,
    ):
        self.sampling_rate = sampling_rate
        self.audio_column = audio_column
        self.id_column = id_column
        self.root = None if root is None else Path(root)
        self.min_samples = min_samples

    @classmethod
    def for_extractor(cls, extractor: ASTFeatureExtractor, **where: Any) -> ClipReader:
        """The reader of clips for this extractor; `where` are further arguments."""
        return cls(extractor.sampling_rate, min_samples=extractor.window_samples, **where)

    def __call__(self, row: Mapping[str, Any]) -> Tensor:
        """Reads one clip.

        Returns:
            (S,), float32, mono, finite, at least `min_samples` long, in memory of its own.
        Raises:
            OSError, ValueError, TypeError: This clip cannot be used; the data set may hold others
                that can.
            KeyError: There is no such column.
        """
        source = open_clip(self.clip(row))
        return decode_clip(source, self.sampling_rate, self.min_samples, copy=True)

    def clip(self, row: Mapping[str, Any]) -> Any:
        """The clip of a row, not read yet, in a form that `audio.read_clip` takes.

        Raises:
            KeyError: There is no such column.
        """
        audio = column_of(row, self.audio_column)
        if isinstance(audio, str | Path):
            return self._located(audio)
        stored = isinstance(audio, Mapping) and "path" in audio
        if stored and audio.get("bytes") is None and audio.get("array") is None and audio["path"]:
            located = self._located(audio["path"])
            if audio.get("end") is None or isinstance(located, RemoteFile):
                return located
            return Segment(located, audio["start"], audio["end"]).clip()
        return audio

    def name(self, row: Mapping[str, Any]) -> str:
        """What the clip is called in errors and in the list of bad clips."""
        if self.id_column is not None:
            return str(column_of(row, self.id_column))
        audio = column_of(row, self.audio_column)
        if isinstance(audio, str | Path):
            return str(audio)
        if isinstance(audio, Mapping):
            if audio.get("path"):
                return str(audio["path"])
            audio = audio.get("bytes") or audio.get("array")
        if not isinstance(audio, bytes):
            audio = np.asarray(audio)
            # Objects, such as torchcodec's decoders, by what they print of themselves.
            audio = repr(audio).encode() if audio.dtype == object else audio.tobytes()
        return "content " + hashlib.blake2b(audio, digest_size=8).hexdigest()

    def _located(self, path: str | Path) -> str | Path | RemoteFile:
        """A path of this machine, or the file that a URL points to."""
        if "://" in str(path):
            return RemoteFile(str(path))
        return path if self.root is None else self.root / path


@dataclass(frozen=True)
class RemoteFile:
    """A file that a stream points to; it is fetched when it is read."""

    url: str

    def read(self) -> bytes:
        """Its content."""
        # Chained URLs (zip://clip.wav::https://...) and the Hub's token are datasets' matter.
        from datasets.utils.file_utils import xopen

        with xopen(self.url, "rb") as file:
            return file.read()


@dataclass(frozen=True)
class Segment:
    """Some seconds of a file, which may be the whole recording or those seconds already.

    It is the whole recording if it lasts to the segment's end and is longer than the segment, by
    more than the half second that containers and cutting programs round by.
    """

    path: str | Path
    start: float  # in seconds
    end: float

    def clip(self) -> str | Path | Segment:
        """The path if all of the file is meant, else this segment, which `read` reads."""
        return self if self._is_part() else self.path

    def _is_part(self) -> bool:
        import soundfile

        try:
            seconds = soundfile.info(os.fsencode(self.path)).duration
        except (OSError, soundfile.SoundFileError, TypeError):
            return False  # its reason is found where it is read
        is_longer = seconds > self.end - self.start + SLACK_SECONDS
        return is_longer and seconds > self.end - SLACK_SECONDS

    def read(self) -> bytes:
        """The segment as the content of a WAV file."""
        import soundfile

        with soundfile.SoundFile(os.fsencode(self.path)) as file:
            file.seek(int(self.start * file.samplerate))
            samples = file.read(round((self.end - self.start) * file.samplerate), dtype="float32")
            rate = file.samplerate
        content = io.BytesIO()
        soundfile.write(content, samples, rate, format="WAV", subtype="FLOAT")
        return content.getvalue()


class BadClips:
    """The list of clips that cannot be decoded, in a file that all workers share.

    One line for each clip: its name, a tab, the reason. Several machines that have no file system
    in common each keep their own list.

    Args:
        file: Written when the first bad clip is found; what it holds already counts.
        num_clips: Clips of the data set.
        max_share: Of `num_clips`; more bad clips than that stop the run.
    """

    def __init__(self, file: str | Path, num_clips: int, max_share: float = 0.01):
        if num_clips < 1:
            raise ValueError(f"num_clips is {num_clips}; give the number of clips of the data set")
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is {max_share}; give a share from 0 to 1, e.g. 0.01")
        self.file = Path(file)
        self.num_clips = num_clips
        self.max_share = max_share
        self._known: dict[str, str] = {}
        self._read_bytes = 0

    def add(self, name: str, reason: object) -> None:
        """Lists a clip, if it is not listed yet.

        Raises:
            TooManyBadClips: With it, more than the allowed share is bad.
        """
        name, text = one_line(name), one_line(reason)
        # The name stands before the reason already.
        for start in (f"{name!r} ", f"{name} "):
            text = text.removeprefix(start)
        if name not in self:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # One short write to a file opened for appending: lines of two processes do not mix.
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{name}\t{text}\n")
        self.check()

    def __contains__(self, name: str) -> bool:
        return one_line(name) in self.read()

    def read(self) -> dict[str, str]:
        """Name -> reason of every clip listed so far, by any process."""
        if not self.file.exists():
            return self._known
        with self.file.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        # A line that another process is just writing waits for the next call.
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.decode("utf-8").splitlines():
            name, _, reason = line.partition("\t")
            self._known.setdefault(name, reason)
        return self._known

    def check(self) -> None:
        """Raises `TooManyBadClips` if more than the allowed share is listed."""
        bad = self.read()
        if len(bad) <= self.max_share * self.num_clips:
            return
        named = [f"{name}: {reason}" for name, reason in list(bad.items())[:NAMED_IN_ERROR]]
        if len(bad) > NAMED_IN_ERROR:
            named.append(f"and {len(bad) - NAMED_IN_ERROR} more")
        raise TooManyBadClips(
            f"{len(bad)} of {self.num_clips} clips cannot be decoded, but at most "
            f"{self.max_share:.2%} may be bad (max_share, --max-bad-share); mend or remove the "
            f"clips listed in {self.file}: {'; '.join(named)}"
        )


def read_or_list(row: Mapping[str, Any], reader: ClipReader, bad: BadClips | None) -> Tensor | None:
    """The waveform (S,) of a row, or None after listing it as bad.

    Raises:
        ValueError: The clip is bad and there is no list to put it on.
        TooManyBadClips: See `BadClips.add`.
    """
    try:
        return reader(row)
    except (OSError, ValueError, TypeError) as error:
        if bad is None:
            raise ValueError(
                f"clip {reader.name(row)} cannot be used: {error}; pass "
                f"bad_clips=BadClips(...) to go on without such clips"
            ) from error
        reason = error
    bad.add(reader.name(row), reason)
    return None


def drop_bad_clips(
    dataset: Dataset | IterableDataset,
    reader: ClipReader,
    bad_clips: BadClips,
    num_proc: int | None = None,
    decode: bool = True,
) -> Dataset | IterableDataset:
    """Decodes every clip once and leaves out those that cannot be; do it with evaluation sets.

    Args:
        num_proc: Processes; the clips of a stream are decoded as it is read, in the process that
            reads it.
        decode: If false, those are left out that are on the list already: for all processes of a
            machine but the first, once that has decoded.
    Raises:
        TooManyBadClips: More than the allowed share is bad.
    """
    dataset = undecoded(dataset, reader.audio_column)
    is_good = partial(_is_good if decode else _is_unlisted, reader=reader, bad=bad_clips)
    if isinstance(dataset, IterableDataset):
        return dataset.filter(is_good)
    # From the cache it would come without the list.
    return dataset.filter(
        is_good, num_proc=num_proc, load_from_cache_file=False, desc="Looking for bad clips"
    )


def _is_good(row: Mapping[str, Any], reader: ClipReader, bad: BadClips) -> bool:
    return read_or_list(row, reader, bad) is not None


def _is_unlisted(row: Mapping[str, Any], reader: ClipReader, bad: BadClips) -> bool:
    return reader.name(row) not in bad


__all__ = [
    "FOLDER_FEATURES",
    "BadClips",
    "ClipReader",
    "Segment",
    "TooManyBadClips",
    "column_of",
    "drop_bad_clips",
    "read_or_list",
    "undecoded",
]
