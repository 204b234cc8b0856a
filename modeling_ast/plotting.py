"""Pictures of spectrograms and labels; matplotlib is imported when one is drawn.

A recording of any length becomes a picture of the same width: `PeakColumns` keeps the highest value
of each column, so that a short sound is visible in an hour too. The audio is read block by block.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .audio import open_clip
from .errors import need_extra
from .fbank import LOW_HZ, mel_of_hz
from .feature_extraction_ast import ASTFeatureExtractor
from .labels import printable
from .outputs import check_output_file
from .recordings import Recording
from .tagging import ClipTags

logger = logging.get_logger(__name__)

# A picture cannot show more columns than these; up to twice as many are kept.
COLUMNS = 1000
TICKS_KHZ = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16)
# From this length the axis of time shows minutes.
MINUTES_FROM = 180.0
# The most characters of a label, and of a file's name above a spectrogram.
LONGEST_LABEL, LONGEST_NAME = 32, 50


class PeakColumns:
    """Rows of any number -> a bounded number of columns, each the maximum of equally many rows."""

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
        """(N, D), from all rows so far; the last column may be made from fewer rows."""
        if self._columns is None or self._left is None:
            return np.empty((0, 0))
        last = [self._left.max(0, keepdims=True)] if len(self._left) else []
        return np.concatenate([self._columns, *last])


def draw_tags(results: list[ClipTags], extractor: ASTFeatureExtractor, path: str | Path) -> None:
    """Draws a row for each file: the spectrogram of the whole file, and its labels.

    Args:
        results: Of files that could be used; the files are read again.
        path: Of the picture; its suffix says the format.
    Raises:
        MissingExtra: matplotlib is not installed.
        OSError, ValueError: A file is gone, or the picture cannot be written.
    """
    pyplot = load_pyplot()
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
        left.set_title(plain_text(Path(result.name).name, LONGEST_NAME), fontsize="medium")
        labels, scores = zip(*reversed(result.labels.items()))
        bars = right.barh(range(len(labels)), scores, color="tab:orange")
        right.bar_label(bars, [f"{score:.3f}" for score in scores], padding=3, fontsize=8)
        names = [plain_text(label, LONGEST_LABEL) for label in labels]
        right.set_yticks(range(len(labels)), names)
        right.set(xlim=(0, 1.15), xticks=np.linspace(0, 1, 6), xlabel="score")
    with missing_characters_as_boxes():
        figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_spectrogram(axis: Any, source: str | Path, extractor: ASTFeatureExtractor) -> None:
    """Draws the log-mel spectrogram of a whole file, of any length, over kHz and time.

    Args:
        axis: Of matplotlib.
    Raises:
        OSError, ValueError: No part of the file can be decoded.
    """
    recording = Recording(open_clip(source), extractor.sampling_rate)
    draw_blocks(axis, recording.blocks(), extractor)


def draw_blocks(
    axis: Any, blocks: Iterable[np.ndarray], extractor: ASTFeatureExtractor, begin: float = 0.0
) -> None:
    """Draws the spectrogram of samples that come block by block, (S,) each.

    Args:
        axis: Of matplotlib.
        begin: Time of the first sample, in seconds.
    """
    rate, hop, window = extractor.sampling_rate, extractor.hop_samples, extractor.window_samples
    peaks, waiting, num_samples = PeakColumns(), np.empty(0, np.float32), 0
    for block in blocks:
        num_samples += len(block)
        waiting = np.concatenate([waiting, block])
        if len(waiting) >= window:
            frames = extractor.log_mel(torch.from_numpy(waiting)).numpy()  # (T, F)
            peaks.add(frames)
            waiting = waiting[len(frames) * hop :]
    end = begin + num_samples / rate
    image = peaks.columns().T  # (F, N)
    if image.size:
        column_seconds = peaks.rows_per_column * hop / rate
        # The last samples are too few for a frame: the last one, which overlaps them, is repeated.
        missing = max(0, math.ceil((end - begin) / column_seconds) - image.shape[1])
        image = np.pad(image, ((0, 0), (0, missing)), mode="edge")
        extent = (begin, begin + image.shape[1] * column_seconds, 0, len(image))
        axis.imshow(image, origin="lower", aspect="auto", extent=extent, cmap="magma")
    axis.set(xlim=(begin, end), ylabel="kHz", facecolor="black")
    ticks = [khz for khz in TICKS_KHZ if khz <= rate / 2000]
    axis.set_yticks(
        [mel_bin(1000 * khz, extractor) for khz in ticks], [f"{khz:g}" for khz in ticks]
    )
    time_axis(axis, end)


def mel_bin(hz: float, extractor: ASTFeatureExtractor) -> float:
    """Where a frequency lies on an axis of mel bins, of which bin i reaches from i to i + 1."""
    low, high = mel_of_hz(LOW_HZ), mel_of_hz(extractor.sampling_rate / 2)
    # The middle of bin i is i + 1 steps above the lowest edge.
    step = (high - low) / (extractor.num_mel_bins + 1)
    return (mel_of_hz(hz) - low) / step - 0.5


def time_axis(axis: Any, seconds: float) -> None:
    """Labels an axis of time that ends at `seconds`, in seconds or in minutes:seconds."""
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


@contextmanager
def missing_characters_as_boxes() -> Iterator[None]:
    """While a picture is saved: one sentence, once, instead of a warning for each character that
    matplotlib's font lacks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    others = [one for one in caught if not str(one.message).startswith("Glyph ")]
    if len(others) < len(caught):
        logger.warning_once(
            "pictures show some characters of the labels as boxes, because matplotlib's font does "
            "not have them"
        )
    for one in others:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def plain_text(text: str, longest: int | None = None) -> str:
    """A text that matplotlib draws as it is: no formula, no line break.

    Args:
        longest: The most characters; a longer text loses some in its middle. None for no limit.
    """
    text = printable(text)
    if longest is not None and len(text) > longest:
        end = (longest - 1) // 2
        text = f"{text[: longest - 1 - end]}…{text[-end:]}"
    # A pair of dollar signs would enclose a formula.
    return text.replace("$", r"\$")


def load_pyplot() -> Any:
    """matplotlib.pyplot, set up to draw to files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    need_extra("matplotlib", "train", "a picture").use("Agg")
    from matplotlib import pyplot

    return pyplot


__all__ = [
    "LONGEST_LABEL",
    "LONGEST_NAME",
    "PeakColumns",
    "check_picture",
    "draw_blocks",
    "draw_spectrogram",
    "draw_tags",
    "load_pyplot",
    "mel_bin",
    "missing_characters_as_boxes",
    "plain_text",
    "time_axis",
]
