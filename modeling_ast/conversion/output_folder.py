"""A folder that appears whole or not at all, and never replaces another without --force."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import one_line
from .key_maps import ConversionError

# All that a conversion writes: --force deletes nothing else.
OUR_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}


@contextmanager
def whole_or_nothing(target: Path, force: bool) -> Iterator[Path]:
    """Makes a folder beside `target` to write into, and renames it to `target` at the end.

    Raises:
        ConversionError: `target` exists already (see `check_target`), or cannot be written.
    """
    target = target.resolve()
    check_target(target, force)
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        beside.mkdir(parents=True)
        yield beside
        _move(beside, target)
    except (OSError, SafetensorError) as error:
        raise ConversionError(
            f"cannot write {target} ({one_line(error)}); nothing was written, choose another place"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_target(target: Path, force: bool, sources: Iterable[Path] = ()) -> None:
    """Refuses a target that must not be replaced.

    Args:
        target: Where a conversion is to be written.
        force: Whether an older conversion may be replaced.
        sources: What is converted.
    Raises:
        ConversionError: `target` holds one of `sources`; it exists, without `force`; or it holds a
            file that no conversion wrote.
    """
    for source in sources:
        if target.resolve() in (source.resolve(), *source.resolve().parents):
            raise ConversionError(
                f"{target} holds the source {source}, which would be lost; choose another place"
            )
    if target.is_file():
        raise ConversionError(f"{target} is a file but must be a new directory; choose another")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise ConversionError(
            f"{target} exists and is not empty; choose another name, or replace it with --force"
        )
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in OUR_FILES)
    if foreign:
        raise ConversionError(
            f"{target} holds {foreign[0]}, which no conversion wrote and --force would delete; "
            f"choose another name"
        )


def _move(beside: Path, target: Path) -> None:
    """Renames `beside` to `target`, which steps aside first: no folder replaces a full one."""
    if not target.is_dir():
        beside.rename(target)
        return
    old = beside.with_suffix(".old")
    target.rename(old)
    try:
        beside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


__all__ = ["check_target", "whole_or_nothing"]
