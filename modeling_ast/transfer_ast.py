"""From the CPU to a GPU, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`. From pinned memory a GPU fetches it while the host goes on."""
    is_pinned = x.is_cpu and device.type == "cuda" and not torch.compiler.is_compiling()
    x = x.pin_memory() if is_pinned else x
    return x.to(device, non_blocking=is_pinned)


__all__ = ["sent"]
