"""Strict JSON: NaN and infinity, which JSON does not have, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any


def to_json(value: Any, indent: int | None = 2) -> str:
    """The text of a value, which every JSON parser reads.

    Args:
        value: Mappings, lists, tuples, texts and numbers.
        indent: Spaces of each level; None gives one line.
    """
    written = partial(json.dumps, strict(value), indent=indent, allow_nan=False)
    text = written(ensure_ascii=False)
    # The name of a file need not be valid Unicode; its odd bytes are escaped then.
    return text if _is_unicode(text) else written()


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def strict(value: Any) -> Any:
    """The value with None in the place of NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    return value


__all__ = ["strict", "to_json"]
