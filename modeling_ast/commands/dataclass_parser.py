"""The parser of those verbs whose flags come from dataclasses, Trainer's arguments among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser

from .output import CommandParser


class DataclassParser(CommandParser, HfArgumentParser):
    """An HfArgumentParser whose --help and messages write flags with hyphens only.

    Args:
        verb: Of `modeling-ast`.
        dataclass_types: Their fields become the flags.
        kwargs: Of ArgumentParser. Give `usage`: argparse would print all flags at every mistake.
    """

    def __init__(self, verb: str, dataclass_types: Sequence[type], **kwargs):
        super().__init__(verb, dataclass_types=dataclass_types, **kwargs)

    def add_argument(self, *names: str, **kwargs):
        """As ArgumentParser's, without the spellings that have underscores.

        CommandParser reads them as those with hyphens.
        """
        flags = [name for name in names if not (name.startswith("--") and "_" in name)]
        return super().add_argument(*flags, **kwargs)

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


__all__ = ["DataclassParser"]
