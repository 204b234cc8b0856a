"""The cells of a table's column -> numbers, names, or lists of labels."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, Value

from ..errors import one_line

# Columns of these names may hold several labels in a cell.
PLURAL_COLUMNS = ("labels", "positive_labels", "mids", "tags")
SEPARATORS = ";|,"
WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
# A number as people write it.
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def typed(cells: list) -> list:
    """The strings of a column as numbers, if all of them are numbers."""
    if not all(isinstance(cell, str) for cell in cells):
        return cells
    if all(WHOLE.fullmatch(cell) for cell in cells):
        return [int(cell) for cell in cells]
    return [float(cell) for cell in cells] if is_decimal(cells) else cells


def is_decimal(cells: list) -> bool:
    """Whether a column holds numbers with a decimal point, which cannot be names of files."""
    if any(isinstance(cell, float) for cell in cells):
        return True
    texts = all(isinstance(cell, str) and DECIMAL.fullmatch(cell) for cell in cells)
    return texts and any("." in cell for cell in cells)


def separated_cells(cells: list, name: str, known: set[str], warnings: list[str]) -> list:
    """Turns cells of several labels into lists; if one row has several, all rows become lists.

    A cell has several labels if it is a text such as "['a', 'b']", or if the column's name is a
    plural and the cell contains a separator (but is not a label of the class list).
    """
    if not all(isinstance(cell, str) for cell in cells):
        return cells
    lists = [listed(cell) for cell in cells]
    if any(names is not None for names in lists):
        return [[cell] if names is None else names for cell, names in zip(cells, lists)]
    joined = [cell for cell in cells if cell not in known and any(s in cell for s in SEPARATORS)]
    if not joined:
        return cells
    separator = next(s for s in SEPARATORS if any(s in cell for cell in joined))
    if name.lower() not in PLURAL_COLUMNS:
        warnings.append(
            f"cells of the column {name!r} such as {joined[0]!r} are read as one label each; if "
            f"they hold several, give --label-separator {separator!r}"
        )
        return cells
    return [split_cell(cell, separator, known) for cell in cells]


def split_cell(cell: str, separator: str, known: set[str]) -> list[str]:
    """The labels in a cell, each once."""
    if cell in known:
        return [cell]
    parts = (part.strip() for part in cell.split(separator))
    return list(dict.fromkeys(part for part in parts if part))


def listed(cell: str) -> list[str] | None:
    """The labels of a cell that is the text of a list, as pandas writes it; else None."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        labels = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return None
    return list(dict.fromkeys(labels))


def is_list(cells: list) -> bool:
    """Whether a column holds lists; if it does, a clip may have no label."""
    return any(isinstance(cell, list) for cell in cells)


def kind_of(name: str, cells: list, path: Path) -> Any:
    """The type of a column, for all splits.

    Raises:
        ValueError: The column has values of several types.
    """
    if all(isinstance(cell, str) for cell in cells):
        return Value("string")
    try:
        return Dataset.from_dict({name: cells}).features[name]
    except (pyarrow.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path} has values of several types in the column {name!r} ({one_line(error)}); use "
            f"one type, such as strings"
        ) from error


__all__ = ["DECIMAL", "is_decimal", "is_list", "kind_of", "separated_cells", "typed"]
