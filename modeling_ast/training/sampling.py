"""Balanced sampling: clips of rare classes are drawn more often.

Follows the authors' egs/audioset/gen_weight_file.py and Gong et al. 2021, section 3.1: draws with
replacement, as many in an epoch as there are clips. In your own script:

    class BalancedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return sampler

    BalancedTrainer(..., callbacks=[EpochCallback(sampler)])
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback

WEIGHT_SCALE = 1000.0
WEIGHT_OFFSET = 0.01


def balanced_weights(labels: Sequence[Iterable[Hashable] | Hashable]) -> Tensor:
    """Weight of each clip: the sum over its labels of 1000 / (clips with that label + 0.01).

    Args:
        labels: The labels, or the one label, of each clip: names, MIDs or class indices, e.g. a
            column of the data set.
    Returns:
        (number of clips,), float64; a clip without a label has weight 0 and is never drawn.
    Source: the authors' egs/audioset/gen_weight_file.py.
    """
    clips = [_labels_of(clip) for clip in labels]
    counts = Counter(label for clip in clips for label in clip)
    weight_of = {label: WEIGHT_SCALE / (n + WEIGHT_OFFSET) for label, n in counts.items()}
    weights = [sum(weight_of[label] for label in clip) for clip in clips]
    return torch.tensor(weights, dtype=torch.float64)


def _labels_of(clip: Iterable[Hashable] | Hashable) -> list[Hashable]:
    if hasattr(clip, "tolist"):
        clip = clip.tolist()
    return list(clip) if isinstance(clip, Iterable) and not isinstance(clip, str) else [clip]


class BalancedSampler(Sampler[int]):
    """Draws clips with replacement, in proportion to their weights.

    The order depends only on the seed and the epoch, so that all processes of a run see the same
    order. accelerate gives each of n processes every n-th batch of it. No draw is used twice,
    except that accelerate fills the last batches of an epoch with its first draws.

    Args:
        weights: (number of clips,), at least 0, not all 0; see `balanced_weights`.
        num_samples: Number of draws in an epoch; by default the number of clips.
        seed: Seed of the draws.
    Raises:
        ValueError: The weights are not as above, or `num_samples` is not positive.
    """

    def __init__(
        self, weights: Tensor | Sequence[float], num_samples: int | None = None, seed: int = 0
    ):
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.ndim != 1 or not (weights >= 0).all() or not 0 < weights.sum() < torch.inf:
            raise ValueError(
                f"weights have shape {tuple(weights.shape)} and sum to {weights.sum():g}; they "
                f"must be one finite number of at least 0 for each clip, and not all 0"
            )
        self.num_samples = len(weights) if num_samples is None else num_samples
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; draw at least 1 clip in an epoch")
        self.seed = seed
        self.epoch = 0
        self._bounds = weights.cumsum(0)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        # Consecutive seeds of a Mersenne twister do not give independent streams; hashed ones do.
        digest = hashlib.blake2b(f"{self.seed}/{self.epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
        draws = torch.rand(self.num_samples, generator=generator, dtype=torch.float64)
        # Not torch.multinomial, which is limited to 2^24 clips.
        indices = torch.searchsorted(self._bounds, draws * self._bounds[-1], right=True)
        # Rounding may put a draw on the last bound, where clips of weight 0 may follow.
        last = int(torch.searchsorted(self._bounds, self._bounds[-1]))
        yield from indices.clamp(max=last).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose order the next iteration gives."""
        self.epoch = epoch


class EpochCallback(TrainerCallback):
    """Sets the epoch (from 0) of samplers and collators.

    accelerate also sets it for a sampler, except when several processes resume within an epoch:
    then the loader that skips the trained batches hides the sampler, which would repeat the order
    of epoch 0.

    Args:
        targets: Objects with a method `set_epoch`.
    """

    def __init__(self, *targets):
        self.targets = targets

    def on_epoch_begin(self, args, state, control, **kwargs):
        # `state.epoch` is None at the start of a run; within an epoch it has a fractional part.
        for target in self.targets:
            target.set_epoch(int(state.epoch or 0))


__all__ = ["BalancedSampler", "EpochCallback", "balanced_weights"]
