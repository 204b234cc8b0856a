"""Connecting to Ray: a cluster that runs, or one of this machine for the time of the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ..errors import one_line


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Connects this process to Ray, and disconnects it at the end.

    Args:
        address: "auto" for the cluster of which this machine is a part, HOST:PORT of another, None
            to start Ray on this machine.
    Raises:
        ValueError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    # Nothing of a run is sent to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its core writes warnings to standard error that a user can do nothing about.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own: dict[str, Any] = {} if address else {"include_dashboard": False}
    level = logging.ERROR
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=level, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot connect to Ray at {address or 'this machine'} ({one_line(error)}); start a "
            f"cluster with: ray start --head, or leave --address out"
        ) from error
    # What Ray Data logs of its plans hides the one line with the reason.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


__all__ = ["connected"]
