"""Events and scores in files that other programs read; reading them back gives exactly the same.

CSV: file, onset, offset, label, score. Audacity: a label track (File > Import > Labels) whose texts
are "label score"; a track does not name its recording, so that each file has the events of one.
Raven: a selection table of any number of recordings, which Raven opens as one sequence. JSON also
has lengths, bad stretches and errors. Parquet has the columns of the CSV. Scores of steps: a table
with tabs and a column for each label, as sed_scores_eval reads it.

Onsets and offsets are seconds from the beginning of their recording.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np

from .errors import need_extra
from .events import Detection, Event, ScoreBlock
from .labels import escaped_unicode, valid_unicode
from .recordings import BadStretch
from .strict_json import to_json

FORMATS = ("csv", "audacity", "raven", "json", "parquet")
# Raven names its tables like this; the first suffix here that fits a name counts.
SUFFIXES = {
    ".selections.txt": "raven",
    ".csv": "csv",
    ".txt": "audacity",
    ".json": "json",
    ".parquet": "parquet",
}
COLUMNS = ("file", *Event._fields)
RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin File",
    "File Offset (s)",
    "Label",
    "Score",
)
# Raven needs a range of frequencies; an event has the whole range that the model gets.
LOWEST_HZ = 0.0
TIME_DIGITS = 6  # those of an event
ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


class TextOptions(TypedDict):
    """How a text file is opened."""

    encoding: str
    errors: str


# Names of files need not be valid Unicode; bytes that are not are written unchanged.
ENCODING, ODD_BYTES = "utf-8", "surrogateescape"


def format_of(path: str | Path) -> str:
    """The format that belongs to a file's suffix.

    Raises:
        ValueError: Its suffix is none of `SUFFIXES`.
    """
    name = Path(path).name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise ValueError(
        f"the name {os.fspath(path)!r} does not say the format; let it end in one of "
        f"{', '.join(SUFFIXES)}, or name the format ({', '.join(FORMATS)})"
    )


def write_events(
    detections: Iterable[Detection],
    path: str | Path,
    format: str | None = None,
    highest_hz: float = 8000.0,
) -> None:
    """Writes the events of recordings; the file appears when it is whole.

    Args:
        path: Of the file; an existing one is replaced.
        format: One of `FORMATS`; by default that of the file's suffix.
        highest_hz: For Raven: the highest frequency that the model gets, half its rate.
    Raises:
        ValueError: Unknown format, or several recordings for Audacity.
        MissingExtra: Parquet needs pyarrow.
    """
    path, kind = Path(path), _checked(format, path)
    if kind == "parquet":
        return _write_parquet(detections, path)
    with _whole_file(path) as file:
        if kind == "csv":
            write_csv(detections, file)
        elif kind == "audacity":
            _write_audacity(detections, file)
        elif kind == "raven":
            _write_raven(detections, file, highest_hz)
        else:
            rows = [as_row(detection) for detection in detections]
            file.write(to_json({"recordings": rows}) + "\n")


def read_events(path: str | Path, format: str | None = None) -> dict[str, list[Event]]:
    """The events of each recording, as `write_events` has written them.

    Returns:
        The events by the recording's name, in the order of the file. Audacity's labels do not have
        such a name; theirs is that of the label file without its suffix. Only JSON also has
        recordings without events.
    Raises:
        ValueError: Unknown format, or a file of another kind.
    """
    path, kind = Path(path), _checked(format, Path(path))
    readers = {
        "csv": _read_csv,
        "audacity": _read_audacity,
        "raven": _read_raven,
        "json": _read_json,
        "parquet": _read_parquet,
    }
    try:
        return readers[kind](path)
    except (KeyError, IndexError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} does not hold events as {kind} ({error!r})") from error


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name when all of it is written."""
    partial = path.with_name(path.name + ".partial")
    try:
        # newline: csv and tables write their own line ends.
        with partial.open("w", newline="", encoding=ENCODING, errors=ODD_BYTES) as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def as_row(detection: Detection) -> dict[str, Any]:
    """A recording as a row of JSON."""
    row = asdict(detection)
    row["file"] = row.pop("name")
    row["events"] = [event._asdict() for event in detection.events]
    row["bad_stretches"] = [stretch._asdict() for stretch in detection.bad_stretches]
    return {name: row[name] for name in ("file", "seconds", "events", "bad_stretches", "error")}


def from_row(row: Mapping[str, Any]) -> Detection:
    """The recording in a row of `as_row`."""
    return Detection(
        row["file"],
        row["seconds"],
        [Event(**event) for event in row["events"]],
        [BadStretch(**stretch) for stretch in row["bad_stretches"]],
        row["error"],
    )


def _checked(format: str | None, path: Path) -> str:
    if format is None:
        return format_of(path)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    return format


def write_csv(detections: Iterable[Detection], file: IO[str]) -> None:
    """Writes the CSV of `write_events` to an open file."""
    plain = csv.writer(file, lineterminator="\n")
    # Before Python 3.13 the module does not quote a lone carriage return by itself.
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(COLUMNS)
    for detection in detections:
        for event in _valid_events(detection):
            table = quoted if "\r" in detection.name + event.label else plain
            table.writerow((detection.name, *event))


def _valid_events(detection: Detection) -> list[Event]:
    """The events with labels in valid Unicode, which every format but JSON needs."""
    return [event._replace(label=escaped_unicode(event.label)) for event in detection.events]


def _read_csv(path: Path) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    with path.open(newline="", encoding=ENCODING, errors=ODD_BYTES) as file:
        for row in csv.DictReader(file):
            found.setdefault(row["file"], []).append(_event(row))
    return found


def _event(row: Mapping[str, Any]) -> Event:
    onset, offset, score = (float(row[name]) for name in ("onset", "offset", "score"))
    return Event(onset, offset, row["label"], score)


def _write_audacity(detections: Iterable[Detection], file: IO[str]) -> None:
    for number, detection in enumerate(detections):
        if number > 0:
            raise ValueError(
                "Audacity's labels do not say which recording they belong to; write a file for "
                "each recording"
            )
        for onset, offset, label, score in _valid_events(detection):
            file.write(f"{onset}\t{offset}\t{_escaped(label)} {score:.6f}\n")


def _read_audacity(path: Path) -> dict[str, list[Event]]:
    events = []
    for line in _lines(path):
        # A line that begins with a backslash has the frequencies of the label before it.
        if not line.startswith("\\"):
            onset, offset, text = line.split("\t", 2)
            label, _, score = text.rpartition(" ")
            events.append(Event(float(onset), float(offset), _unescaped(label), float(score)))
    return {path.stem: events}


def _write_raven(detections: Iterable[Detection], file: IO[str], highest_hz: float) -> None:
    file.write("\t".join(RAVEN_COLUMNS) + "\n")
    number, begin = 0, 0.0
    for detection in detections:
        for onset, offset, label, score in _valid_events(detection):
            number += 1
            # Raven counts times from the beginning of the first recording of a sequence.
            times = [round(begin + time, TIME_DIGITS) for time in (onset, offset)]
            row = (number, "Spectrogram 1", 1, *times, LOWEST_HZ, highest_hz)
            row = (*row, _escaped(detection.name), onset, _escaped(label), score)
            file.write("\t".join(map(str, row)) + "\n")
        begin += detection.seconds or 0.0


def _read_raven(path: Path) -> dict[str, list[Event]]:
    header, *lines = _lines(path)
    found: dict[str, list[Event]] = {}
    for line in lines:
        row = dict(zip(header.split("\t"), line.split("\t")))
        begin, end, onset = (
            float(row[name]) for name in ("Begin Time (s)", "End Time (s)", "File Offset (s)")
        )
        offset = round(onset + end - begin, TIME_DIGITS)
        event = Event(onset, offset, _unescaped(row["Label"]), float(row["Score"]))
        found.setdefault(_unescaped(row["Begin File"]), []).append(event)
    return found


def _read_json(path: Path) -> dict[str, list[Event]]:
    rows = json.loads(path.read_text(encoding=ENCODING, errors=ODD_BYTES))["recordings"]
    return {row["file"]: from_row(row).events for row in rows}


def _write_parquet(detections: Iterable[Detection], path: Path) -> None:
    need_extra("pyarrow", "train", "writing .parquet")
    import pyarrow as pa
    from pyarrow import parquet

    kinds = (pa.string(), pa.float64(), pa.float64(), pa.string(), pa.float64())
    schema = pa.schema(list(zip(COLUMNS, kinds)))
    partial = path.with_name(path.name + ".partial")
    try:
        with parquet.ParquetWriter(partial, schema) as writer:
            for detection in detections:
                # Parquet needs valid Unicode.
                name = valid_unicode(detection.name)
                events = _valid_events(detection)
                rows = [dict(zip(COLUMNS, (name, *event))) for event in events]
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_parquet(path: Path) -> dict[str, list[Event]]:
    need_extra("pyarrow", "train", "reading .parquet")
    from pyarrow import parquet

    found: dict[str, list[Event]] = {}
    for row in parquet.read_table(path).to_pylist():
        found.setdefault(row["file"], []).append(_event(row))
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a table. `str.splitlines` is not used: it also cuts at rare separators."""
    return [
        line for line in path.read_text(encoding=ENCODING, errors=ODD_BYTES).split("\n") if line
    ]


def _escaped(text: str) -> str:
    """A text without tabs and line ends, for a table with tabs."""
    return "".join(ESCAPES.get(character, character) for character in text)


def _unescaped(text: str) -> str:
    originals = {escape[1]: character for character, escape in ESCAPES.items()}
    parts = iter(text)
    return "".join(originals[next(parts)] if part == "\\" else part for part in parts)


class ScoreWriter:
    """The scores of the steps of one recording, written as they come.

    Args:
        path: Of the table; an existing one is replaced.
        labels: In the order of the scores.
        hop: Seconds of a step.
    """

    def __init__(self, path: str | Path, labels: Sequence[str], hop: float):
        self.hop = hop
        path = Path(path)
        self.file = path.open("w", newline="", encoding=ENCODING, errors=ODD_BYTES)
        names = [_escaped(escaped_unicode(label)) for label in labels]
        self.file.write("\t".join(["onset", "offset", *names]) + "\n")

    def add(self, block: ScoreBlock) -> None:
        """Writes the next steps."""
        for number, row in enumerate(block.scores, block.first):
            times = (round(step * self.hop, TIME_DIGITS) for step in (number, number + 1))
            self.file.write("\t".join(map(str, (*times, *row.tolist()))) + "\n")

    def close(self) -> None:
        """Ends the table."""
        self.file.close()


def read_scores(path: str | Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reads a table of `ScoreWriter`.

    Returns:
        The labels; (K + 1,), when each step begins and the last one ends, in seconds; (K, C), the
        scores, float32.
    """
    header, *lines = _lines(Path(path))
    labels = [_unescaped(label) for label in header.split("\t")[2:]]
    rows = np.array([line.split("\t") for line in lines], np.float64).reshape(-1, 2 + len(labels))
    times = np.append(rows[:, 0], rows[-1:, 1])
    return labels, times, rows[:, 2:].astype(np.float32)


__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ScoreWriter",
    "as_row",
    "format_of",
    "from_row",
    "read_events",
    "read_scores",
    "write_csv",
    "write_events",
]
