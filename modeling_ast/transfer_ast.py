"""From the CPU to a GPU, without waiting for it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`. From pinned memory a GPU fetches it while the host goes on."""
    is_pinned = x.is_cpu and device.type == "cuda" and not torch.compiler.is_compiling()
    x = x.pin_memory() if is_pinned else x
    return x.to(device, non_blocking=is_pinned)


def sent_together(waveforms: list[Tensor], device: torch.device) -> Tensor:
    """Waveforms (S,) as one batch (B, S) on `device`, zeros at the end.

    A GPU fetches those of the CPU beside what it has yet to compute, and not after it.
    """
    if device.type != "cuda" or not all(waveform.is_cpu for waveform in waveforms):
        return pad_sequence([sent(waveform, device) for waveform in waveforms], batch_first=True)
    now, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        padded = torch.zeros(len(waveforms), max(map(len, waveforms)), device=device)  # (B, S)
        for index, waveform in enumerate(waveforms):
            padded[index, : len(waveform)].copy_(waveform.pin_memory(), non_blocking=True)
    now.wait_stream(copies)
    # Or its memory would be filled anew, by these copies, while `now` still has to read it.
    padded.record_stream(now)
    return padded


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


__all__ = ["sent", "sent_together"]
