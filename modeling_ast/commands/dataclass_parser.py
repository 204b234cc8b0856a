"""The parser of those verbs whose flags come from dataclasses, Trainer's arguments among them."""

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
    # Of the flags of its dataclass; the others are shown by --help-all. None: all are shown.
    shown: frozenset[str] | None = None


class DataclassParser(CommandParser, HfArgumentParser):
    """An HfArgumentParser whose --help and messages write flags with hyphens only.

    Args:
        verb: Of `modeling-ast`.
        dataclass_types: Their fields become the flags.
        groups: Of a dataclass, the part of --help that its flags are in; by default they stand
            among the other options.
        kwargs: Of ArgumentParser. Give `usage`: argparse would print all flags at every mistake.
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
                "--help-all", action=HelpAll, nargs=0, help="show those flags too that are rare"
            )

    def add_argument(self, *names: str, **kwargs):
        """As ArgumentParser's, without the spellings that have underscores.

        CommandParser reads them as those with hyphens.
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
            kwargs["help"] = (kwargs.get("help") or "").partition(". ")[0]
        action = self._parts[kind].add_argument(*flags, **kwargs)
        is_opposite = name not in self._kinds
        if is_opposite or (group.shown is not None and name not in group.shown):
            self._hidden.append((action, action.help))
            action.help = argparse.SUPPRESS
        return action

    def show_all(self) -> None:
        """Has the help show all flags."""
        for action, text in self._hidden:
            action.help = text

    def given_names(self, arguments: Iterable[str]) -> frozenset[str]:
        """The names of the flags that stand in the command line."""
        absent = object()
        blank = argparse.Namespace(**{action.dest: absent for action in self._actions})
        found, _ = self.parse_known_args(list(arguments), blank)
        return frozenset(name for name, value in vars(found).items() if value is not absent)

    def read(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Parses; an unknown flag ends the process as wrong usage.

        Returns:
            An instance of each dataclass and, if further arguments were added, their namespace.
        Raises:
            ValueError: A dataclass refuses the values.
        """
        # Without look_for_args_file=False it would read sys.argv and files named after it.
        *parsed, unknown = self.parse_args_into_dataclasses(
            list(arguments), return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}; see --help")
        return tuple(parsed)


class ShortHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults that say something only, and short names for values."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, **{"max_help_position": 34, **kwargs})

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        # HfArgumentParser gives an optional type such as `int | None` as it is.
        kind = str(getattr(action.type, "__name__", action.type))
        return "N" if "int" in kind else "X" if "float" in kind else "VALUE"

    def _format_args(self, action, default_metavar):
        # A switch: yes and no may follow it, but need not.
        is_switch = action.nargs == argparse.OPTIONAL and action.const is True
        return "" if is_switch else super()._format_args(action, default_metavar)


class HelpAll(argparse.Action):
    """--help-all: the help of all flags."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.show_all()
        parser.print_help()
        parser.exit()


__all__ = ["DataclassParser", "Group"]
