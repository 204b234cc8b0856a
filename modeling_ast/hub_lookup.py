"""Looking a name up on the Hub without waiting where the Hub cannot be reached.

The Hub's client asks six times for each file, for 24 seconds in all, before it looks into its cache
or gives up. A mistyped path is such a name: without a network its error would come after a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session

# An answer of any kind counts; without a network the error comes at once.
SECONDS = 10.0


@contextmanager
def hub_lookup() -> Iterator[None]:
    """While it is open, the Hub's client uses only its cache if the Hub cannot be reached."""
    if constants.is_offline_mode() or _is_reachable():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_reachable() -> bool:
    try:
        _reach(constants.ENDPOINT)
    except (HTTPError, OSError):
        return False
    return True


@cache  # of success: a call that raises is repeated
def _reach(endpoint: str) -> None:
    get_session().head(endpoint, timeout=SECONDS)


__all__ = ["hub_lookup"]
