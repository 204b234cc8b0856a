"""Ctrl-C while the libraries of the command load, which takes seconds."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ends_silently() -> Iterator[None]:
    """Lets Ctrl-C end `modeling-ast` and `python -m modeling_ast` at once and without a traceback.

    Use it for imports only, because nothing has to be cleaned up after them. In other programs it
    changes nothing.
    """
    # While `python -m` imports the package, sys.argv[0] is "-m" and not yet the name of the script.
    is_command = sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).stem == "modeling-ast"
    if not is_command or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = ["ends_silently"]
