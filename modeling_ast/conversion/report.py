"""A report for people who check a conversion: a table of the weights and a picture."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .key_maps import ConversionError

NUM_FILTERS = 16
Shape = tuple[int, ...]
# Tensors that agree in these fields share a row of the table, which counts them.
_Kind = tuple[str, str, Shape | None, Shape | None]


class PatchPart(NamedTuple):
    """The tensors of a model that the picture shows."""

    kernel: Tensor  # (D, channels, P, P)
    positions: Tensor  # (1, prefix tokens + Gf * Gt, D)
    grid: tuple[int, int]  # (Gf, Gt)


class Row(NamedTuple):
    """One row of the table: what happened to `count` tensors of the same shape."""

    what: str  # carried, averaged, resized, fresh or dropped
    name: str
    before: Shape | None
    after: Shape | None
    # It hides tuple's method `count`, which a row does not need.
    count: int  # type: ignore[assignment]


def describe(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    dropped: Mapping[str, Tensor],
    same: str = "carried",
) -> list[Row]:
    """Compares the weights under our names before and after a conversion.

    Args:
        before: The source's weights, see `key_maps.Renamed`.
        after: The weights that are saved.
        dropped: Weights that are left out, under their old names.
        same: The word for tensors whose shape did not change.
    Returns:
        The rows; equal tensors of all layers share one row.
    """
    rows: dict[_Kind, int] = {}
    for name, tensor in after.items():
        old = before.get(name)
        what = "fresh" if old is None else same if old.shape == tensor.shape else "resized"
        _count(rows, what, name, old, tensor)
    for name, tensor in dropped.items():
        _count(rows, "dropped", name, tensor, None)
    order = (same, "resized", "fresh", "dropped")
    keys = sorted(rows, key=lambda key: order.index(key[0]))
    return [Row(*key, rows[key]) for key in keys]


def format_table(rows: list[Row]) -> str:
    """The rows as text; the last line counts the tensors."""
    cells = [("", "tensors", "name", "before", "after")]
    cells += [
        (row.what, str(row.count), row.name, _shape(row.before), _shape(row.after)) for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells
    ]
    totals: Counter[str] = Counter()
    for row in rows:
        totals[row.what] += row.count
    summary = ", ".join(f"{count} {what}" for what, count in totals.items())
    return "\n".join([*lines, summary])


def draw(before: PatchPart, after: PatchPart, path: Path) -> None:
    """Draws the similarity of positions and the first patch filters, before and after conversion.

    Each map shows the cosine similarity of one position (marked) to all others of its grid. In a
    good table neighbours in time and frequency are similar.

    Args:
        before, after: The tensors of the source and of the AST.
        path: Path of the picture, in any format that matplotlib writes.
    Raises:
        ConversionError: matplotlib is missing, or `path` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConversionError(
            "the picture (--plot) needs matplotlib, which is not installed; install it with: "
            "pip install matplotlib"
        ) from error
    figure = Figure(figsize=(13, 7), layout="constrained")
    halves = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for row, (title, part) in zip(halves, (("before", before), ("after", after))):
        grid = f"{part.grid[0]} x {part.grid[1]} patches"
        row.suptitle(f"{title}: positions ({grid}, cosine similarity), first patch filters")
        axes = row.subplots(1, 4, width_ratios=(1, 1, 1, 1.2))
        for axis, (similarity, point) in zip(axes, similarity_maps(part)):
            axis.imshow(similarity, origin="lower", aspect="auto", vmin=-1, vmax=1)
            axis.plot(point[1], point[0], "r+")
            axis.set(xlabel="time", ylabel="frequency")
        axes[3].imshow(tile_filters(part.kernel), origin="lower", cmap="gray")
        axes[3].set_axis_off()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"cannot write the picture {path} ({error}); give another path, such as x.png"
        ) from error


def similarity_maps(part: PatchPart) -> list[tuple[Tensor, tuple[int, int]]]:
    """Maps (Gf, Gt) of the cosine similarity to three positions on the grid's diagonal."""
    rows, columns = part.grid
    table = part.positions[0, -rows * columns :].float()  # (N, D)
    table = torch.nn.functional.normalize(table, dim=1)
    maps = []
    for quarter in (1, 2, 3):
        point = (rows * quarter // 4, columns * quarter // 4)
        similarity = table @ table[point[0] * columns + point[1]]  # (N,)
        maps.append((similarity.view(part.grid), point))
    return maps


def tile_filters(kernel: Tensor) -> Tensor:
    """The first filters, each stretched to [0, 1], side by side: (rows, columns[, 3])."""
    filters = kernel[:NUM_FILTERS].float()  # (n, channels, P, P)
    low, high = filters.flatten(1).aminmax(dim=1, keepdim=True)  # (n, 1)
    filters = ((filters.flatten(1) - low) / (high - low + 1e-12)).view(filters.shape)
    filters = torch.nn.functional.pad(filters, (1, 1, 1, 1), value=1.0)
    side = math.isqrt(len(filters))
    tiles = filters[: side * side].unflatten(0, (side, side))  # (side, side, channels, P, P)
    image = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (rows, columns, channels)
    return image if image.shape[-1] == 3 else image.mean(-1)


def _count(
    rows: dict[_Kind, int], what: str, name: str, old: Tensor | None, new: Tensor | None
) -> None:
    before, after = (None if tensor is None else tuple(tensor.shape) for tensor in (old, new))
    key = (what, re.sub(r"\.\d+\.", ".#.", name), before, after)
    rows[key] = rows.get(key, 0) + 1


def _shape(shape: Shape | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))


__all__ = [
    "PatchPart",
    "Row",
    "describe",
    "draw",
    "format_table",
    "similarity_maps",
    "tile_filters",
]
