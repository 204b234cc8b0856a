"""Pictures of what a model hears; matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path

from .audio import read_clip
from .errors import need_extra
from .feature_extraction_ast import ASTFeatureExtractor
from .labels import printable
from .outputs import check_output_file
from .tagging import ClipTags, equal_parts


def draw_tags(results: list[ClipTags], extractor: ASTFeatureExtractor, path: str | Path) -> None:
    """Draws a row for each file: the spectrogram of its first part, and its labels.

    Args:
        results: Of files, which are read again; none of them bad.
        path: Of the picture; its suffix says the format.
    Raises:
        MissingExtra: matplotlib is not installed.
        OSError, ValueError: A file is gone, or the picture cannot be written.
    """
    need_extra("matplotlib", "train", "a picture").use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(results),
        2,
        figsize=(10, 2.6 * len(results)),
        width_ratios=(3, 2),
        squeeze=False,
        layout="constrained",
    )
    rate = extractor.sampling_rate
    for (left, right), result in zip(axes, results):
        waveform = read_clip(result.name, rate, min_samples=extractor.window_samples)  # (S,)
        start, stop = equal_parts(len(waveform), extractor.max_samples)[0]
        frames = extractor.extract([waveform[start:stop]]).input_values[0]  # (T, F)
        shown = frames[: extractor.count_frames(stop - start)]
        extent = (0, len(shown) / extractor.frames_per_second, 0, shown.shape[1])
        left.imshow(shown.T, origin="lower", aspect="auto", extent=extent, cmap="magma")
        left.set(title=plain_text(Path(result.name).name), xlabel="seconds", ylabel="mel bin")
        labels, scores = zip(*reversed(result.labels.items()))
        right.barh(range(len(labels)), scores, color="tab:orange")
        right.set_yticks(range(len(labels)), list(map(plain_text, labels)))
        right.set(xlim=(0, 1), xlabel="score")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def check_picture(path: str | Path) -> None:
    """Refuses a picture that could not be written at the end of the work.

    Args:
        path: Its suffix says the format.
    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: There is no such format, or the file cannot be written.
    """
    bases = need_extra("matplotlib.backend_bases", "train", "a picture")
    formats = bases.FigureCanvasBase.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise ValueError(
            f"cannot draw {path}: its name must end in one of {', '.join(sorted(formats))}"
        )
    check_output_file(path)


def plain_text(text: str) -> str:
    """A text as matplotlib draws it: no formula, no line break."""
    # A pair of dollar signs would enclose a formula.
    return printable(text).replace("$", r"\$")


__all__ = ["check_picture", "draw_tags", "plain_text"]
