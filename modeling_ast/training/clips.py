"""A row of a data set -> a waveform, or an entry in the list of the clips that cannot be decoded.

Rows come from any `datasets` source with undecoded audio. `datasets` itself would decode it with
torchcodec and ffmpeg; here soundfile decodes it, in the worker that collates.

Bad clips: the workers of a DataLoader are separate processes, so they share their findings through
a file, `bad_clips.txt`. Each worker appends a line for each bad clip that it finds, and counts the
lines of all workers. The share of bad clips is thus that of the whole run, survives a resume, and
counts a clip only once, even if it is drawn again. In training the collator replaces a bad clip by
another clip of the same batch, because several processes and compiled models need batches of one
size. An evaluation must not count any clip twice, so `drop_bad_clips` removes bad clips before it.
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

# For a data set with one folder per label:
# load_dataset("audiofolder", data_dir=..., features=FOLDER_FEATURES). Without these features
# datasets 5 needs torchcodec even to list the files.
FOLDER_FEATURES = Features({"audio": Value("string"), "label": Value("string")})
# Number of bad clips that an error names; the file lists all of them.
NAMED_IN_ERROR = 10
# Tolerance when the length of a file is compared with the end or the length of a segment: seconds,
# but at most this share of the segment.
SLACK_SECONDS, SLACK_SHARE = 0.5, 0.1


class TooManyBadClips(ValueError):
    """More clips than the allowed share cannot be decoded."""


def undecoded(
    dataset: Dataset | IterableDataset, audio_column: str = "audio"
) -> Dataset | IterableDataset:
    """The data set with its audio as stored, {"bytes", "path"}, which needs no torchcodec.

    Args:
        audio_column: Column of type `Audio` that will be read; a column of paths (strings) is not
            changed. Other columns of audio are not decoded either.
    Raises:
        ValueError: There is no such column, or it holds numbers.
    """
    features = dataset.features
    # A stream may not know its columns before its first row.
    if features is None:
        return dataset
    if audio_column not in features:
        raise ValueError(
            f"the data set has no column {audio_column!r}; give the column of audio or of paths, "
            f"one of {sorted(features)}"
        )
    kind = features[audio_column]
    if isinstance(kind, Value) and kind.dtype.startswith(("int", "uint", "float", "bool")):
        raise ValueError(
            f"the column {audio_column!r} holds {kind.dtype}; give the column of audio or of "
            f"paths, one of {sorted(features)}"
        )
    return workers.undecoded(dataset)


def column_of(row: Mapping[str, Any], column: str) -> Any:
    """A row's value in a column; a missing column is a KeyError that lists the present ones."""
    if column not in row:
        raise KeyError(
            f"a row has the columns {sorted(row)} but not {column!r}; give one of its columns, "
            f"and train with TrainingArguments(remove_unused_columns=False)"
        )
    return row[column]


class ClipReader:
    """Row -> waveform: finds the clip of a row and reads it as `audio.read_clip` does.

    Args:
        sampling_rate: Wanted rate, in Hz.
        audio_column: Column of clips: each in any form that `audio.read_clip` takes, or a URL, or a
            path with the wanted seconds, {"path", "start", "end"}, see `Segment`.
        id_column: Column with the names of clips for the list of bad clips; by default a clip is
            named by its path, or by a hash of its content if it has no path.
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
        """The reader of clips for this extractor; `where` holds further arguments of the class."""
        return cls(extractor.sampling_rate, min_samples=extractor.window_samples, **where)

    def __call__(self, row: Mapping[str, Any]) -> Tensor:
        """Reads one clip.

        Returns:
            (S,), float32, mono, finite, at least `min_samples` long, in memory of its own.
        Raises:
            OSError, ValueError, TypeError: This clip cannot be used; other clips may be good.
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
        """The name of the clip in errors and in the list of bad clips."""
        if self.id_column is not None:
            return str(column_of(row, self.id_column))
        audio = column_of(row, self.audio_column)
        if isinstance(audio, str | Path):
            return str(audio)
        if isinstance(audio, Mapping):
            if audio.get("path"):
                return name_of(audio["path"], audio.get("start"), audio.get("end"))
            audio = audio.get("bytes") or audio.get("array")
        if not isinstance(audio, bytes):
            audio = np.asarray(audio)
            # Objects, such as torchcodec's decoders, have no bytes; their repr is hashed instead.
            audio = repr(audio).encode() if audio.dtype == object else audio.tobytes()
        return "content " + hashlib.blake2b(audio, digest_size=8).hexdigest()

    def _located(self, path: str | Path) -> str | Path | RemoteFile:
        """A path on this machine, or the remote file of a URL."""
        if "://" in str(path):
            return RemoteFile(str(path))
        return path if self.root is None else self.root / path


def name_of(path: str | Path, start: float | None = None, end: float | None = None) -> str:
    """The name of a file, or of a segment of it (in seconds)."""
    return str(path) if end is None else f"{path} ({start:g} to {end:g} s)"


@dataclass(frozen=True)
class RemoteFile:
    """A file that a stream points to; it is fetched when it is read."""

    url: str

    def read(self) -> bytes:
        """Its content."""
        # xopen handles chained URLs (zip://clip.wav::https://...) and the token of the Hub.
        from datasets.utils.file_utils import xopen

        with xopen(self.url, "rb") as file:
            return file.read()


@dataclass(frozen=True)
class Segment:
    """Some seconds of a recording; the file may hold the whole recording or only these seconds.

    The file is taken as the whole recording if it reaches the segment's end, or is longer than the
    segment, both with a tolerance, as cutting programs do not cut exactly. Otherwise it holds only
    the segment, and all of it is used.
    """

    path: str | Path
    start: float  # in seconds
    end: float

    def clip(self) -> str | Path | Segment:
        """The path if the whole file is wanted, else this segment, which `read` cuts out."""
        return self if self._is_part() else self.path

    def _is_part(self) -> bool:
        import soundfile

        try:
            seconds = soundfile.info(os.fsencode(self.path)).duration
        except (OSError, soundfile.SoundFileError, TypeError):
            return False  # reading the file will raise an error with the reason
        length = self.end - self.start
        slack = min(SLACK_SECONDS, SLACK_SHARE * length)
        is_longer = seconds > length + slack
        return is_longer or (self.start > slack and seconds > self.end - slack)

    def read(self) -> bytes:
        """The segment as the content of a WAV file; it ends with the file.

        Raises:
            ValueError: It begins behind the end of the file.
        """
        import soundfile

        with soundfile.SoundFile(os.fsencode(self.path)) as file:
            seconds = file.frames / file.samplerate
            if self.start >= seconds:
                raise ValueError(
                    f"the segment from {self.start:g} to {self.end:g} s is behind the end of the "
                    f"file, which has {seconds:.2f} s; correct the row, or drop it"
                )
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
        file: Written when the first bad clip is found; clips that it lists already count, too. A
            run that does not resume an earlier one begins with `of_new_run`.
        num_clips: Number of clips of the data set.
        max_share: Share of `num_clips` that may be bad; more bad clips stop the run.
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

    @classmethod
    def of_new_run(cls, file: str | Path, num_clips: int, max_share: float = 0.01) -> BadClips:
        """An empty list; the file of an earlier run is removed.

        The clips that the earlier run listed may be repaired, or belong to another data set. Only
        one process of a run may call this; the others, and a resumed run, read the same file.
        """
        bad = cls(file, num_clips, max_share)
        if bad.file.is_file():
            # A link stays, and leads to the new file.
            bad.file.resolve().unlink()
        return bad

    def add(self, name: str, reason: object) -> None:
        """Lists a clip, if it is not listed yet.

        Raises:
            TooManyBadClips: With this clip, more than the allowed share is bad.
        """
        name, text = one_line(name), one_line(reason)
        # The line begins with the name, so the reason need not repeat it.
        for start in (f"{name!r} ", f"{name} "):
            text = text.removeprefix(start)
        if name not in self:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # One short write in append mode, so that lines of two processes do not mix.
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
        # The next call reads a line that another process has not finished yet.
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
            f"{self.max_share:.2%} may be bad (max_share, --max-bad-share); repair or remove the "
            f"clips listed in {self.file}: {'; '.join(named)}"
        )


def read_or_list(row: Mapping[str, Any], reader: ClipReader, bad: BadClips | None) -> Tensor | None:
    """The waveform (S,) of a row, or None after listing it as bad.

    Raises:
        ValueError: The clip is bad and there is no list of bad clips.
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
    """Decodes every clip once and leaves out bad ones; meant for evaluation sets.

    Args:
        num_proc: Number of processes; a stream is decoded while it is read, in the process that
            reads it.
        decode: If false, nothing is decoded and the clips on the list are left out. This is for the
            processes of a machine that wait until its first process has decoded all clips.
    Raises:
        TooManyBadClips: More than the allowed share is bad.
    """
    dataset = undecoded(dataset, reader.audio_column)
    is_good = partial(_is_good if decode else _is_unlisted, reader=reader, bad=bad_clips)
    if isinstance(dataset, IterableDataset):
        return dataset.filter(is_good)
    # A result from the cache would not fill the list of bad clips.
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
    "name_of",
    "read_or_list",
    "undecoded",
]
