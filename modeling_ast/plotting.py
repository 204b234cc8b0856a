"""Pictures of what a model hears; matplotlib is imported when one is drawn.

A recording of any length becomes a picture of the same width: `PeakColumns` keeps the highest value
of each column, so that a short sound is seen in an hour too, and the audio is read block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .audio import stream_audio
from .errors import need_extra
from .events import Detection, ScoreBlock
from .fbank import LOW_HZ, mel_of_hz
from .feature_extraction_ast import ASTFeatureExtractor
from .labels import printable
from .outputs import check_output_file
from .tagging import ClipTags

# A picture cannot show more columns than these; up to twice as many are kept.
COLUMNS = 1000
BLOCK_SECONDS = 30.0
TICKS_KHZ = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16)
MOST_BARS, MOST_CURVES = 20, 5
# From this length the axis of time shows minutes.
MINUTES_FROM = 180.0


class PeakColumns:
    """Rows, as they come -> a bounded number of columns, each the highest of equally many rows."""

    def __init__(self):
        self.rows_per_column = 1
        self._columns: np.ndarray | None = None  # (N, D), N below 2 x COLUMNS
        self._left: np.ndarray | None = None  # rows of a column that is not complete

    def add(self, rows: np.ndarray) -> None:
        """Takes the next rows (K, D)."""
        if self._columns is None or self._left is None:
            self._columns = self._left = rows[:0]
        rows = np.concatenate([self._left, rows])
        while True:
            room = 2 * COLUMNS - len(self._columns)
            count = min(room, len(rows) // self.rows_per_column)
            whole, rows = np.split(rows, [count * self.rows_per_column])
            pooled = whole.reshape(count, -1, rows.shape[1]).max(1) if count else whole
            self._columns = np.concatenate([self._columns, pooled])
            if count < room:
                break
            self._columns = self._columns.reshape(COLUMNS, 2, -1).max(1)
            self.rows_per_column *= 2
        self._left = rows

    def columns(self) -> np.ndarray:
        """(N, D), from all rows so far; the last column may be of fewer."""
        if self._columns is None or self._left is None:
            return np.empty((0, 0))
        last = [self._left.max(0, keepdims=True)] if len(self._left) else []
        return np.concatenate([self._columns, *last])


class ScoreColumns:
    """The curves of a recording, for a picture: what `EventDetector.detect` calls with scores.

    Args:
        hop: Seconds of a step.
        labels: In the order of the scores.
    """

    def __init__(self, hop: float, labels: Sequence[str]):
        self.hop = hop
        self.labels = labels
        self.peaks = PeakColumns()

    def add(self, block: ScoreBlock) -> None:
        """Takes the scores of the next steps."""
        self.peaks.add(block.scores)

    def curves(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The middle of each column in seconds, and the curves (N,) with the highest peaks."""
        columns = self.peaks.columns()  # (N, C)
        seconds = (np.arange(len(columns)) + 0.5) * self.peaks.rows_per_column * self.hop
        if not len(columns):
            return seconds, {}
        top = np.argsort(-columns.max(0), kind="stable")[:MOST_CURVES]
        return seconds, {self.labels[index]: columns[:, index] for index in top}


def draw_tags(results: list[ClipTags], extractor: ASTFeatureExtractor, path: str | Path) -> None:
    """Draws a row for each file: its spectrogram, whole, and its labels.

    Args:
        results: Of files, which are read again; none of them bad.
        path: Of the picture; its suffix says the format.
    Raises:
        MissingExtra: matplotlib is not installed.
        OSError, ValueError: A file is gone, or the picture cannot be written.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        len(results),
        2,
        figsize=(10, 2.6 * len(results)),
        width_ratios=(3, 2),
        squeeze=False,
        layout="constrained",
    )
    for (left, right), result in zip(axes, results):
        draw_spectrogram(left, result.name, extractor)
        left.set(title=plain_text(Path(result.name).name))
        labels, scores = zip(*reversed(result.labels.items()))
        right.barh(range(len(labels)), scores, color="tab:orange")
        right.set_yticks(range(len(labels)), list(map(plain_text, labels)))
        right.set(xlim=(0, 1), xlabel="score")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_events(
    detection: Detection, scores: ScoreColumns, extractor: ASTFeatureExtractor, path: str | Path
) -> None:
    """Draws a recording: its spectrogram, its events as bars, and the curves of the top classes.

    Args:
        detection: Of a file, which is read again.
        scores: Those of its steps.
        path: Of the picture; its suffix says the format.
    Raises:
        MissingExtra: matplotlib is not installed.
        OSError, ValueError: The file is gone, or the picture cannot be written.
    """
    pyplot = _pyplot()
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in detection.events:
        length = event.offset - event.onset
        spans.setdefault(event.label, []).append((event.onset, length))
    # Those that are heard longest.
    names = sorted(spans, key=lambda name: -sum(length for _, length in spans[name]))[:MOST_BARS]
    figure, (top, middle, bottom) = pyplot.subplots(
        3,
        1,
        figsize=(14, 7 + 0.25 * len(names)),
        height_ratios=(3, 0.6 + 0.25 * len(names), 2),
        sharex=True,
        layout="constrained",
    )
    draw_spectrogram(top, detection.name, extractor)
    top.set(title=plain_text(Path(detection.name).name), xlabel="")
    for row, name in enumerate(names):
        middle.broken_barh(spans[name], (row - 0.4, 0.8), color=f"C{row % 10}")
    middle.set_yticks(range(len(names)), [plain_text(name) for name in names])
    middle.set(ylim=(max(len(names), 1) - 0.5, -0.5), ylabel="events")
    seconds, curves = scores.curves()
    for label, curve in curves.items():
        color = f"C{names.index(label) % 10}" if label in names else "0.6"
        bottom.plot(seconds, curve, label=plain_text(label), color=color, linewidth=1)
    for axis in (top, middle, bottom):
        for stretch in detection.bad_stretches:
            stop = detection.seconds if stretch.offset is None else stretch.offset
            axis.axvspan(stretch.onset, stop, color="0.5", alpha=0.5)
    bottom.set(ylim=(0, 1.02), ylabel="score")
    # Above the curves, not over them.
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": MOST_CURVES}
    bottom.legend(**place, frameon=False, fontsize="small")
    _time_axis(bottom, detection.seconds or 0.0)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_spectrogram(axis: Any, source: str | Path, extractor: ASTFeatureExtractor) -> None:
    """Draws the log-mel spectrogram of a whole file, of any length, over kHz and time.

    Args:
        axis: Of matplotlib.
    """
    rate, hop, window = extractor.sampling_rate, extractor.hop_samples, extractor.window_samples
    peaks, waiting, num_samples = PeakColumns(), np.empty(0, np.float32), 0
    for block in stream_audio(source, rate, BLOCK_SECONDS):
        num_samples += len(block)
        waiting = np.concatenate([waiting, np.nan_to_num(block, posinf=0.0, neginf=0.0)])
        if len(waiting) >= window:
            frames = extractor.log_mel(torch.from_numpy(waiting)).numpy()  # (T, F)
            peaks.add(frames)
            waiting = waiting[len(frames) * hop :]
    image = peaks.columns().T  # (F, N)
    seconds = image.shape[1] * peaks.rows_per_column * hop / rate
    extent = (0, seconds, 0, len(image))
    axis.imshow(image, origin="lower", aspect="auto", extent=extent, cmap="magma")
    # The last samples are less than a window: no bright edge there.
    axis.set(xlim=(0, num_samples / rate), ylabel="kHz", facecolor="black")
    ticks = [khz for khz in TICKS_KHZ if khz <= rate / 2000]
    axis.set_yticks(
        [mel_bin(1000 * khz, extractor) for khz in ticks], [f"{khz:g}" for khz in ticks]
    )
    _time_axis(axis, num_samples / rate)


def mel_bin(hz: float, extractor: ASTFeatureExtractor) -> float:
    """Where a frequency lies on an axis of mel bins, of which bin i reaches from i to i + 1."""
    low, high = mel_of_hz(LOW_HZ), mel_of_hz(extractor.sampling_rate / 2)
    # The middle of bin i is i + 1 steps above the lowest edge.
    step = (high - low) / (extractor.num_mel_bins + 1)
    return (mel_of_hz(hz) - low) / step - 0.5


def _time_axis(axis: Any, seconds: float) -> None:
    if seconds < MINUTES_FROM:
        axis.set_xlabel("seconds")
        return
    axis.xaxis.set_major_formatter(lambda value, _: f"{int(value) // 60}:{int(value) % 60:02d}")
    axis.set_xlabel("minutes:seconds")


def check_picture(path: str | Path) -> None:
    """Refuses a picture that could not be written at the end of the work.

    Args:
        path: Its suffix says the format.
    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: There is no such format, or the file cannot be written.
    """
    bases = need_extra("matplotlib.backend_bases", "train", "a picture")
    formats = bases.FigureCanvasBase.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise ValueError(
            f"cannot draw {path}: its name must end in one of {', '.join(sorted(formats))}"
        )
    check_output_file(path)


def plain_text(text: str) -> str:
    """A text as matplotlib draws it: no formula, no line break."""
    # A pair of dollar signs would enclose a formula.
    return printable(text).replace("$", r"\$")


def _pyplot() -> Any:
    need_extra("matplotlib", "train", "a picture").use("Agg")
    from matplotlib import pyplot

    return pyplot


__all__ = [
    "PeakColumns",
    "ScoreColumns",
    "check_picture",
    "draw_events",
    "draw_spectrogram",
    "draw_tags",
    "mel_bin",
    "plain_text",
]
