"""A warning if file names suggest that held-out clips are of the same speakers as training clips.

Files are often named after the speaker, instrument or place, and then a number: `anna_01.wav`,
`Kit__snare 3.flac`. If such a beginning stands in files of several labels, and in both parts, the
score says how well the model knows these speakers, not how well it will do with others
(`grouping.py`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import PurePosixPath

from datasets import Dataset

from .classes import column, label_column, some
from .data_arguments import DataArguments
from .grouping import paths_of

# What ends the beginning of a name, and the pattern that finds the beginning in a path.
PATTERNS = {"__": "([^/]+?)__[^/]*$", "_": "([^/_]+)_[^/]*$", "-": "([^/-]+)-[^/]*$"}
# A beginning that stands for a speaker or an instrument has several files.
FEWEST_FILES = 3
# The share of the held-out clips that must begin like a clip to train on.
LEAST_SHARED_CLIPS = 0.5
# The share of the beginnings that must occur with several labels. A beginning that occurs with one
# label may be the label's name, as in bark_1.wav.
LEAST_MIXED_BEGINNINGS = 0.5
# The share of the files with one beginning that must have another label than most of them.
LEAST_OTHERS = 0.2


def shared_beginnings(to_train: Dataset, held_out: Dataset, arguments: DataArguments) -> list[str]:
    """A warning if names suggest that clips of one group are in both parts.

    Returns:
        The warning, or an empty list.
    Raises:
        ValueError: The data has no label column.
    """
    paths = [paths_of(clips, arguments) for clips in (to_train, held_out)]
    if not all(map(all, paths)):  # clips without a file name
        return []
    for end, pattern in PATTERNS.items():
        stems = [[PurePosixPath(path).stem for path in own] for own in paths]
        if not all(end in stem.lstrip(end) for own in stems for stem in own):
            continue
        found = [[_beginning(pattern, path) for path in own] for own in paths]
        labels: dict[str, Counter[str]] = defaultdict(Counter)
        for clips, own in zip((to_train, held_out), found):
            cells = column(clips, label_column(arguments, clips), "--label-column")
            for beginning, cell in zip(own, cells):
                labels[beginning][str(cell)] += 1
        num_clips = sum(map(len, found))
        with_several = sum(map(_is_of_several, labels.values()))
        trained_on = set(found[0])
        num_shared = sum(beginning in trained_on for beginning in found[1])
        if (
            1 < len(labels) <= num_clips / FEWEST_FILES
            and with_several >= LEAST_MIXED_BEGINNINGS * len(labels)
            and num_shared >= LEAST_SHARED_CLIPS * len(found[1])
        ):
            return [
                f"the names of {num_shared} of the {len(found[1])} held-out clips begin like those "
                f"of clips to train on ({some(sorted(labels))}); if these are speakers, "
                f"instruments or places, the score is higher than it will be for new ones: "
                f"--group-by '{pattern}' holds out whole ones"
            ]
        return []
    return []


def _is_of_several(labels: Counter[str]) -> bool:
    """Whether files with one beginning have several labels; a few may be errors in the labels."""
    return labels.total() - max(labels.values()) >= LEAST_OTHERS * labels.total()


def _beginning(pattern: str, path: str) -> str:
    match = re.search(pattern, path)
    assert match is not None  # the name has what ends a beginning
    return match.group(1)


__all__ = ["shared_beginnings"]
