"""Error messages: on one line, and with the line for pip if an optional part is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from huggingface_hub.errors import StrictDataclassError


def one_line(said: object) -> str:
    """A text on one line.

    Args:
        said: An error or any other object. For an error, only the first line of its message that is
            not empty is taken, because messages of libraries can be pages long. For an error in a
            DataLoader's worker it is the last line, because torch writes the message after a
            traceback. The text of any other object is taken whole.
    Returns:
        The text without line breaks; an error without a message gives the name of its class.
    """
    if not isinstance(said, BaseException):
        return " ".join(str(said).split())
    if isinstance(said, StrictDataclassError) and said.__cause__ is not None:
        said = said.__cause__  # the same message without the name of the validator
    lines = [" ".join(line.split()) for line in str(said).splitlines() if line.strip()]
    if any(line.startswith("Original Traceback ") for line in lines):
        # Without the name of the error's class.
        return lines[-1].partition(": ")[2] or lines[-1]
    # A line that ends in a colon is the heading of the next one.
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(said).__name__


class MissingExtra(ImportError):
    """An optional part of the package is not installed; the message has the line for pip."""


def need_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports a module of an optional part.

    Args:
        module: Its full name.
        extra: The extra of this package that installs it.
        purpose: What needs the module, as the subject of the message: "modeling-ast finetune".
    Raises:
        MissingExtra: A library of the extra is not installed. Any other error during the import is
            raised as it is.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        own = __name__.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] == own:
            raise
        raise MissingExtra(
            f"{purpose} needs {error.name.partition('.')[0]}, which is not installed; install it "
            f'with: pip install "modeling-ast[{extra}]"'
        ) from error


def naming(name: str, reason: str) -> str:
    """A reason that begins with the name of its file, unless it has this name already."""
    # Not `name in reason`: a file may have the name "a".
    has_name = reason.startswith(f"{name} ") or repr(name) in reason
    return reason if has_name else f"{name}: {reason}"


__all__ = ["MissingExtra", "naming", "need_extra", "one_line"]
