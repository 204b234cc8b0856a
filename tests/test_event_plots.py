"""Pictures of events: their bars, thresholds and pages."""

import re

import numpy as np
import pytest
import soundfile

from modeling_ast import ASTFeatureExtractor, Event
from modeling_ast.event_plots import ScoreColumns, ScorePages, draw_events
from modeling_ast.events import Detection, ScoreBlock
from modeling_ast.recordings import BadStretch

RATE = 16_000
LABELS = ["Siren", "Dog $5", "never"]
HALVES = [0.5, 0.5, 0.5]


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn."""
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    return drawn


def some_scores(num_steps):
    scores = np.zeros((num_steps, 3), np.float32)
    scores[1000:1200, 0], scores[50:70, 1] = 0.9, 0.8
    return scores


def test_events_are_drawn_as_bars(tmp_path, figures):
    soundfile.write(tmp_path / "$a$.wav", np.zeros(400 * RATE), RATE)
    columns = ScoreColumns(0.1, LABELS, HALVES)
    columns.add(ScoreBlock(0, some_scores(4000)))
    events = [Event(5.0, 7.0, "Dog $5", 0.8), Event(100.0, 120.0, "Siren", 0.9)]
    stretches = [BadStretch(200.0, 210.0, "NaN"), BadStretch(390.0, None, "damaged")]
    detection = Detection(str(tmp_path / "$a$.wav"), 400.0, events, stretches)
    draw_events(detection, columns, ASTFeatureExtractor(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    _, middle, bottom = figure.axes
    assert [text.get_text() for text in middle.get_yticklabels()] == ["Siren", r"Dog \$5"]
    spans = [
        path.get_extents().intervalx.tolist()
        for collection in middle.collections
        for path in collection.get_paths()
    ]
    assert spans == [[100.0, 120.0], [5.0, 7.0]]
    assert len(bottom.lines) == 4  # a threshold for all
    assert list(bottom.lines[1].get_ydata()) == [0.5, 0.5]
    assert bottom.lines[0].get_ydata().max() == np.float32(0.9)
    times = bottom.lines[0].get_xdata()[bottom.lines[0].get_ydata() > 0.5]
    assert times.min() == pytest.approx(100, abs=0.4) and times.max() == pytest.approx(120, abs=0.4)
    assert bottom.get_xlabel() == "minutes:seconds"


def test_no_events(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000), 16_000)
    detection = Detection(str(tmp_path / "a.flac"))
    draw_events(
        detection, ScoreColumns(0.1, ["a"], [0.5]), ASTFeatureExtractor(), tmp_path / "a.svg"
    )
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_each_label_has_its_threshold(tmp_path, figures):
    soundfile.write(tmp_path / "a.wav", np.zeros(130 * RATE), RATE)
    columns = ScoreColumns(0.1, LABELS, [0.5, 0.3, 0.9])
    columns.add(ScoreBlock(0, some_scores(1300)))
    detection = Detection(str(tmp_path / "a.wav"), 130.0)
    draw_events(detection, columns, ASTFeatureExtractor(), tmp_path / "a.png")
    lines = figures[0].axes[2].lines
    levels = {lines[i].get_label(): lines[i + 1].get_ydata()[0] for i in (0, 2, 4)}
    assert levels == {"Siren": 0.5, r"Dog \$5": 0.3, "never": 0.9}


@pytest.mark.parametrize("size", [7, 300, 5000])
def test_a_page_for_each_minute(size, tmp_path, figures):
    """A page has the bars and curves of its own minute, for any blocks of scores."""
    name = tmp_path / "a.wav"
    x = np.zeros(150 * RATE)
    x[60 * RATE : 61 * RATE] = 0.5
    soundfile.write(name, x, RATE)
    scores = some_scores(1500)
    pages = ScorePages(0.1, LABELS, HALVES)
    for start in range(0, len(scores), size):
        pages.add(ScoreBlock(start, scores[start : start + size]))
    events = [Event(5.0, 7.0, "Dog $5", 0.8), Event(100.0, 120.0, "Siren", 0.9)]
    detection = Detection(str(name), 150.0, events)
    draw_events(detection, pages, ASTFeatureExtractor(), tmp_path / "a.pdf")
    content = (tmp_path / "a.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b(?!s)", content)) == 3
    assert [figure.axes[0].get_xlim() for figure in figures] == [(0, 60), (60, 120), (120, 150)]
    bars = [[text.get_text() for text in f.axes[1].get_yticklabels()] for f in figures]
    assert bars == [[r"Dog \$5"], ["Siren"], []]  # an event ends where the next page begins
    assert [len(page.scores) for page in pages.pages] == [600, 600, 300]
    assert pages.pages[1].labels[0] == "Siren"
    np.testing.assert_array_equal(pages.pages[1].scores[:, 0], scores[600:1200, 0])
    np.testing.assert_allclose(pages.pages[2].seconds, 120 + 0.1 * (np.arange(300) + 0.5))
    (image,) = figures[1].axes[0].images
    assert image.get_extent()[:2] == pytest.approx((60, 120), abs=0.03)
    # The loud second is the first one of its page.
    assert image.get_array()[:, :90].max() > image.get_array()[:, 110:].max()


def test_a_damaged_recording_is_drawn(tmp_path):
    """Parts that cannot be decoded are grey, and the rest is drawn, in a picture and on pages."""
    x = 0.1 * np.random.default_rng(0).standard_normal(70 * RATE)
    x[RATE : 2 * RATE] = np.nan
    soundfile.write(tmp_path / "a.wav", x, RATE, subtype="FLOAT")
    stretches = [BadStretch(1.0, 2.0, "NaN"), BadStretch(69.0, None, "damaged")]
    detection = Detection(str(tmp_path / "a.wav"), 70.0, [], stretches)
    for kind, suffix in ((ScoreColumns, "png"), (ScorePages, "pdf")):
        scores = kind(0.1, LABELS, HALVES)
        scores.add(ScoreBlock(0, some_scores(700)))
        draw_events(detection, scores, ASTFeatureExtractor(), tmp_path / f"a.{suffix}")
        assert (tmp_path / f"a.{suffix}").stat().st_size > 1000
