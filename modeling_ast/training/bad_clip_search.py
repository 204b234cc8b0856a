"""Too many bad clips stop a run: then the clips that it has not reached are looked at too.

So that all bad clips are listed at once, and a user does not mend one after the other.
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

# The search ends after this time; some 6,000 clips of 10 s are decoded in it.
SEARCH_SECONDS = 60.0


@contextmanager
def listing_all_bad_clips(
    data: DataArguments,
    file: str | Path,
    model: str | None = None,
    train: bool = True,
    held_out: bool = True,
) -> Iterator[None]:
    """Looks at all clips if the work in it is stopped by bad ones.

    Args:
        data: Of the work.
        file: Its list of bad clips.
        model: Clips that are too short for it are bad; None if that does not matter.
        train, held_out: Which parts it uses.
    Raises:
        TooManyBadClips: It was stopped; the message counts and the list names what was found.
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
            raise TooManyBadClips(f"{error} ({reached} were looked at)") from stopped
        raise


def look_at(parts: list[Dataset], reader: ClipReader, bad: BadClips) -> int:
    """Decodes clips and lists the bad ones, for a while.

    Returns:
        How many were decoded.
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
