"""Torch's threads in a forked process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The process in which torch may have started threads.
_PROCESS = os.getpid()


@contextmanager
def living_threads() -> Iterator[None]:
    """Lets torch compute with one thread in a forked process, and as before elsewhere.

    OpenMP's threads do not survive a fork, and a process that waits for them hangs.
    """
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
