"""A table of files and labels -> clips with labels: CSV, TSV, JSON, JSON lines.

Tables of released data sets can be read unchanged: ESC-50's esc50.csv, FSD50K's dev.csv (names
without a suffix, several labels in a cell, a column `split`), UrbanSound8K's, AudioSet's
`*_segments.csv`, and the JSON files of the AST's authors. The columns are found by their names.
Rows without an existing file are counted.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from ..audio_files import Skipped, unusable_by_name
from ..errors import one_line
from ..text_tables import read_text, read_text_table
from .classes import labels_in
from .data_arguments import AUDIO_COLUMNS, LABEL_COLUMNS, DataArguments
from .data_report import LocalData, Missing
from .table_cells import DECIMAL, is_decimal, is_list, kind_of, separated_cells, typed
from .table_files import FileFinder, FoundFile

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
# AudioSet's tables without their comment lines have no header.
SEGMENT_COLUMNS = ["YTID", "start_seconds", "end_seconds", "positive_labels"]
# Value in a column `split` -> the name of the split.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SPLIT_COLUMN = "split"
# The JSON escape of half of a character; two halves in a row are a valid character.
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
SEGMENT = Features({"path": Value("string"), "start": Value("float64"), "end": Value("float64")})


def read_table(
    path: Path, root: Path, arguments: DataArguments, known_labels: set[str]
) -> LocalData:
    """The clips of a table.

    Args:
        path: Path of the table.
        root: The folder of its files.
        arguments: They name the columns; rows without a split are in `train_split`.
        known_labels: Names and MIDs of the class list, if there is one; a cell that is one of
            them is one label, even if it contains a separator.
    Returns:
        Rows with the table's columns. The audio column has paths that are relative to
        `arguments.root`, or segments {"path", "start", "end"}, see `ClipReader`. If the audio or
        the label column was not given but found, it gets the name that other sources use.
    Raises:
        OSError, ValueError: The table cannot be read, a column is missing, or no file exists.
    """
    columns = read_columns(path)
    audio = audio_column(columns, arguments.audio_column, path)
    columns = {
        name: cells if name == audio and not is_decimal(cells) else typed(cells)
        for name, cells in columns.items()
    }
    columns = renamed(columns, audio, arguments.audio_column)
    audio = arguments.audio_column
    labels = arguments.label_column if arguments.label_column in columns else None
    # A given column that does not exist is refused later, as for all other sources.
    if arguments.label_column is None and (found := usual_column(columns, LABEL_COLUMNS)):
        labels = found.lower()
        columns = renamed(columns, found, labels)
    warnings: list[str] = []
    if labels is not None and not arguments.label_separator:
        columns[labels] = separated_cells(columns[labels], labels, known_labels, warnings)
    if audio not in columns or not all(
        cell is None or isinstance(cell, str | int) for cell in columns[audio]
    ):
        # A missing or unusable audio column is refused later, too.
        kinds = {name: kind_of(name, cells, path) for name, cells in columns.items()}
        rows = rows_of(columns, range(len(columns[next(iter(columns))])), Features(kinds))
        return LocalData({arguments.train_split: rows}, [], [], warnings)
    return located(path, root, columns, audio, labels, arguments, warnings)


def renamed(columns: dict[str, list], old: str, new: str) -> dict[str, list]:
    """The columns, one of them under another name, in the same order."""
    return {new if name == old else name: cells for name, cells in columns.items()}


def located(
    path: Path,
    root: Path,
    columns: dict[str, list],
    audio: str,
    labels: str | None,
    arguments: DataArguments,
    warnings: list[str],
) -> LocalData:
    """The rows with existing files, by their split; the others are counted."""
    finder = FileFinder(root, prefix="" if root == arguments.root else os.path.abspath(root))
    files = ["" if cell is None else str(cell) for cell in columns[audio]]
    spans = spans_of(columns, path)
    skipped, missing = [], []
    # Index of each row that is used -> its clip, the same for all spellings of a file's name.
    kept: dict[int, FoundFile] = {}
    names_of = (
        [list(map(str, labels_in(cell))) for cell in columns[labels]]
        if labels
        else [[]] * len(files)
    )
    cells = columns[audio] = []
    for index, file in enumerate(files):
        found = finder.find(file, spans[index] if spans else None)
        reason = finder.reason if found is None else unusable_by_name(found.path)
        if reason is None and labels and not names_of[index] and not is_list(columns[labels]):
            reason = "row without a label"
        if reason is None and spans and not 0 <= spans[index][0] < spans[index][1] < math.inf:
            start, end = spans[index]
            reason = f"row with a segment from {start:g} to {end:g} s, which is none"
        if reason is None and found is not None:
            kept[index] = resolved(found, root)
        else:
            assert reason is not None  # a name that is not found has one
            skipped.append(Skipped(file, reason))
            if found is None:
                missing.append(Missing(file, names_of[index]))
        cells.append(None if found is None else found._asdict() if spans else found.path)
    if not kept:
        first = f" ({skipped[0].file!r}: {skipped[0].reason})" if skipped else ""
        remedy = (
            "give the folder of the files as --audio-root"
            if arguments.audio_root is None
            else "compare the names in the table with those in this folder"
        )
        raise ValueError(
            f"{path} has {len(files)} rows but no clip that can be used{first}; {remedy}"
        )
    warnings += repeated(files, names_of, kept)
    kinds = {audio: dict(SEGMENT) if spans else Value("string")}
    kinds |= {name: kind_of(name, columns[name], path) for name in columns if name not in kinds}
    splits = {
        name: rows_of(columns, rows, Features(kinds))
        for name, rows in split_rows(columns, list(kept), arguments, path, warnings).items()
    }
    return LocalData(splits, skipped, missing, warnings)


def read_columns(path: Path) -> dict[str, list]:
    """The columns of a table as its file has them: strings of a CSV file, any values of JSON.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        table = read_text_table(path, header_of=segment_header)
        if not table.rows:
            raise ValueError(
                f"{path} has no rows below its header; give a table of files and labels"
            )
        return dict(zip(table.header, map(list, zip(*table.rows))))
    rows = read_json(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def segment_header(first: list[str]) -> list[str] | None:
    """AudioSet's header, if the first row is a segment."""
    is_segment = len(first) == 4 and all(DECIMAL.fullmatch(cell) for cell in first[1:3])
    return list(SEGMENT_COLUMNS) if is_segment and len(first[0]) == 11 else None


def read_json(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON file: a list, {"data": list}, columns, or an object in each line.

    Raises:
        OSError, ValueError: It cannot be read or holds none of these.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = read_json_lines(path, text)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict):
        columns = [cells for cells in content.values() if isinstance(cells, list)]
        if len(columns) == len(content) > 0 and len(set(map(len, columns))) == 1:
            content = [dict(zip(content, cells)) for cells in zip(*columns)]
        else:
            content = [content]
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(row, dict) and row for row in content)
    ):
        raise ValueError(
            f'{path} has no rows such as {{"file": "a.wav", "label": "car"}}; give a list '
            f"of them, or one in each line"
        )
    if HALF_CHARACTER.search(text):
        check_unicode(path, content)
    return content


def check_unicode(path: Path, content: Any) -> None:
    """Refuses texts with half of a character, which JSON can hold but no other file.

    Raises:
        ValueError: There is one.
    """
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = error.object[max(0, error.start - 10) : error.end + 10]
        raise ValueError(
            f"{path} has a text with half of a character, near {found!r}; correct the text"
        ) from error


def read_json_lines(path: Path, text: str) -> list[Any]:
    """A value in each line."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path} cannot be read as JSON (line {number}: {one_line(error)}); correct it"
                ) from error
    return rows


def audio_column(columns: dict[str, list], named: str, path: Path) -> str:
    """The column of audio files: the given one, or the first with a usual name.

    Raises:
        ValueError: No column was given, and none has a usual name.
    """
    if named in columns or named != DataArguments.audio_column:
        return named
    found = usual_column(columns, AUDIO_COLUMNS)
    if found is None:
        raise ValueError(
            f"{path} has the columns {list(columns)}, but none with a usual name for audio files; "
            f"give one of them as --audio-column"
        )
    return found


def usual_column(columns: dict[str, list], usual: Sequence[str]) -> str | None:
    """The first of the usual names that is a column, in upper or lower case."""
    lower = {name.lower(): name for name in reversed(columns)}
    return next((lower[name.lower()] for name in usual if name.lower() in lower), None)


def spans_of(columns: dict[str, list], path: Path) -> list[tuple[float, float]] | None:
    """(start, end) of each row in seconds; None if the table has no segments."""
    starts, ends = columns.get("start_seconds"), columns.get("end_seconds")
    if starts is None or ends is None:
        return None
    if not all(isinstance(value, int | float) for value in (*starts, *ends)):
        raise ValueError(
            f"{path} must have numbers in start_seconds and end_seconds in all rows; correct it"
        )
    return [(float(start), float(end)) for start, end in zip(starts, ends)]


def split_rows(
    columns: dict[str, list],
    rows: list[int],
    arguments: DataArguments,
    path: Path,
    warnings: list[str],
) -> dict[str, list[int]]:
    """Split -> its rows; without a column `split` all rows are to train on.

    Raises:
        ValueError: Some cells of this column are names of splits, and others are not.
    """
    name = usual_column(columns, (SPLIT_COLUMN,))
    if name is None:
        return {arguments.train_split: rows}
    given = [str("" if cell is None else cell).strip().lower() for cell in columns[name]]
    unknown = sorted({cell for cell in given if cell not in SPLIT_NAMES})
    if len(unknown) == len(set(given)):
        warnings.append(
            f"the column {name!r} of {path} is not used, as it has none of the names train, "
            f"validation and test"
        )
        return {arguments.train_split: rows}
    if unknown:
        raise ValueError(
            f"{path} has {', '.join(map(repr, unknown[:3]))} in the column {name!r}; give train, "
            f"validation or test in each row, or give the column another name"
        )
    splits: dict[str, list[int]] = {}
    for index in rows:
        splits.setdefault(SPLIT_NAMES[given[index]], []).append(index)
    return splits


def resolved(found: FoundFile, root: Path) -> FoundFile:
    """The file with one spelling of its path; a URL is not changed."""
    if "://" in found.path:
        return found
    return found._replace(path=os.path.realpath(root / found.path))


def repeated(
    files: list[str], names_of: list[list[str]], clips: Mapping[int, FoundFile]
) -> list[str]:
    """A warning if clips are in several rows, which says whether their labels differ.

    Args:
        files, names_of: The file's name and the labels of each row.
        clips: Index of a row -> its clip; two segments of one file are two clips.
    """
    counts = Counter(clips.values())
    doubled = {clip for clip, count in counts.items() if count > 1}
    if not doubled:
        return []
    labels: dict[FoundFile, set] = {}
    for index, clip in clips.items():
        labels.setdefault(clip, set()).add(tuple(names_of[index]))
    differ = sum(len(labels[clip]) > 1 for clip in doubled)
    example = next(files[index] for index, clip in clips.items() if clip in doubled)
    also = f" ({differ} with different labels)" if differ else ""
    return [
        f"clips in more than one row: {len(doubled)}{also}, such as {example!r}; if a clip has "
        f"several labels, put them into one cell and give --label-separator"
    ]


def rows_of(columns: dict[str, list], rows: Sequence[int], features: Features) -> Dataset:
    """Some rows of the columns as a data set."""
    chosen = {name: [cells[index] for index in rows] for name, cells in columns.items()}
    return Dataset.from_dict(chosen, features=features)


__all__ = ["SPLIT_NAMES", "TABLE_SUFFIXES", "read_columns", "read_table"]
