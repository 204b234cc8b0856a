"""Checks all clips of a data set after too many bad clips have stopped a run.

The user then gets a list of all bad clips and need not repair them one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datasets import Dataset
from tqdm.auto import tqdm

from ..pretrained import load_extractor
from .clips import BadClips, ClipReader, TooManyBadClips, read_or_list
from .data_arguments import DataArguments
from .data_sources import load

# The search ends after this time, which suffices for about 6,000 clips of 10 s.
SEARCH_SECONDS = 60.0


@contextmanager
def listing_all_bad_clips(
    data: DataArguments,
    file: str | Path,
    model: str | None = None,
    train: bool = True,
    held_out: bool = True,
) -> Iterator[None]:
    """Checks all clips if the code inside the context is stopped by bad ones.

    Args:
        data: The data that the code uses.
        file: The list of bad clips that the code writes.
        model: Clips that are too short for this model count as bad; None: short clips are good.
        train, held_out: Which parts of the data the code uses.
    Raises:
        TooManyBadClips: The code was stopped; the message says how many clips of all are bad.
    """
    try:
        yield
    except TooManyBadClips as stopped:
        if data.streaming:
            raise
        loaded = load(data, train, held_out)
        parts = [loaded.train, loaded.validation, loaded.held_out]
        stored = [part for part in parts if isinstance(part, Dataset)]
        num_clips = sum(map(len, stored))
        reader = ClipReader(audio_column=data.audio_column, root=data.root)
        if model is not None:
            reader.min_samples = load_extractor(model).window_samples
        bad = BadClips(file, num_clips, data.max_bad_share)
        looked_at = look_at(stored, reader, bad)
        reached = "all clips" if looked_at == num_clips else f"the first {looked_at}"
        try:
            bad.check()
        except TooManyBadClips as error:
            raise TooManyBadClips(f"{error} ({reached} were checked)") from stopped
        raise


def look_at(parts: list[Dataset], reader: ClipReader, bad: BadClips) -> int:
    """Decodes clips for at most `SEARCH_SECONDS` and lists the bad ones.

    Returns:
        The number of clips that were decoded.
    """
    end = time.monotonic() + SEARCH_SECONDS
    count = 0
    rows = (row for part in parts for row in part)
    total = sum(map(len, parts))
    for row in tqdm(rows, "Looking for all bad clips", total, unit="clip", leave=False):
        if time.monotonic() > end:
            break
        with suppress(TooManyBadClips):
            read_or_list(row, reader, bad)
        count += 1
    return count


__all__ = ["listing_all_bad_clips"]
