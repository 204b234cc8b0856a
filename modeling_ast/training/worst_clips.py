"""The clips with a model's worst mistakes: a table, and a page to listen to them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..audio import read_clip
from ..errors import one_line
from ..feature_extraction_ast import ASTFeatureExtractor
from .answers import DEFAULT_THRESHOLD, FALSE_POSITIVE, MISSED, Answers, Mistake, summary_lines
from .clip_page import Page, PageClip, PageSection, write_page
from .held_out import HeldOut

# Largest number of rows of the table.
MOST_ROWS = 1000


def write_table(answers: Answers, path: Path) -> None:
    """Writes a CSV file with a row for each mistake, those with the highest confidence first.

    The columns are file, true, predicted, score (of the predicted or the missed label) and mistake
    ("confused", or "false positive" and "missed" if a clip may have several labels). Several labels
    in one cell are separated by "; ".
    """
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "true", "predicted", "score", "mistake"))
        for row in answers.mistakes[:MOST_ROWS]:
            labels = ("; ".join(row.true), "; ".join(row.predicted))
            writer.writerow((row.file, *labels, f"{row.score:.6f}", row.kind))


def worst_page(
    answers: Answers,
    held_out: HeldOut,
    extractor: ASTFeatureExtractor,
    num_clips: int,
    model: str,
) -> Page:
    """The page of the clips with the most confident mistakes.

    Args:
        answers: The scores of the model; clip i is row i of `held_out`.
        held_out: The clips are read from it.
        extractor: The extractor of the model.
        num_clips: Largest number of clips. If clips may have several labels, half of them were
            given wrong labels, and half have labels that were missed.
        model: Name of the model.
    """
    kinds = {"": answers.mistakes}
    if not answers.exclusive:
        kinds = {
            heading: [row for row in answers.mistakes if row.kind == kind]
            for heading, kind in (
                ("Labels that were found but are wrong", FALSE_POSITIVE),
                ("Labels that were missed", MISSED),
            )
        }
    share = -(-num_clips // len(kinds))
    sections = [
        PageSection(heading, _page_clips(answers, rows, held_out, extractor, share))
        for heading, rows in kinds.items()
        if rows
    ]
    wrong = len({row.clip for row in answers.mistakes})
    seconds = extractor.max_samples / extractor.sampling_rate
    how = ""
    if not answers.exclusive:
        how = (
            "A label is found if its score reaches its threshold, which is "
            f"{DEFAULT_THRESHOLD:g} unless the model is calibrated. "
        )
    notes = [
        *summary_lines(answers),
        f"{how}{wrong} of {len(answers.files)} held-out clips have a wrong answer. This page shows "
        f"those with the highest confidence first. The number after a label is its score. The "
        f"sound is the model's input: one channel at {extractor.sampling_rate / 1000:g} kHz. Of a "
        f"clip longer than {seconds:.2f} s only the beginning is played, but its score is that of "
        f"the whole clip.",
    ]
    return write_page(f"The worst mistakes of '{model}'", notes, sections, extractor)


def _page_clips(
    answers: Answers,
    mistakes: Sequence[Mistake],
    held_out: HeldOut,
    extractor: ASTFeatureExtractor,
    count: int,
) -> Iterator[PageClip]:
    """The clips of the first mistakes, each once; each is read when the page needs it."""
    for clip in list(dict.fromkeys(row.clip for row in mistakes))[:count]:
        there, found = answers.there[clip], answers.found[clip]
        facts = [("label", there), ("answer", found)]
        if not answers.exclusive:
            facts = [("labels", there), ("found but wrong", found & ~there)]
            facts.append(("missed", there & ~found))
        waveform, error = _read(held_out, clip, answers.files[clip], extractor)
        yield PageClip(
            answers.files[clip],
            [
                (heading, _listed(answers, clip, labels))
                for heading, labels in facts
                if labels.any() or heading == "labels"
            ],
            waveform,
            error,
        )


def _listed(answers: Answers, clip: int, labels: np.ndarray) -> str:
    """The labels (C,), bool, as text, with their scores."""
    indices = np.flatnonzero(labels).tolist()
    texts = [f"{answers.names[i]} ({answers.scores[clip, i]:.2f})" for i in indices]
    return "; ".join(texts) or "none"


def _read(
    held_out: HeldOut, clip: int, name: str, extractor: ASTFeatureExtractor
) -> tuple[Tensor | None, str]:
    """The waveform of a clip (S,), or why there is none."""
    try:
        source = held_out.reader.clip(held_out.clips[clip])
        waveform = read_clip(source, extractor.sampling_rate, name, extractor.window_samples)
    except (OSError, ValueError, TypeError) as error:
        return None, one_line(error)
    return waveform, ""


__all__ = ["worst_page", "write_table"]
