"""Which keys are done: 16 bytes for each, so that millions fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..labels import valid_unicode

# Two hashes of 64 bits, of different seeds of 16 characters, as pandas wants them: that two of a
# billion keys get the same 128 bits is as likely as 1 in 10^21.
SEEDS = ("modeling_ast.one", "modeling_ast.two")


class KeySet:
    """A set of keys, which cannot be listed.

    Args:
        keys: Texts, block by block.
    """

    def __init__(self, blocks: Iterable[Sequence[str]] = ()):
        digests = [digests_of(block) for block in blocks]
        joined = np.concatenate(digests) if digests else digests_of([])
        self.digests = np.unique(joined)  # (N,), sorted

    def __len__(self) -> int:
        return len(self.digests)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of some keys that are not in the set, in their order."""
        if not len(self.digests) or not len(keys):
            return list(keys)
        wanted = digests_of(keys)
        places = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        is_missing = self.digests[places] != wanted
        return [keys[index] for index in np.flatnonzero(is_missing).tolist()]


def digests_of(keys: Sequence[str]) -> np.ndarray:
    """(N,), 16 bytes each, which numpy sorts and compares."""
    texts = np.array([valid_unicode(key) for key in keys], dtype=object)
    halves = [
        pd.util.hash_array(texts, hash_key=seed, categorize=False).astype(np.uint64)
        for seed in SEEDS
    ]
    pairs = np.stack(halves, 1).astype(">u8") if len(texts) else np.empty((0, 2), ">u8")
    # Bytes compare as one number where the most significant come first.
    return np.ascontiguousarray(pairs).view("S16").reshape(-1)


__all__ = ["KeySet", "digests_of"]
