"""Which keys are done: 16 bytes for each, so that millions fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..labels import valid_unicode

# Two hashes of 64 bits with different seeds; pandas needs seeds of 16 characters. The probability
# that any two of a billion keys have the same 128 bits is 10^-21.
SEEDS = ("modeling_ast.one", "modeling_ast.two")


class KeySet:
    """A set of keys. It keeps only their hashes, so that the keys cannot be listed.

    Args:
        blocks: Keys, block by block.
    """

    def __init__(self, blocks: Iterable[Sequence[str]] = ()):
        digests = [digests_of(block) for block in blocks]
        joined = np.concatenate(digests) if digests else digests_of([])
        self.digests = np.unique(joined)  # (N,), sorted

    def __len__(self) -> int:
        return len(self.digests)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the given keys that are not in the set, in their order."""
        if not len(self.digests) or not len(keys):
            return list(keys)
        wanted = digests_of(keys)
        places = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        is_missing = self.digests[places] != wanted
        return [keys[index] for index in np.flatnonzero(is_missing).tolist()]


def digests_of(keys: Sequence[str]) -> np.ndarray:
    """The hashes of keys: (N,), 16 bytes each, which numpy can sort and compare."""
    texts = np.array([valid_unicode(key) for key in keys], dtype=object)
    halves = [
        pd.util.hash_array(texts, hash_key=seed, categorize=False).astype(np.uint64)
        for seed in SEEDS
    ]
    pairs = np.stack(halves, 1).astype(">u8") if len(texts) else np.empty((0, 2), ">u8")
    # With the most significant byte first, bytes compare like one number.
    return np.ascontiguousarray(pairs).view("S16").reshape(-1)


__all__ = ["KeySet", "digests_of"]
