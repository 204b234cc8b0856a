"""What all verbs share: how flags are read, how results and errors are printed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from ..audio_files import AUDIO_SUFFIXES
from ..errors import one_line
from ..labels import printable
from ..strict_json import to_json

# How many flags a message suggests, and how many letters of a mistyped flag are compared.
MOST_HINTS, MOST_LETTERS = 3, 60


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose flags may be written with underscores too: --top_k is --top-k.

    Args:
        verb: Of `modeling-ast`, for the line of usage.
        kwargs: Of ArgumentParser.
    """

    def __init__(self, verb: str, **kwargs):
        super().__init__(prog=f"modeling-ast {verb}", **kwargs)
        self.given: list[str] = []

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As in ArgumentParser; every other method that parses calls this one."""
        args = list(sys.argv[1:] if args is None else args)
        self.given = self.given or list(args or ())
        end = args.index("--") if "--" in args else len(args)
        flags = [_hyphened(word) for word in args[:end]]
        return super().parse_known_args(flags + args[end:], namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in ArgumentParser; the message on an unknown flag names a similar one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        return found

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in ArgumentParser; the message on an unknown flag names a similar one."""
        found, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        return found

    def refuse(self, unknown: Iterable[str]) -> NoReturn:
        """Ends the process because of arguments that are not known."""
        unknown = list(unknown)
        hint = self._similar(unknown)
        self.error(f"unrecognized arguments: {' '.join(unknown)}; {hint}see --help")

    def _similar(self, words: Iterable[str]) -> str:
        """A question that names the flags which the unknown ones among `words` may mean."""
        known = [flag for action in self._actions for flag in action.option_strings]
        given = dict.fromkeys(word.partition("=")[0] for word in map(_hyphened, words))
        unknown = [
            flag
            for flag in given
            if flag.startswith("--") and not any(own.startswith(flag) for own in known)
        ]
        similar = dict.fromkeys(
            match for flag in unknown[:MOST_HINTS] if (match := similar_flag(flag, known))
        )
        return f"did you mean {' and '.join(similar)}? " if similar else ""

    def error(self, message: str) -> NoReturn:
        """As in ArgumentParser, with a hint if a file's name begins with a hyphen, and the name of
        a similar flag if a required one is missing."""
        end = self.given.index("--") if "--" in self.given else len(self.given)
        for word in self.given[:end]:
            is_audio = os.path.splitext(word)[1].lower() in AUDIO_SUFFIXES
            if word.startswith("-") and (is_audio or os.path.exists(word)):
                message += (
                    f"; a name that begins with a hyphen must come after --, behind all flags "
                    f"(-- {word}), or be given as ./{word}"
                )
                break
        if "required" in message and (hint := self._similar(self.given[:end])):
            message += f"; {hint}see --help"
        super().error(message)


def similar_flag(flag: str, known: Iterable[str]) -> str | None:
    """The known flag that an unknown one may mean, such as --num-train-epochs for --epochs.

    Returns:
        None if there is none.
    """
    word = flag[:MOST_LETTERS].lower().strip("-")
    names = {name.strip("-"): name for name in known if name.startswith("--")}
    found = get_close_matches(word, names, 1)
    found = found or [
        name for name in names if any(part.startswith(word) for part in name.split("-"))
    ]
    found = found if len(word) > 2 else []
    return names[found[0]] if found else None


def _hyphened(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def quiet_libraries() -> None:
    """Hides what libraries log while they load a model; this package's own warnings are shown."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # Logs of the retries of the Hub's client would hide the one line with the reason.
    hub_logging.set_verbosity_error()


def fail(error: object) -> int:
    """Prints one line on standard error and returns the exit status 1."""
    sys.stderr.write(f"error: {printable(one_line(error))}\n")
    return 1


def print_json(result: Any) -> None:
    """Prints a result as strict JSON: NaN and infinity become null."""
    sys.stdout.write(f"{to_json(result)}\n")


def print_report(lines: Iterable[str]) -> None:
    """Prints notes on standard error, because standard output is for the result alone."""
    for line in lines:
        # A name need not be valid Unicode.
        text = os.fsencode(line).decode(errors="replace")
        # Several spaces stay: they align columns.
        sys.stderr.write(f"{' '.join(text.splitlines())}\n")


__all__ = [
    "MOST_LETTERS",
    "CommandParser",
    "fail",
    "print_json",
    "print_report",
    "quiet_libraries",
    "similar_flag",
]
