"""Metrics of found events against the true ones: a short version of the DCASE metrics.

Segments: Mesaros, Heittola, Virtanen, "Metrics for polyphonic sound event detection", 2016, which
sed_eval computes; PSDS: Ebbers, Haeb-Umbach, Serizel, "Threshold independent evaluation of sound
event detection scores", 2022, which sed_scores_eval computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from modeling_ast.events import Event

ONSET_COLLAR, OFFSET_COLLAR, OFFSET_SHARE = 0.2, 0.2, 0.2


class Counts(NamedTuple):
    """Counts of true positives, false positives and false negatives."""

    hits: int
    false_alarms: int
    misses: int

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1, 2 * self.hits + self.false_alarms + self.misses)


def total(counts: Sequence[Counts]) -> Counts:
    return Counts(*map(sum, zip(*counts)))


def segment_counts(found: Sequence[Event], true: Sequence[Event], seconds: float) -> Counts:
    """Counts over segments of 1 s of each label; a segment is active if an event overlaps it."""
    labels = sorted({event.label for event in [*found, *true]})
    active = np.zeros((2, len(labels), math.ceil(seconds)), bool)
    for side, events in enumerate((found, true)):
        for event in events:
            first, last = math.floor(event.onset), math.ceil(event.offset)
            active[side, labels.index(event.label), first:last] = True
    is_found, is_true = active
    return Counts(
        int((is_found & is_true).sum()),
        int((is_found & ~is_true).sum()),
        int((~is_found & is_true).sum()),
    )


def event_counts(found: Sequence[Event], true: Sequence[Event]) -> Counts:
    """Counts of events, matched one to one by label, and by onset and offset within the collars."""
    fits = np.array([[_fits(mine, theirs) for theirs in true] for mine in found], bool)
    if not fits.size:
        return Counts(0, len(found), len(true))
    rows, columns = linear_sum_assignment(fits, maximize=True)
    hits = int(fits[rows, columns].sum())
    return Counts(hits, len(found) - hits, len(true) - hits)


def _fits(found: Event, true: Event) -> bool:
    collar = max(OFFSET_COLLAR, OFFSET_SHARE * (true.offset - true.onset))
    return (
        found.label == true.label
        and abs(found.onset - true.onset) <= ONSET_COLLAR
        and abs(found.offset - true.offset) <= collar
    )


def onset_errors(found: Sequence[Event], true: Sequence[Event]) -> list[float]:
    """Seconds from each true onset to the nearest found one, for events that were found at all."""
    errors = []
    for event in true:
        onsets = [
            abs(mine.onset - event.onset)
            for mine in found
            if mine.label == event.label and mine.onset < event.offset and event.onset < mine.offset
        ]
        errors += [min(onsets)] if onsets else []
    return errors


__all__ = ["Counts", "event_counts", "onset_errors", "segment_counts", "total"]
