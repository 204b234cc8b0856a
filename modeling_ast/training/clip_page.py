"""Clips -> one HTML page that plays them and shows their spectrograms, without any other file.

Sound and pictures are data URIs. The page has no script, and its Content Security Policy forbids
loading anything: it works offline, and file names or labels from a stranger cannot do any harm.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import printable
from ..plotting import mel_bin

# Size limit of the page, so that a browser opens it quickly and it can be sent by e-mail.
MOST_BYTES = 10_000_000
TICKS_KHZ = (0.5, 1, 2, 4, 8, 16)
SECONDS_BETWEEN_TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
MOST_TICKS = 6
# Largest width of a picture in pixels; a pixel shows the highest value of its frames.
MOST_COLUMNS = 512
# Range of a picture below its loudest value, in natural logarithms of power: 61 dB.
SHOWN_RANGE = 14.0

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1f; --faint: #5c5c66; --back: #fff; --card: #f4f4f7;
  --line: #d0d0d8; --accent: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --text: #ececf1; --faint: #a9a9b4; --back: #131316;
  --card: #1e1e23; --line: #3a3a43; --accent: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.3; } h2 { font-size: 1.15rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 0; }
.note { color: var(--faint); max-width: 45rem; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .8rem; margin: .3rem 0 .6rem; }
dt { color: var(--faint); } dd { margin: 0; font-weight: 600; }
.picture { position: relative; margin: 0 0 1.5rem 2.2rem; }
.picture img { display: block; width: 100%; height: 9rem; background: #000; }
.picture span { position: absolute; font-size: .7rem; line-height: 1; color: var(--faint);
  white-space: nowrap; }
.khz { right: calc(100% + .3rem); transform: translateY(50%); }
.seconds { top: calc(100% + .3rem); transform: translateX(-50%); }
audio { width: 100%; display: block; }
audio:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
"""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


class PageClip(NamedTuple):
    """A clip of the page."""

    name: str
    facts: Sequence[tuple[str, str]]  # names and values that are shown with it
    waveform: Tensor | None  # (S,); None if the clip cannot be read
    error: str = ""  # why it cannot be read


class PageSection(NamedTuple):
    """Clips below one heading."""

    heading: str
    clips: Iterable[PageClip]


class Page(NamedTuple):
    """A finished page."""

    html: str
    num_clips: int  # number of clips on the page
    is_full: bool  # whether clips were left out because of the size limit


def write_page(
    title: str,
    notes: Sequence[str],
    sections: Sequence[PageSection],
    extractor: ASTFeatureExtractor,
    max_bytes: int = MOST_BYTES,
) -> Page:
    """Writes the page.

    Args:
        title: The heading.
        notes: Paragraphs below it. All texts are escaped, so that they may hold any characters.
        sections: Their clips are read one after the other. Each section gets an equal share of
            `max_bytes`; its clips that do not fit are left out.
        extractor: The model's extractor: clips are cut to its length, and pictures show its mel
            bins.
        max_bytes: Size limit of all clips with their sound and pictures.
    """
    parts, count, is_full = [], 0, False
    for section in sections:
        rows: list[str] = []
        room = max_bytes // len(sections)
        for clip in section.clips:
            row = clip_html(clip, len(rows) + 1, extractor)
            room -= len(row.encode())
            if room < 0:
                is_full = True
                break
            rows.append(row)
        count += len(rows)
        if rows:
            heading = f"<h2>{plain(section.heading)}</h2>" if section.heading else ""
            parts.append(f"{heading}<ol>\n{''.join(rows)}</ol>")
    if is_full:
        megabytes = max_bytes / 1e6
        parts.append(
            f'<p class="note">Some clips are left out, as the page would exceed {megabytes:g} MB.'
            f"</p>\n"
        )
    paragraphs = "".join(f'<p class="note">{plain(note)}</p>\n' for note in notes)
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{plain(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{plain(title)}</h1>
{paragraphs}{"".join(parts)}
</main>
</body>
</html>
"""
    return Page(html, count, is_full)


def plain(text: object) -> str:
    """Escapes a text for HTML, so that it cannot hold markup or change the direction of others."""
    return escape(printable(text))


def clip_html(clip: PageClip, number: int, extractor: ASTFeatureExtractor) -> str:
    """The entry of one clip."""
    facts = "".join(
        f"<dt>{plain(name)}</dt><dd><bdi>{plain(value)}</bdi></dd>" for name, value in clip.facts
    )
    shown = f"<p>cannot be played: {plain(clip.error)}</p>"
    if clip.waveform is not None:
        # The part of the clip that the model gets.
        cut = clip.waveform[: extractor.max_samples]
        sound = base64.b64encode(flac(cut, extractor.sampling_rate)).decode()
        shown = (
            f"{picture_html(cut, clip.name, extractor)}"
            f'<audio controls preload="metadata" aria-label="{plain(f"Play {clip.name}")}" '
            f'src="data:audio/flac;base64,{sound}"></audio>'
        )
    name = f"{number}. <bdi>{plain(clip.name)}</bdi>"
    return f"<li><h3>{name}</h3><dl>{facts}</dl>{shown}</li>\n"


def flac(waveform: Tensor, sampling_rate: int) -> bytes:
    """A waveform (S,) as the content of a 16-bit FLAC file; one beyond [-1, 1] is scaled down."""
    import soundfile

    samples = waveform.detach().cpu().numpy()
    samples = samples / max(1.0, float(np.abs(samples).max(initial=0.0)))
    content = io.BytesIO()
    soundfile.write(content, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def picture_html(waveform: Tensor, name: str, extractor: ASTFeatureExtractor) -> str:
    """The spectrogram of a waveform (S,) with axes in the colours of the page."""
    seconds = len(waveform) / extractor.sampling_rate
    image = base64.b64encode(spectrogram_jpeg(waveform, extractor)).decode()
    khz = [tick for tick in TICKS_KHZ if tick <= extractor.sampling_rate / 2000]
    marks = [
        f'<span class="khz" style="bottom:{_height(tick, extractor):.1f}%">{tick:g}'
        f"{' kHz' if tick == khz[-1] else ''}</span>"
        for tick in khz
    ]
    step = next(
        (step for step in SECONDS_BETWEEN_TICKS if seconds / step <= MOST_TICKS), math.ceil(seconds)
    )
    times = [tick * step for tick in range(int(seconds / step) + 1)]
    marks += [
        f'<span class="seconds" style="left:{100 * time / seconds:.1f}%">{time:g}'
        f"{' s' if time == times[-1] else ''}</span>"
        for time in times
    ]
    return (
        f'<div class="picture"><img alt="{plain(f"Spectrogram of {name}, {seconds:.2f} s")}" '
        f'src="data:image/jpeg;base64,{image}">{"".join(marks)}</div>'
    )


def _height(khz: float, extractor: ASTFeatureExtractor) -> float:
    """The position of a frequency, in percent of the picture's height."""
    share = mel_bin(1000 * khz, extractor) / extractor.num_mel_bins
    return 100 * min(max(share, 0.0), 1.0)


def spectrogram_jpeg(waveform: Tensor, extractor: ASTFeatureExtractor) -> bytes:
    """The log-mel spectrogram of a waveform (S,); a column of pixels is one frame or several."""
    from matplotlib.image import imsave

    with torch.no_grad():
        frames = extractor.log_mel(waveform).cpu().numpy()  # (T, F)
    size = -(-len(frames) // MOST_COLUMNS)
    edges = np.arange(0, len(frames), size)
    image = np.maximum.reduceat(frames, edges).T  # (F, N)
    highest = float(image.max())
    content = io.BytesIO()
    imsave(
        content,
        image,
        vmin=highest - SHOWN_RANGE,
        vmax=highest,
        cmap="magma",
        origin="lower",
        format="jpeg",
        pil_kwargs={"quality": 85},
    )
    return content.getvalue()


__all__ = ["MOST_BYTES", "Page", "PageClip", "PageSection", "write_page"]
