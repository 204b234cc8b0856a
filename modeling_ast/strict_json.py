"""Strict JSON: NaN and infinity, which JSON lacks, become null; harmful characters are escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .labels import HARMFUL


def to_json(value: Any, indent: int | None = 2) -> str:
    """The text of a value, which every JSON parser can read.

    Args:
        value: Mappings, lists, tuples, texts and numbers. Characters that could harm a terminal are
            written as JSON's escapes, so that programs read them unchanged.
        indent: Spaces of each level; None gives one line.
    """
    text = json.dumps(strict(value), ensure_ascii=False, indent=indent, allow_nan=False)
    # Labels and names of files may hold any characters, and bytes that are not valid Unicode.
    return HARMFUL.sub(_escaped, text)


def _escaped(found: re.Match) -> str:
    # A line break here separates values; json itself escapes those inside texts.
    return found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1]


def strict(value: Any) -> Any:
    """The value with None in the place of NaN and infinity, and numpy's numbers as Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    return value


__all__ = ["strict", "to_json"]
