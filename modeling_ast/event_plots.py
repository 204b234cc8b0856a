"""Pictures of a recording with its events: the spectrogram, the events as bars, the top curves.

A PNG (or any format of matplotlib but PDF) is one picture of any length: for an hour, a column is
the highest score of some seconds. A PDF has a page for each minute, at full resolution. Neither
keeps all scores in memory: a picture keeps a bounded number of columns, a page its top curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .audio import open_clip
from .events import Detection, EventDetector, ScoreBlock
from .feature_extraction_ast import ASTFeatureExtractor
from .plotting import (
    LONGEST_LABEL,
    PeakColumns,
    draw_blocks,
    draw_spectrogram,
    load_pyplot,
    missing_characters_as_boxes,
    plain_text,
    time_axis,
)
from .recordings import Recording

MOST_BARS, MOST_CURVES = 20, 5
PAGE_SECONDS = 60.0
# The most characters of a title.
LONGEST_TITLE = 110
PAGED = ".pdf"


class Curves(NamedTuple):
    """The scores of the labels with the highest peaks."""

    seconds: np.ndarray  # (N,), the middle of each column
    labels: list[str]
    scores: np.ndarray  # (N, labels)
    thresholds: list[float]  # of these labels


class ScoreColumns:
    """The curves of a whole recording, for a picture; takes the blocks of `EventDetector`.

    Args:
        hop: Seconds of a step.
        labels: In the order of the scores.
        thresholds: Of the labels, in the same order.
        caption: What the scores are, as a title of the curves.
    """

    def __init__(
        self, hop: float, labels: Sequence[str], thresholds: Sequence[float], caption: str = ""
    ):
        self.caption = caption
        self.hop = hop
        self.labels = labels
        self.thresholds = thresholds
        self.peaks = PeakColumns()

    def add(self, block: ScoreBlock) -> None:
        """Takes the scores of the next steps."""
        self.peaks.add(block.scores)

    def curves(self) -> Curves:
        """The curves of the whole recording."""
        columns = self.peaks.columns()  # (N, C)
        seconds = (np.arange(len(columns)) + 0.5) * self.peaks.rows_per_column * self.hop
        return self.highest(seconds, columns)

    def highest(self, seconds: np.ndarray, columns: np.ndarray) -> Curves:
        """The curves with the highest peaks among those of scores (N, C)."""
        if not len(columns):
            return Curves(seconds, [], columns, [])
        top = np.argsort(-columns.max(0), kind="stable")[:MOST_CURVES]
        labels, thresholds = ([some[i] for i in top] for some in (self.labels, self.thresholds))
        return Curves(seconds, labels, columns[:, top], thresholds)


class ScorePages(ScoreColumns):
    """The curves of each minute, for a page each."""

    def __init__(
        self, hop: float, labels: Sequence[str], thresholds: Sequence[float], caption: str = ""
    ):
        super().__init__(hop, labels, thresholds, caption)
        self.pages: list[Curves] = []
        self._left = np.empty((0, len(labels)), np.float32)  # steps of a page not yet complete
        self._steps = 0  # of the pages so far

    def add(self, block: ScoreBlock) -> None:
        """Takes the scores of the next steps."""
        self._left = np.concatenate([self._left, block.scores])
        while len(self._left) and (stop := self._stop()) <= self._steps + len(self._left):
            self._end_page(stop - self._steps)

    def finished(self) -> list[Curves]:
        """All pages; the last may be shorter."""
        if len(self._left):
            self._end_page(len(self._left))
        return self.pages

    def _stop(self) -> int:
        """The number of steps up to the last one whose middle is on this page."""
        return int(np.ceil((len(self.pages) + 1) * PAGE_SECONDS / self.hop - 0.5))

    def _end_page(self, num_steps: int) -> None:
        seconds = (self._steps + np.arange(num_steps) + 0.5) * self.hop
        self.pages.append(self.highest(seconds, self._left[:num_steps]))
        self._left = self._left[num_steps:]
        self._steps += num_steps


def columns_for(path: str | Path, detector: EventDetector) -> ScoreColumns:
    """The object that takes the scores for a picture at this path."""
    kind = ScorePages if Path(path).suffix.lower() == PAGED else ScoreColumns
    how = "highest" if detector.combine == "max" else "mean"
    caption = (
        f"{how} score of the windows of {detector.window:g} s that cover a step of "
        f"{detector.hop:g} s; it changes gradually, as more or fewer windows contain the sound"
    )
    return kind(detector.hop, detector.labels, detector.thresholds.tolist(), caption)


def draw_events(
    detection: Detection,
    scores: ScoreColumns,
    extractor: ASTFeatureExtractor,
    path: str | Path,
) -> None:
    """Draws a recording: its spectrogram, its events as bars, and the curves of the top classes.

    Args:
        detection: Of a file, which is read again.
        scores: Those of its steps, from `columns_for` the same path.
        path: Of the picture; its suffix says the format.
    Raises:
        MissingExtra: matplotlib is not installed.
        OSError, ValueError: The file is gone, or the picture cannot be written.
    """
    pyplot = load_pyplot()
    if isinstance(scores, ScorePages):
        _draw_pages(pyplot, detection, scores, extractor, path)
        return
    bars = _bars(detection, 0.0, np.inf)
    figure, axes = _sheet(pyplot, len(bars))
    draw_spectrogram(axes[0], detection.name, extractor)
    _fill(axes, detection, bars, scores.curves(), scores.caption)
    axes[0].set(title=plain_text(Path(detection.name).name, LONGEST_TITLE), xlabel="")
    time_axis(axes[2], detection.seconds or 0.0)
    with missing_characters_as_boxes():
        figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_pages(
    pyplot: Any,
    detection: Detection,
    scores: ScorePages,
    extractor: ASTFeatureExtractor,
    path: str | Path,
) -> None:
    """A page for each minute; its spectrogram is drawn while the file is read again."""
    from matplotlib.backends.backend_pdf import PdfPages

    recording = Recording(open_clip(detection.name), extractor.sampling_rate)
    minutes = _minutes(recording.blocks(), round(PAGE_SECONDS * extractor.sampling_rate))
    pages = scores.finished()
    with PdfPages(path) as file:
        for number, (curves, samples) in enumerate(zip(pages, minutes)):
            begin = number * PAGE_SECONDS
            end = begin + len(samples) / extractor.sampling_rate
            bars = _bars(detection, begin, end)
            figure, axes = _sheet(pyplot, len(bars))
            draw_blocks(axes[0], [samples], extractor, begin)
            _fill(axes, detection, bars, curves, scores.caption)
            name = plain_text(Path(detection.name).name, LONGEST_TITLE)
            axes[0].set(title=f"{name}, page {number + 1} of {len(pages)}", xlabel="")
            axes[2].set_xlim(begin, end)
            time_axis(axes[2], detection.seconds or 0.0)
            with missing_characters_as_boxes():
                file.savefig(figure, dpi=120)
            pyplot.close(figure)


def _minutes(blocks: Iterable[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """Blocks of any lengths -> blocks of this one; the last may be shorter."""
    waiting = np.empty(0, np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while len(waiting) >= num_samples:
            yield waiting[:num_samples]
            waiting = waiting[num_samples:]
    if len(waiting):
        yield waiting


def _bars(detection: Detection, begin: float, end: float) -> dict[str, list[tuple[float, float]]]:
    """(onset, length) of the events in a stretch of time, for its labels of longest duration."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in detection.events:
        if event.onset < end and begin < event.offset:
            length = event.offset - event.onset
            spans.setdefault(event.label, []).append((event.onset, length))
    names = sorted(spans, key=lambda name: -sum(length for _, length in spans[name]))
    return {name: spans[name] for name in names[:MOST_BARS]}


def _sheet(pyplot: Any, num_bars: int) -> tuple[Any, Any]:
    """A figure with axes for the spectrogram, `num_bars` bars, and the curves."""
    rows = 0.6 + 0.25 * num_bars
    return pyplot.subplots(
        3,
        1,
        figsize=(14, 7 + 0.25 * num_bars),
        height_ratios=(3, rows, 2),
        sharex=True,
        layout="constrained",
    )


def _fill(
    axes: Any,
    detection: Detection,
    bars: dict[str, list[tuple[float, float]]],
    curves: Curves,
    caption: str,
) -> None:
    """Draws bars, curves with their thresholds, and bad stretches in grey."""
    _, middle, bottom = axes
    names = list(bars)
    for row, name in enumerate(names):
        middle.broken_barh(bars[name], (row - 0.4, 0.8), color=f"C{row % 10}")
    middle.set_yticks(range(len(names)), [plain_text(name, LONGEST_LABEL) for name in names])
    middle.set(ylim=(max(len(names), 1) - 0.5, -0.5), ylabel="events")
    is_shared = len(set(curves.thresholds)) == 1
    for index, label in enumerate(curves.labels):
        # A label without an event has a grey of its own.
        color = f"C{names.index(label) % 10}" if label in names else f"{0.3 + 0.1 * index:.1f}"
        scores = curves.scores[:, index]
        bottom.plot(
            curves.seconds, scores, label=plain_text(label, LONGEST_LABEL), color=color, linewidth=1
        )
        if index == 0 or not is_shared:
            line_color = "0.3" if is_shared else color
            level = curves.thresholds[index]
            bottom.axhline(level, color=line_color, linestyle="--", linewidth=0.8)
            if is_shared:
                bottom.annotate(
                    f"threshold {level:g}",
                    (1, level),
                    (3, 0),
                    color=line_color,
                    fontsize="small",
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                )
    for axis in axes:
        for stretch in detection.bad_stretches:
            stop = detection.seconds if stretch.offset is None else stretch.offset
            axis.axvspan(stretch.onset, stop, color="0.5", alpha=0.5)
    bottom.set(ylim=(0, 1.02), ylabel="score")
    bottom.set_title(caption, loc="left", fontsize="small")
    if curves.labels:
        # The legend is placed above the curves, so that it does not cover them.
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1.08), "ncols": MOST_CURVES}
        bottom.legend(**place, frameon=False, fontsize="small")


__all__ = ["PAGED", "Curves", "ScoreColumns", "ScorePages", "columns_for", "draw_events"]
