"""A text file of rows and cells -> a table, as spreadsheets, data sets and people write them.

The text is UTF-8 with or without a byte order mark, or UTF-16 with one. Commas, semicolons or tabs
separate the cells. Lines that begin with `#` above the first row are comments; the last of them may
be the header (AudioSet's `*_segments.csv`).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DELIMITERS = ",;\t"
QUOTED = re.compile(r'"[^"]*"')
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TextTable(NamedTuple):
    """The cells of a file, without the spaces around them."""

    header: list[str]
    rows: list[list[str]]  # each as long as the header
    delimiter: str


def read_text(path: str | Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a text, or its encoding is neither UTF-8 nor UTF-16. The message shows
            the line as it reads in cp1252, the most common other encoding.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-16" if content.startswith(UTF_16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        line = content.split(b"\n")[number - 1].decode("cp1252", "replace").strip()[:40]
        raise ValueError(
            f"{path} cannot be decoded as UTF-8 (line {number}, which would be {line!r} in the "
            f"encoding cp1252); save it as UTF-8, e.g. with: iconv -f cp1252 -t utf-8 OLD > NEW"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is no text (it has zero bytes); save it as a CSV file in UTF-8")
    # Some programs write the byte order mark twice.
    return text.removeprefix("\ufeff")


def read_text_table(
    path: str | Path, header_of: Callable[[list[str]], list[str] | None] = lambda row: None
) -> TextTable:
    """Reads a table.

    Args:
        path: Of the file.
        header_of: Called with the first row; returns the header if the file has none, or None if
            the first row is the header.
    Raises:
        OSError: It cannot be read.
        ValueError: See `read_text`; or quotes do not match, a row has more cells than the header,
            or two columns have one name.
    """
    comments, body = _without_comments(read_text(path))
    if re.match(r"sep=.\r?\n", body):  # for Excel; the delimiter is found all the same
        comments, body = [*comments, ""], body.partition("\n")[2]
    first = QUOTED.sub("", body[: body.find("\n") + 1] or body)
    delimiter = max(DELIMITERS, key=first.count)
    rows = _rows(path, body, delimiter, first_line=len(comments) + 1)
    if not rows:
        return TextTable([], [], delimiter)
    cells_above = [cell.strip() for cell in comments[-1].split(delimiter)] if comments else []
    header = header_of(rows[0][1])
    if len(cells_above) == len(rows[0][1]) > 1:
        header = cells_above
    if header is None:
        header = rows.pop(0)[1]
    header = [name or f"column {index}" for index, name in enumerate(header)]
    if doubled := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{path} has two columns of the name {doubled[0]!r}; rename one of them")
    for line, row in rows:
        if len(row) > len(header):
            raise ValueError(
                f"{path} has {len(row)} cells in line {line} but {len(header)} in its header; put "
                f"quotes around cells that hold a {delimiter!r}"
            )
    width = len(header)
    return TextTable(header, [row + [""] * (width - len(row)) for _, row in rows], delimiter)


def _without_comments(text: str) -> tuple[list[str], str]:
    """The comment lines above the first row, without `#`, and the rest."""
    comments = []
    while text.startswith("#"):
        line, _, text = text.partition("\n")
        comments.append(line[1:])
    return comments, text


def _rows(
    path: str | Path, text: str, delimiter: str, first_line: int
) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its line."""
    # Strict, because otherwise a quote that is never closed would swallow all rows after it.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num + first_line - 1, cells))
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read as a table (line {reader.line_num + first_line - 1}: {error}); "
            f"check the quotes in that line"
        ) from error
    return rows


__all__ = ["TextTable", "read_text", "read_text_table"]
