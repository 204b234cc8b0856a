"""Stochastic depth: while training, a clip skips some of the encoder's residual branches.

A branch that is not skipped is divided by the probability of not being skipped, so that its mean
does not change and an evaluation computes the plain network.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drop_rates(largest: float, num_layers: int) -> list[float]:
    """The rate of each layer: from 0 for the first to `largest` for the last, in equal steps.

    Source: Huang et al. 2016, section 4 (linear decay), counted as DeiT's training does (timm).
    """
    return [largest * layer / max(1, num_layers - 1) for layer in range(num_layers)]


def drop_branches(x: Tensor, rate: float, ends: Tensor | None = None) -> Tensor:
    """What a residual branch adds, with the branch left out for some of the clips.

    Args:
        x: (B, Q, D); of packed clips (1, S, D), the tokens of all clips one after the other.
        rate: Probability that a clip skips the branch, in [0, 1).
        ends: For packed clips (B + 1,): where each begins among the S tokens, and the last end.
    Returns:
        As x: zeros for the clips that skip the branch, the others divided by 1 - rate.
    Source: Huang et al. 2016, equation 2; the scale as in timm, so that evaluations need none.
    """
    count = x.shape[0] if ends is None else len(ends) - 1
    kept = torch.rand(count, device=x.device) >= rate  # (B,)
    factors = kept.to(x.dtype) / (1 - rate)
    if ends is None:
        return x * factors[:, None, None]
    lengths = ends.diff().long()
    factors = factors.repeat_interleave(lengths, output_size=x.shape[1])  # (S,)
    return x * factors[:, None]


__all__ = ["drop_branches", "drop_rates"]
