"""Torch's threads in a forked process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Here torch may have begun threads.
_PROCESS = os.getpid()


@contextmanager
def living_threads() -> Iterator[None]:
    """One thread in a forked process: those of OpenMP do not outlive the fork, and a process that
    waits for them hangs."""
    if os.getpid() == _PROCESS:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


__all__ = ["living_threads"]
