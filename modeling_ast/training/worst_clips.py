"""The clips that a model is most wrong about: a table, and a page to listen to them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..audio import read_clip
from ..errors import one_line
from ..feature_extraction_ast import ASTFeatureExtractor
from .answers import FALSE_POSITIVE, MISSED, Answers, Mistake, summary_lines
from .clip_page import Page, PageClip, PageSection, write_page
from .held_out import HeldOut

# Rows of the table; what a person reads is the beginning.
MOST_ROWS = 1000


def write_table(answers: Answers, path: Path) -> None:
    """Writes a CSV file with a row for each mistake, those that the model is surest of first.

    The columns are file, true, predicted, score (of the predicted label; of the missed one),
    mistake ("confused", or "false positive" and "missed" where a clip may have several labels).
    Several labels in one cell are separated by "; ".
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
    """The page of the clips whose mistakes the model is surest of.

    Args:
        answers: Of the model; clip i is row i of `held_out`.
        held_out: Where the clips are read from.
        extractor: Of the model.
        num_clips: How many clips it has at most; where a clip may have several labels, half of them
            have labels that are not there, and half lack some that are.
        model: Its name.
    """
    kinds = {"": answers.mistakes}
    if not answers.exclusive:
        kinds = {
            heading: [row for row in answers.mistakes if row.kind == kind]
            for heading, kind in (
                ("Found, but not there", FALSE_POSITIVE),
                ("There, but missed", MISSED),
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
    notes = [
        *summary_lines(answers),
        f"{wrong} of {len(answers.files)} held-out clips have a wrong answer. This page has those "
        f"of which the model is surest, the surest first. The number behind a label is its score. "
        f"The sound is what the model hears: one channel at {extractor.sampling_rate / 1000:g} "
        f"kHz. Of a clip longer than {seconds:.2f} s only the beginning is here, but its score is "
        f"of the whole clip.",
    ]
    return write_page(f"The worst mistakes of '{model}'", notes, sections, extractor)


def _page_clips(
    answers: Answers,
    mistakes: Sequence[Mistake],
    held_out: HeldOut,
    extractor: ASTFeatureExtractor,
    count: int,
) -> Iterator[PageClip]:
    """The clips of the first mistakes, each once, read when they are asked for."""
    for clip in list(dict.fromkeys(row.clip for row in mistakes))[:count]:
        there, found = answers.there[clip], answers.found[clip]
        facts = [("label", there), ("answer", found)]
        if not answers.exclusive:
            facts = [("labels", there), ("found, not there", found & ~there)]
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
    """Labels (C,), bool, with their scores."""
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
