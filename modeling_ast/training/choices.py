"""What a run chose itself: an argument, its value and the reason, for the log and the card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

# The reason for a value that the user gave.
GIVEN = "given"


class Choice(NamedTuple):
    """A chosen argument of a run: its name, its value, and the reason."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.value_text} {self.reason}"

    @property
    def value_text(self) -> str:
        """The value as it is printed."""
        if self.value is None:
            return "none"
        value = getattr(self.value, "value", self.value)  # of an enumeration
        return f"{value:.4g}" if isinstance(value, float) else str(value)


def choice_lines(choices: Sequence[Choice]) -> list[str]:
    """A line for each choice, in columns: name, value, reason."""
    names = max((len(choice.name) for choice in choices), default=0)
    values = max((len(choice.value_text) for choice in choices), default=0)
    return [f"{row.name:<{names}}  {row.value_text:<{values}}  {row.reason}" for row in choices]


__all__ = ["GIVEN", "Choice", "choice_lines"]
