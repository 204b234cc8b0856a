"""The parser of the verbs whose flags come from dataclasses, such as Trainer's arguments."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from transformers import HfArgumentParser

from .output import CommandParser


class Group(NamedTuple):
    """A part of --help."""

    title: str
    sentence: str
    # The flags of its dataclass that --help shows, each with its help; --help-all shows the others
    # too. None shows all, with the help of the dataclass.
    shown: Mapping[str, str] | None = None


class DataclassParser(CommandParser, HfArgumentParser):
    """An HfArgumentParser whose --help and messages write flags with hyphens only.

    Args:
        verb: Of `modeling-ast`.
        dataclass_types: Their fields become the flags.
        groups: For a dataclass, the part of --help that has its flags; without one they are among
            the other options.
        kwargs: Arguments of ArgumentParser. Give `usage`, because otherwise argparse prints all
            flags at every mistake.
    """

    def __init__(
        self,
        verb: str,
        dataclass_types: Sequence[type],
        groups: Mapping[type, Group] | None = None,
        **kwargs,
    ):
        kwargs.setdefault("formatter_class", ShortHelp)
        self._groups = groups or {}
        self._kinds = {entry.name: kind for kind in dataclass_types for entry in fields(kind)}
        self._parts: dict[type, argparse._ArgumentGroup] = {}
        self._hidden: list[tuple[argparse.Action, str | None]] = []
        super().__init__(verb, dataclass_types=dataclass_types, **kwargs)
        if self._hidden:
            self.add_argument(
                "--help-all",
                action=HelpAll,
                nargs=0,
                help="also show the flags that are rarely used",
            )

    def add_argument(self, *names: str, **kwargs):
        """As in ArgumentParser, but without the spellings that have underscores.

        CommandParser turns underscores in flags into hyphens.
        """
        name = names[0].lstrip("-").replace("-", "_")
        kind = self._kinds.get(name) or self._kinds.get(name.removeprefix("no_"))
        flags = [name for name in names if not (name.startswith("--") and "_" in name)]
        group = self._groups.get(kind) if kind else None
        if kind is None or group is None:
            return super().add_argument(*flags, **kwargs)
        if kind not in self._parts:
            self._parts[kind] = self.add_argument_group(group.title, group.sentence)
        if group.shown is not None:
            first_sentence = (kwargs.get("help") or "").partition(". ")[0]
            kwargs["help"] = group.shown.get(name, first_sentence)
        action = self._parts[kind].add_argument(*flags, **kwargs)
        is_opposite = name not in self._kinds
        if is_opposite or (group.shown is not None and name not in group.shown):
            self._hidden.append((action, action.help))
            action.help = argparse.SUPPRESS
        return action

    def show_all(self) -> None:
        """Makes the help show all flags."""
        for action, text in self._hidden:
            action.help = text

    def given_names(self, arguments: Iterable[str]) -> frozenset[str]:
        """The names of the flags that are given on the command line."""
        absent = object()
        blank = argparse.Namespace(**{action.dest: absent for action in self._actions})
        found, _ = self.parse_known_args(list(arguments), blank)
        return frozenset(name for name, value in vars(found).items() if value is not absent)

    def read(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Parses; an unknown flag ends the process as wrong usage.

        Returns:
            An instance of each dataclass and, if other arguments were added, their namespace.
        Raises:
            ValueError: A dataclass refuses the values.
        """
        # By default it would also read a file of arguments that is named after the script.
        *parsed, unknown = self.parse_args_into_dataclasses(
            list(arguments), return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            self.refuse(unknown)
        return tuple(parsed)


class ShortHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows only informative defaults, and short names for values."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, **{"max_help_position": 34, **kwargs})

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        # HfArgumentParser passes an optional type such as `int | None` unchanged.
        kind = str(getattr(action.type, "__name__", action.type))
        return "N" if "int" in kind else "X" if "float" in kind else "VALUE"

    def _format_args(self, action, default_metavar):
        # A switch: its value (yes or no) is optional, and is not shown.
        is_switch = action.nargs == argparse.OPTIONAL and action.const is True
        return "" if is_switch else super()._format_args(action, default_metavar)


class HelpAll(argparse.Action):
    """--help-all: prints the help of all flags."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.show_all()
        parser.print_help()
        parser.exit()


__all__ = ["DataclassParser", "Group"]
