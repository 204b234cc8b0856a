"""A folder that appears whole or not at all, and never replaces another without --force."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from ..errors import one_line
from .key_maps import ConversionError

# All that a conversion writes: --force deletes nothing else.
OUR_FILES = frozenset({"config.json", "model.safetensors", "preprocessor_config.json", "README.md"})


@contextmanager
def whole_or_nothing(target: Path, force: bool, writes: Set[str] = OUR_FILES) -> Iterator[Path]:
    """Makes a folder beside `target` to write into, and renames it to `target` at the end.

    Args:
        target, force, writes: See `check_target`.
    Raises:
        ConversionError: `target` exists already (see `check_target`), or cannot be written.
    """
    target = target.resolve()
    check_target(target, force, writes=writes)
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


def check_target(
    target: Path, force: bool, sources: Iterable[Path] = (), writes: Set[str] = OUR_FILES
) -> None:
    """Refuses a target that must not be replaced.

    Args:
        target: Where a conversion is to be written.
        force: Whether an older conversion may be replaced.
        sources: What is converted.
        writes: Files that a conversion writes, as "folder/file" where they lie in a folder.
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
    ours = {*writes, *(str(folder) for name in writes for folder in PurePosixPath(name).parents)}
    inside = (path.relative_to(target).as_posix() for path in target.rglob("*"))
    foreign = sorted(name for name in inside if name not in ours)
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
