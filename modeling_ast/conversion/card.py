"""Model cards: the metadata that the Hub reads, then sections of Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from ..labels import printable
from .report import format_table
from .result import Conversion

# Metadata in the card of every model of this package.
METADATA = {
    "pipeline_tag": "audio-classification",
    "library_name": "transformers",
    "tags": ["audio-spectrogram-transformer", "audio-classification", "modeling_ast"],
}


# Characters with a meaning in Markdown, HTML or formulas. A backslash before such a character makes
# it plain text.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~$&!]")


class Origin(NamedTuple):
    """Where the weights of a conversion come from."""

    name: str
    base_model: str | None  # its name on the Hub
    license: str
    how: str  # one or two sentences on how it was converted


def write_card(title: str, metadata: Mapping[str, Any], sections: Iterable[str]) -> str:
    """A model card.

    Args:
        title: The heading.
        metadata: Arguments of huggingface_hub's `ModelCardData`, such as `license`, `base_model`
            and `eval_results`; `METADATA` is added.
        sections: Texts in Markdown.
    Returns:
        The text of README.md.
    """
    data = ModelCardData(**METADATA | dict(metadata))
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}", *map(str.strip, sections)]
    return "\n\n".join(parts) + "\n"


def markdown_text(text: object) -> str:
    """Escapes a text for Markdown and HTML, so that it cannot hold links, tags or formulas."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def write_conversion_card(conversion: Conversion, origin: Origin, command: Sequence[str]) -> str:
    """The model card of a conversion: its source, its size, and what happened to each weight.

    Args:
        conversion: The conversion that is saved beside the card.
        origin: Where its weights come from.
        command: The words of the command that converted it.
    """
    config = conversion.config
    rows, columns = config.patch_grid()
    size = f"""
- {config.num_mel_bins} mel bins x {config.max_length} frames, {rows} x {columns} patches
  (frequency x time), strides {config.frequency_stride} and {config.time_stride}
- {config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_labels} labels
"""
    return write_card(
        f"Audio Spectrogram Transformer from {origin.name}",
        {"base_model": origin.base_model, "license": origin.license},
        [
            origin.how,
            size,
            "Made with:",
            f"```\n{shlex.join(command)}\n```",
            "Weights:",
            f"```\n{format_table(conversion.rows)}\n```",
        ],
    )


__all__ = ["Origin", "markdown_text", "write_card", "write_conversion_card"]
