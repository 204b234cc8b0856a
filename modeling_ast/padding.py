"""Which padding is meant, and features of unequal lengths -> one batch, padded along the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers.utils import PaddingStrategy

PADDINGS = ("max_length", "longest")


def padding_name(padding: str | bool) -> str:
    """One of the two ways to pad, by any of its names in transformers.

    Raises:
        ValueError: It is none of them.
    """
    name = "longest" if padding is True else getattr(padding, "value", padding)
    if name not in PADDINGS:
        raise ValueError(
            f'padding is {padding!r}; it must be "max_length" (cut or pad to max_length frames) or '
            f'"longest" (pad to the longest clip of the batch)'
        )
    return name


def as_columns(features: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of a data set as columns; columns as they are."""
    if isinstance(features, Mapping):
        return dict(features)
    return {name: [row[name] for row in features] for name in features[0]}


def as_array(values: Any) -> np.ndarray:
    """A row's values as an array; they may be a tensor on a GPU."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _frames_of_rows(rows: Sequence[Any]) -> list[np.ndarray]:
    """Features of each row, (T, F), float32, of unequal lengths.

    Raises:
        ValueError: A row has another shape.
    """
    arrays = [as_array(row).astype(np.float32, copy=False) for row in rows]
    for index, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[-1]:
            raise ValueError(
                f"input_values of row {index} have shape {array.shape} but must be (frames, mel "
                f"bins), with the mel bins of the first row; of what the extractor returns for one "
                f"clip, take input_values[0]"
            )
    return arrays


def pad_rows(
    columns: dict[str, Any],
    padding_value: float,
    padding: str | bool | PaddingStrategy,
    max_length: int,
    truncation: bool,
    multiple: int | None,
    min_length: int,
) -> dict[str, Any]:
    """Columns of a data set whose features have equal lengths, each row with its mask.

    Args:
        columns: With `input_values` (T, F) in each row, optionally `attention_mask` (T,); others
            are kept.
        padding_value: What a padded frame holds.
        padding: True or "longest", "max_length", or False: rows keep their lengths.
        max_length: Frames that "max_length" gives, and that `truncation` cuts to.
        truncation: Whether longer rows are cut.
        multiple: The frames become a multiple of it.
        min_length: Frames that "longest" gives at least.
    Raises:
        ValueError: A row has another shape, or `padding` is unknown.
    """
    rows = _frames_of_rows(columns["input_values"])
    masks = columns.get("attention_mask", [np.ones(len(row), dtype=np.int64) for row in rows])
    masks = list(map(as_array, masks))  # (T,) each
    lengths = [min(len(row), max_length) if truncation else len(row) for row in rows]
    if padding is not False and getattr(padding, "value", padding) != "do_not_pad":
        least = max_length if padding_name(padding) == "max_length" else min_length
        length = max(least, *lengths)
        length = length if multiple is None else -(-length // multiple) * multiple
        lengths = [length] * len(rows)
    return columns | {
        "input_values": [_resized(row, n, padding_value) for row, n in zip(rows, lengths)],
        "attention_mask": [_resized(mask, n, 0) for mask, n in zip(masks, lengths)],
    }


def _resized(array: np.ndarray, length: int, value: float) -> np.ndarray:
    """(T, ...) cut, or continued with `value`, to (length, ...)."""
    missing = max(0, length - len(array))
    end = np.full((missing, *array.shape[1:]), value, array.dtype)
    return np.concatenate((array[:length], end))


__all__ = ["PADDINGS", "as_array", "as_columns", "pad_rows", "padding_name"]
