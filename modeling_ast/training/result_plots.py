"""Pictures of a run's results: learning curve, a bar for each class, confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plotting import LONGEST_LABEL, missing_characters_as_boxes, plain_text
from .metrics import ClassResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The (epoch, value) pairs of a curve, and its colour.
Series = tuple[Sequence[tuple[float, float]], str]
# With more classes than this, a picture shows only the best and the worst ones.
DRAWN_CLASSES = 40
# Numbers of classes for which the confusion matrix is drawn.
MATRIX_CLASSES = range(2, 51)
# With at most this many classes, a cell shows the share below the count.
SHARES_UP_TO = 12
HELD_OUT = "held-out clips, weights of that epoch"
# Its name if there is one point only, at the end.
HELD_OUT_AT_THE_END = "held-out clips, kept weights"
# Start of a metric's name in Trainer's log -> its name and colour in the picture.
JUDGED = {
    "eval_validation": ("validation clips", "tab:purple"),
    "eval": (HELD_OUT, "tab:orange"),
    "last": ("held-out clips, last weights", "tab:red"),
    "best": ("held-out clips, best evaluation", "tab:olive"),
    "average": ("held-out clips, averaged weights", "tab:green"),
    "training": ("training clips, at the end", "tab:blue"),
}
# The marks of series of a single point.
SINGLE_MARKERS = "sD^v*Xp"
# A line with this many points or more has no dots.
DOTS_UP_TO = 60


def draw_curve(
    history: Sequence[Mapping[str, Any]], path: Path, metric: str, chance: float | None = None
) -> None:
    """Draws the losses and the metric over the epochs.

    Args:
        history: Trainer's log.
        path: Path of the picture; its suffix decides the format.
        metric: Such as "mAP"; its names in the log start as in `JUDGED`.
        chance: The value of the metric that guessing would reach.
    """
    figure = _figure((10, 4.6))
    left, right = figure.subplots(1, 2)
    losses = {"while training": (_points(history, "loss"), "0.5")}
    metrics = {}
    for prefix, (name, colour) in JUDGED.items():
        losses[name] = (_points(history, f"{prefix}_loss"), colour)
        metrics[name] = (_points(history, f"{prefix}_{metric}"), colour)
    _draw_series(left, _renamed(losses))
    _draw_series(right, _renamed(metrics))
    left.set(title="loss")
    highest = [value for points, _ in losses.values() for _, value in points if value < np.inf]
    left.set_ylim(0, 1.08 * max(highest, default=1.0))
    right.set(title=metric, ylim=(0, 1.08))
    if chance is not None:
        right.axhline(chance, color="0.5", linestyle="--", label="chance level")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        if axis.get_legend_handles_labels()[0]:
            # The legend is below the curves, so that it does not hide them.
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
            axis.legend(**place, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _renamed(series: Mapping[str, Series]) -> dict[str, Series]:
    """The series, with another name for that of the held-out clips if it is one evaluation."""
    is_single = len(dict(series[HELD_OUT][0])) < 2
    return {
        HELD_OUT_AT_THE_END if name == HELD_OUT and is_single else name: entry
        for name, entry in series.items()
    }


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The logged (epoch, value) pairs of a metric."""
    return [(row["epoch"], row[key]) for row in history if key in row and "epoch" in row]


def _draw_series(axis: Axes, series: Mapping[str, Series]) -> None:
    """Draws series of (epoch, value), each with its colour.

    A series of several points becomes a line, a single point a mark that is not filled. If no
    series has two points, all become bars.
    """
    series = {name: entry for name, entry in series.items() if entry[0]}
    # Two points of one epoch are no line: the last evaluation of a run, and that at its end.
    if any(len(dict(points)) > 1 for points, _ in series.values()):
        markers = iter(SINGLE_MARKERS)
        for name, (points, colour) in series.items():
            style: dict[str, Any] = {"marker": "o" if len(points) < DOTS_UP_TO else None}
            style["markersize"] = 4
            if len(points) == 1:
                # Not filled, so that each is visible where several have the same value.
                style = {"marker": next(markers), "fillstyle": "none", "linestyle": "none"}
                style["markersize"] = 8
            axis.plot(*zip(*points), color=colour, label=name, **style)
        axis.set_xlabel("epoch")
        return
    for place, (name, (points, colour)) in enumerate(series.items()):
        value = points[-1][1]
        bar = axis.bar(place, value, color=colour, label=name, width=0.6)
        axis.bar_label(bar, [f"{value:.3f}"])
    axis.set(xticks=[], xlim=(-0.6, max(len(series), 3) - 0.4))
    axis.margins(y=0.1)


def draw_classes(table: Sequence[ClassResult], path: Path, quality: str) -> None:
    """Draws a bar for each class, the best on top.

    Args:
        table: Classes for which the number is undefined are left out.
        path: Path of the picture; its suffix decides the format.
        quality: The field of `ClassResult` that is drawn, such as "average_precision" or "f1".
    """
    values = {row: getattr(row, quality) for row in table}
    rows = sorted((row for row in table if values[row] == values[row]), key=values.__getitem__)
    name = "F1" if quality == "f1" else quality.replace("_", " ")
    title = f"{name} of each class (number of clips)"
    if len(rows) > DRAWN_CLASSES:
        half = DRAWN_CLASSES // 2
        title = f"{name} of the {half} best and {half} worst of {len(rows)} classes"
        rows = rows[:half] + rows[-half:]
    figure = _figure((7, 1.2 + 0.24 * len(rows)))
    axis = figure.subplots()
    bars = axis.barh(range(len(rows)), [values[row] for row in rows], color="tab:orange")
    axis.bar_label(bars, [f"{values[row]:.2f}" for row in rows], padding=3, fontsize=8)
    labels = [f"{plain_text(row.name, LONGEST_LABEL)} ({row.positives})" for row in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.set(xlim=(0, 1.08), ylim=(-0.6, len(rows) - 0.4))
    figure.suptitle(title, fontsize=11)
    with missing_characters_as_boxes():
        figure.savefig(path, dpi=110)


def draw_matrix(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix: a row for each label, and a column for each answer of the model.

    The colour is the share of the row. A cell shows the number of clips and, with few classes,
    also the share.

    Args:
        matrix: (C, C), numbers of clips; C is one of `MATRIX_CLASSES`.
        names: Names of the classes.
        path: Path of the picture; its suffix decides the format.
    """
    count = len(names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with_shares = count <= SHARES_UP_TO
    cell = 0.75 if with_shares else 0.42 if count <= 25 else 0.3
    font = 9 if with_shares else 8 if count <= 25 else 6
    labels = [plain_text(name, LONGEST_LABEL) for name in names]
    margin = 1.2 + 0.075 * max(map(len, labels))
    figure = _figure((max(4.5, count * cell + margin), max(3.8, count * cell + margin)))
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for row, column in zip(*np.nonzero(matrix)):
        share = shares[row, column]
        text = f"{matrix[row, column]}"
        if with_shares:
            text += f"\n{100 * share:.0f} %"
        colour = "white" if share > 0.5 else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=font)
    axis.set_xticks(range(count), labels, rotation=90)
    axis.set_yticks(range(count), labels)
    axis.tick_params(length=0, labelsize=font + 1)
    edges = np.arange(count + 1) - 0.5
    axis.set_xticks(edges, minor=True)
    axis.set_yticks(edges, minor=True)
    axis.grid(which="minor", color="0.85", linewidth=0.5)
    axis.tick_params(which="minor", length=0)
    axis.set(xlabel="answer of the model", ylabel="label of the clip")
    with missing_characters_as_boxes():
        figure.savefig(path, dpi=110)


def _figure(inches: tuple[float, float]) -> Any:
    """A figure without pyplot, which keeps a list of its figures and may open windows."""
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout="constrained")


__all__ = ["MATRIX_CLASSES", "draw_classes", "draw_curve", "draw_matrix"]
