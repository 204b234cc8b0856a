"""The scores at several lengths under both paddings: as a table, a picture, a section of a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..labels import printable
from ..plotting import plain_text
from .lengths import Lengths

LENGTH_PICTURE = "score_by_length.png"
# A note for readers of the scores under both paddings.
PLAIN_TRANSFORMERS = "plain transformers and transformers.js always pad to max_length"


def length_table(lengths: Mapping[str, Lengths], metric: str) -> str:
    """A table for a terminal, with a line for each model and padding.

    Args:
        lengths: Model name -> its scores, all on the same clips; at least one.
        metric: The metric to show.
    """
    first = next(iter(lengths.values()))
    width = max(len(printable(name)) for name in lengths)
    heads = [*(f"{seconds:g} s" for seconds in first.seconds), "whole"]
    lines = [
        f"{metric} on {first.num_clips} clips: on the loudest part of each length, and on whole "
        f"clips (median {first.whole_seconds:.3g} s)",
        f"{'':<{width}}  {'padding':<10}" + "".join(f"{head:>9}" for head in heads),
    ]
    for name, judged in lengths.items():
        for padding, values in judged.values(metric).items():
            numbers = "".join(f"{value:>9.4f}" for value in values)
            lines.append(f"{printable(name):<{width}}  {padding:<10}{numbers}")
    lines.append(f"({PLAIN_TRANSFORMERS})")
    return "\n".join(lines) + "\n"


def length_section(lengths: Lengths, metric: str, padding: str) -> str:
    """A section of a model card, with a table and the picture; empty without results.

    Args:
        lengths: The scores of the model.
        metric: The metric to show.
        padding: The padding that is saved with the model.
    """
    if not lengths.results:
        return ""
    heads = [*(f"{seconds:g} s" for seconds in lengths.seconds), "whole"]
    rows = [
        f"| `{name}` | " + " | ".join(f"{value:.4f}" for value in values) + " |"
        for name, values in lengths.values(metric).items()
    ]
    return "\n".join(
        (
            f"""
## Short clips

{metric} on {lengths.num_clips} of the held-out clips: on the loudest part of each length, and on
whole clips (median {lengths.whole_seconds:.3g} s). A short clip is padded to the length of the
model's input (`max_length`), or its padding is hidden from the model (`longest`). The padding that
is saved with this model is `{padding}`; {PLAIN_TRANSFORMERS}.

| padding | {" | ".join(heads)} |
| --- |{" ---: |" * len(heads)}""",
            *rows,
            "",
            f"![score against the length of a clip]({LENGTH_PICTURE})",
            "",
        )
    )


def draw_lengths(curves: Mapping[str, Lengths], metric: str, path: Path) -> None:
    """Draws a metric against the length of the clips, a line for each model and padding.

    Args:
        curves: Name -> scores, all on the same clips; at least one. Several are shown with names.
        metric: The metric to draw.
        path: The PNG to write.
    """
    # Not pyplot, which keeps a list of pictures and may open windows.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    first = next(iter(curves.values()))
    heads = [
        *(f"{seconds:g}" for seconds in first.seconds),
        f"whole\n(median {first.whole_seconds:.3g})",
    ]
    # Lengths as categories: whole clips come last, however short they are.
    places = range(len(heads))
    axis.set_xticks(places, heads)
    axis.axvline(len(heads) - 1.5, color="0.7", linewidth=1)
    for number, (name, lengths) in enumerate(curves.items()):
        for (padding, values), style in zip(lengths.values(metric).items(), ("--o", "-s")):
            label = f"{plain_text(name)}, {padding}" if len(curves) > 1 else padding
            # One model has a colour for each padding, several a colour each.
            color = f"C{(number if len(curves) > 1 else style == '-s') % 10}"
            axis.plot(places, values, style, color=color, markersize=4, label=label)
    axis.set(xlabel="length of the clips in seconds", ylabel=metric, ylim=(0, 1.04))
    axis.set_xlim(-0.5, len(heads) - 0.5)
    axis.grid(alpha=0.3)
    axis.legend(loc="best", title="padding" if len(curves) == 1 else None)
    figure.savefig(path, dpi=120)


__all__ = [
    "LENGTH_PICTURE",
    "PLAIN_TRANSFORMERS",
    "draw_lengths",
    "length_section",
    "length_table",
]
