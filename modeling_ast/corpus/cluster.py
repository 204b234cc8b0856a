"""Connecting to Ray: a cluster that runs, or one of this machine for the time of the run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ..errors import one_line

# Set unless the user has set these variables. No statistics are sent to Ray's developers. Ray's
# logs of its plans and the warnings of its core are turned off: they do not help a user, and would
# hide the one line with the reason of a failure.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
}


# CPUs of a Ray on this machine, even if the machine has fewer, because models, decoding and writing
# run at the same time.
LEAST_CPUS = 4


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Connects this process to Ray, and disconnects it at the end.

    Args:
        address: "auto" for the cluster that this machine belongs to, HOST:PORT for another one, or
            None to start Ray on this machine.
    Raises:
        ValueError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    own: dict[str, Any] = {}
    if address is None:
        own = {"include_dashboard": False, "num_cpus": max(LEAST_CPUS, os.cpu_count() or 1)}
    level = logging.ERROR
    try:
        with _nothing_on_stderr():
            ray.init(address=address or "local", log_to_driver=False, logging_level=level, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot connect to Ray at {address or 'this machine'} ({one_line(error)}); start a "
            f"cluster with: ray start --head, or leave --address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Hides standard error: Ray's core, which is no Python, prints there that its level was set."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


__all__ = ["connected"]
