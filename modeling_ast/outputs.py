"""Output files and folders: one that cannot be written is refused before the work begins, and so is
a second run that would write into the same folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.utils import logging

if sys.platform != "win32":
    import fcntl

logger = logging.get_logger(__name__)


def check_output_file(path: str | Path) -> None:
    """Refuses a file that could not be written at the end of the work.

    Args:
        path: Of the file. An existing file is not changed.
    Raises:
        ValueError: It is a directory, its directory is missing, or it cannot be written.
    """
    path = Path(path)
    is_new = not path.exists()
    try:
        # Only an attempt shows it: a file system can refuse for reasons other than permissions.
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}); give another path") from error
    if is_new:
        path.unlink()


@contextmanager
def one_run_at_a_time(folder: Path) -> Iterator[None]:
    """Locks a directory against other runs that write into it.

    The lock leaves no file behind and ends with the process, however the process ends. If
    directories cannot be locked (Windows, some network file systems), a warning says so once a run.

    Args:
        folder: A directory that exists.
    Raises:
        ValueError: Another process, or another run of this one, holds the lock.
    """
    if sys.platform == "win32":
        _cannot_lock(folder, "there is no flock on this system")
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK):
            os.close(handle)
            raise ValueError(
                f"another run is writing into {folder}; wait for it, stop it, or give another "
                f"directory"
            ) from None
        _cannot_lock(folder, str(error.strerror))
    try:
        yield
    finally:
        with suppress(OSError):
            os.close(handle)


@contextmanager
def leaving_no_empty_folder(folder: Path) -> Iterator[None]:
    """Makes a directory, and removes it again if the work in it fails and has written nothing.

    Args:
        folder: An existing one is kept. Missing directories above it are made and removed as well.
    Raises:
        ValueError: It, or one above it, is a file.
        OSError: It cannot be made.
    """
    files = [path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()]
    if files:
        raise ValueError(f"{files[0]} is a file but must be a directory; give another --output-dir")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):  # it is not empty, or was never made
                path.rmdir()
        raise


def _cannot_lock(folder: Path, reason: str) -> None:
    logger.warning(
        f"cannot lock {folder} ({reason}): do not start a second run that writes into it"
    )


__all__ = ["check_output_file", "leaving_no_empty_folder", "one_run_at_a_time"]
