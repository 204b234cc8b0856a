"""clip_page.py and worst_clips.py, against a browser that loads the page, an HTML parser and
soundfile."""

import base64
import csv
import functools
import html
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset

from modeling_ast import ASTFeatureExtractor
from modeling_ast.labels import Label
from modeling_ast.training.answers import Answers
from modeling_ast.training.clip_page import PageClip, PageSection, write_page
from modeling_ast.training.clips import ClipReader
from modeling_ast.training.held_out import held_out_clips
from modeling_ast.training.worst_clips import worst_page, write_table

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NAMES = ["kick", "snare", "tom", "bell"]
# A hostile text: markup, an attribute's end, direction marks, a bell, a line break.
STRANGE = "<script>document.title='x'</script>\" onerror='x' &amp; \u202eab\x07c\nd/😀.wav"


@pytest.fixture
def extractor():
    return ASTFeatureExtractor(max_length=128)


@pytest.fixture
def sounds(tmp_path):
    """Twelve files with different tones, rates, lengths and levels."""
    files = []
    for index in range(12):
        rate = (16000, 44100, 8000)[index % 3]
        times = np.arange(int(rate * (0.1 + 0.4 * index))) / rate
        path = tmp_path / f"{index:02}.wav"
        tone = (0.1 + 0.3 * (index % 4)) * np.sin(2 * np.pi * 300 * (1 + index) * times)
        soundfile.write(path, np.stack([tone, tone], 1), rate, "FLOAT")
        files.append(str(path))
    return files


def held_out_of(files, targets, exclusive):
    labels = [[NAMES[i] for i in np.flatnonzero(row)] for row in targets]
    rows = Dataset.from_dict({"audio": files, "label": labels})
    classes = [Label(name, name) for name in NAMES]
    return held_out_clips(rows, ClipReader(), classes, "label", exclusive)


def answers_of(files, exclusive, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.eye(4)[rng.integers(0, 4, len(files))]
    if not exclusive:
        targets = (rng.random((len(files), 4)) < 0.4).astype(float)
    scores = rng.random((len(files), 4))
    scores = scores / scores.sum(1, keepdims=True) if exclusive else scores
    return Answers(scores, targets, NAMES, exclusive, files)


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def sounds_of(page):
    sources = [attributes["src"] for attributes in Elements(page.html).of("audio")]
    contents = [
        base64.b64decode(source.removeprefix("data:audio/flac;base64,")) for source in sources
    ]
    return [soundfile.read(io.BytesIO(content)) for content in contents]


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_page_has_the_worst_clips(sounds, extractor, exclusive):
    answers = answers_of(sounds, exclusive)
    held_out = held_out_of(sounds, answers.targets, exclusive)
    page = worst_page(answers, held_out, extractor, 4, "a model")
    assert "The worst mistakes of 'a model'" in html.unescape(page.html)
    assert "only the beginning is played, but its score is that of the whole clip" in page.html
    elements = Elements(page.html)
    kinds = [("confused",)] if exclusive else [("false positive",), ("missed",)]
    expected = []
    for (kind,) in kinds:
        clips = dict.fromkeys(row.clip for row in answers.mistakes if row.kind == kind)
        expected += list(clips)[: 4 // len(kinds)]
    names = [attributes["aria-label"] for attributes in elements.of("audio")]
    assert names == [f"Play {sounds[clip]}" for clip in expected]
    assert page.num_clips == 4 and not page.is_full
    # The sound is that of the file, mono, at the model's rate, cut to the model's length.
    for clip, (samples, rate) in zip(expected, sounds_of(page), strict=True):
        whole, own_rate = soundfile.read(sounds[clip])
        seconds = min(len(whole) / own_rate, extractor.max_samples / 16000)
        assert rate == 16000 and samples.ndim == 1
        assert len(samples) / rate == pytest.approx(seconds, abs=1e-3)
        loudness = min(np.abs(whole).max(), 1.0)
        assert np.abs(samples).max() == pytest.approx(loudness, abs=0.05)
    for name in NAMES:
        assert (f"{name} (" in elements.text) or exclusive


def test_nothing_of_a_stranger_is_markup(extractor):
    clip = PageClip(STRANGE, [(STRANGE, STRANGE)], torch.zeros(8000))
    broken = PageClip(STRANGE, [], None, STRANGE)
    page = write_page(STRANGE, [STRANGE], [PageSection(STRANGE, [clip, broken])], extractor)
    elements = Elements(page.html)
    assert {tag for tag, _ in elements.found} == {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p"),
        *("ol", "li", "dl", "dt", "dd", "bdi", "div", "img", "span", "audio"),
    }
    assert not [key for _, attributes in elements.found for key in attributes if key[:2] == "on"]
    shown = STRANGE.replace("\u202e", r"\u202e").replace("\x07", r"\x07").replace("\n", r"\n")
    # Title, heading, note, section, the names of two clips, a fact, its value, an error.
    assert elements.text.count(shown) == 9
    assert elements.of("img")[0]["alt"] == f"Spectrogram of {shown}, 0.50 s"
    assert "cannot be played: " in elements.text
    (policy,) = [x["content"] for x in elements.of("meta") if "http-equiv" in x]
    assert "default-src 'none'" in policy and "script" not in policy
    # Nothing is loaded from elsewhere.
    for _, attributes in elements.found:
        assert attributes.get("src", "data:").startswith("data:") and "href" not in attributes
    assert "url(" not in page.html and "@import" not in page.html


def test_the_size_is_bounded(extractor):
    rng = np.random.default_rng(0)
    noise = [torch.from_numpy(rng.uniform(-1, 1, 20000).astype(np.float32)) for _ in range(9)]
    read = []

    def clips():
        for index, waveform in enumerate(noise):
            read.append(index)
            yield PageClip(f"{index}", [], waveform)

    page = write_page("t", [], [PageSection("", clips())], extractor, max_bytes=250_000)
    assert page.is_full and 1 <= page.num_clips < 9 and len(page.html) < 260_000
    assert "Some clips are left out, as the page would exceed 0.25 MB" in page.html
    assert len(read) == page.num_clips + 1
    quiet = write_page("t", [], [PageSection("", clips())], extractor)
    assert quiet.num_clips == 9 and "Some clips are left out" not in quiet.html


def test_loud_and_silent_clips(extractor):
    clips = [
        PageClip("loud", [], 5 * torch.sin(torch.arange(8000.0))),
        PageClip("0", [], torch.zeros(400)),
    ]
    loud, silent = sounds_of(write_page("t", [], [PageSection("", clips)], extractor))
    assert np.abs(loud[0]).max() == pytest.approx(1.0, abs=1e-3) and not silent[0].any()


def test_a_clip_that_is_gone(sounds, extractor):
    answers = answers_of(sounds, True)
    gone = answers.mistakes[1].clip
    files = [*sounds[:gone], "nowhere.wav", *sounds[gone + 1 :]]
    page = worst_page(answers, held_out_of(files, answers.targets, True), extractor, 3, "m")
    elements = Elements(page.html)
    assert page.num_clips == 3 and len(elements.of("audio")) == 2
    assert re.search("cannot be played: .*nowhere.wav", elements.text)


def test_the_table(sounds, tmp_path):
    for exclusive in (True, False):
        answers = answers_of(sounds, exclusive)
        write_table(answers, tmp_path / "worst.csv")
        with (tmp_path / "worst.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["file", "true", "predicted", "score", "mistake"]
        assert len(rows) == len(answers.mistakes)
        for row, mistake in zip(rows, answers.mistakes):
            assert row["file"] == mistake.file and row["mistake"] == mistake.kind
            assert row["true"].split("; ") == (list(mistake.true) or [""])
            assert float(row["score"]) == pytest.approx(mistake.score, abs=1e-6)


# Reads the page from outside, because the page itself runs no script.
WATCHER = """<!DOCTYPE html><title>watcher</title>
<iframe src="page.html" width="WIDTH" height="800"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = async () => {
  const page = frame.contentDocument;
  const players = [...page.querySelectorAll("audio")];
  const images = [...page.querySelectorAll("img")];
  const until = Date.now() + 20000;
  while (players.some((x) => x.readyState < 1 && !x.error) && Date.now() < until)
    await new Promise((resolve) => setTimeout(resolve, 50));
  await Promise.all(images.map((image) => image.decode().catch(() => null)));
  players[0].focus();
  const body = {
    durations: players.map((x) => (x.error ? -1 : x.duration)),
    images: images.map((x) => x.naturalWidth),
    wide: page.documentElement.scrollWidth,
    focused: page.activeElement === players[0],
    tabs: players.map((x) => x.tabIndex),
    title: page.title,
    back: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  };
  await fetch("/seen", { method: "POST", body: JSON.stringify(body) });
};
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    seen: dict
    done: threading.Event

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).seen = json.loads(content)
        self.send_response(204)
        self.end_headers()
        type(self).done.set()

    def log_message(self, *arguments):
        pass


def in_chromium(html, folder, width, *flags):
    """The state of the page in a browser window of this width."""
    (folder / "page.html").write_text(html, encoding="utf-8")
    (folder / "watcher.html").write_text(WATCHER.replace("WIDTH", str(width)))
    handler = type("Handler", (Server,), {"done": threading.Event()})
    served = functools.partial(handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/watcher.html"
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *flags]
        command += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0", url]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as browser:
            finished = handler.done.wait(60)
            browser.terminate()
        server.shutdown()
    assert finished, "the browser did not finish"
    return handler.seen


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_in_chromium(sounds, extractor, tmp_path):
    """At 400 pixels players know their lengths, pictures are decoded, and nothing overflows."""
    answers = answers_of(sounds, False)
    names = [f"{STRANGE}{'long' * 30}{index}" for index in range(len(sounds))]
    named = Answers(answers.scores, answers.targets, NAMES, False, names)
    page = worst_page(named, held_out_of(sounds, answers.targets, False), extractor, 30, STRANGE)
    assert page.num_clips > 8
    seen = in_chromium(page.html, tmp_path, 400)
    expected = [len(samples) / rate for samples, rate in sounds_of(page)]
    assert seen["durations"] == pytest.approx(expected, abs=0.02)
    assert len(seen["images"]) == page.num_clips and min(seen["images"]) >= 8
    assert seen["wide"] <= 400 and seen["focused"] and set(seen["tabs"]) == {0}
    assert "document.title='x'" in seen["title"] and re.match(r"rgb\(255", seen["back"])
    dark = in_chromium(page.html, tmp_path, 1200, "--blink-settings=preferredColorScheme=0")
    assert dark["back"] == "rgb(19, 19, 22)"
