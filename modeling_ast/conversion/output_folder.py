"""A folder that appears complete or not at all, and never replaces another without --force."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from ..errors import one_line
from ..outputs import one_run_at_a_time
from .key_maps import ConversionError

# All files that a conversion writes; --force does not delete any others.
OUR_FILES = frozenset({"config.json", "model.safetensors", "preprocessor_config.json", "README.md"})


@contextmanager
def whole_or_nothing(
    target: Path, force: bool, sources: Iterable[Path] = (), writes: Set[str] = OUR_FILES
) -> Iterator[Path]:
    """Makes a folder beside `target` to write into, and renames it to `target` at the end.

    The folder is locked until then, so that a second run with this target is refused. Files that a
    killed run left in it are deleted.

    Args:
        target, force, sources, writes: See `check_target`.
    Raises:
        ConversionError: `target` exists already (see `check_target`), another run is writing it, it
            cannot be written, or a file of `sources` changed during the conversion.
    """
    target, sources = target.resolve(), list(sources)
    check_target(target, force, sources, writes)
    before = _versions(sources)
    made = [folder for folder in target.parents if not folder.exists()]
    beside = target.with_name(f".{target.name}.partial")
    with ExitStack() as lock:
        try:
            beside.mkdir(parents=True, exist_ok=True)
            lock.enter_context(one_run_at_a_time(beside))
            _clear(beside)
        except ValueError as error:
            raise ConversionError(f"cannot write {target}: {error}") from error
        except OSError as error:
            raise _cannot_write(target, error) from error
        try:
            yield beside
            _check_unchanged(before, _versions(sources))
            _move(beside, target)
        except (OSError, SafetensorError) as error:
            raise _cannot_write(target, error) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            if not target.exists():
                _remove_empty(made)


def check_target(
    target: Path, force: bool, sources: Iterable[Path] = (), writes: Set[str] = OUR_FILES
) -> None:
    """Refuses a target that must not be replaced.

    Args:
        target: The folder that the conversion will write.
        force: Whether an older conversion may be replaced.
        sources: The files or folders that are converted.
        writes: The files that the conversion writes; "folder/file" for files in a folder.
    Raises:
        ConversionError: `target` holds one of `sources`; or it is not empty, without `force`; or it
            holds a file that conversions do not write.
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
            f"{target} holds {foreign[0]}, which no conversion wrote and which --force would "
            f"delete; choose another name"
        )


def _cannot_write(target: Path, error: Exception) -> ConversionError:
    return ConversionError(
        f"cannot write {target} ({one_line(error)}); nothing was written, so choose another place"
    )


def _versions(sources: Iterable[Path]) -> dict[Path, tuple[int, int, int]]:
    """File -> the numbers that differ between versions of it, for all files of the sources."""
    files = [
        file
        for source in sources
        for file in (source.iterdir() if source.is_dir() else [source])
        if file.is_file()
    ]
    stats = {file: file.stat() for file in files}
    return {file: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}


def _check_unchanged(before: dict, after: dict) -> None:
    """Refuses changed files: weights are memory-mapped, so a changed file may be read half old."""
    changed = sorted(file for file in before | after if before.get(file) != after.get(file))
    if changed:
        raise ConversionError(
            f"{changed[0]} changed while it was converted; nothing was written, so convert it again"
        )


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders that were made for a target that was not written, the innermost first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _move(beside: Path, target: Path) -> None:
    """Renames `beside` to `target`; an old target is renamed first, as it cannot be overwritten."""
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
