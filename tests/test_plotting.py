"""Pictures: their columns against a loop, their axes against the formula of mel, their texts."""

import warnings

import numpy as np
import pytest
import soundfile

from modeling_ast import ASTFeatureExtractor
from modeling_ast.plotting import (
    COLUMNS,
    PeakColumns,
    draw_spectrogram,
    mel_bin,
    missing_characters_as_boxes,
    plain_text,
)


@pytest.mark.parametrize("num_rows", [0, 1, COLUMNS, 2 * COLUMNS, 2 * COLUMNS + 1, 9 * COLUMNS + 7])
@pytest.mark.parametrize("seed", range(3))
def test_a_column_is_the_highest_of_its_rows(num_rows, seed):
    rng = np.random.default_rng(seed)
    rows = rng.random((num_rows, 3))
    peaks = PeakColumns()
    for block in np.split(rows, np.sort(rng.integers(0, num_rows + 1, 9))):
        peaks.add(block)
    size = peaks.rows_per_column
    expected = [rows[start : start + size].max(0) for start in range(0, num_rows, size)]
    columns = peaks.columns()
    assert len(columns) == len(expected) <= 2 * COLUMNS
    if num_rows:
        np.testing.assert_array_equal(columns, expected)
    assert num_rows <= 2 * COLUMNS or len(columns) >= COLUMNS


def test_a_tone_is_drawn_at_its_frequency_and_time(tmp_path):
    """The tone lasts from 30 to 60 s of two minutes, at 2 kHz."""
    from matplotlib import pyplot

    rate = 16_000
    x = np.zeros(120 * rate)
    x[30 * rate : 60 * rate] = np.sin(2 * np.pi * 2000 * np.arange(30 * rate) / rate)
    soundfile.write(tmp_path / "tone.wav", x, rate)
    extractor = ASTFeatureExtractor()
    figure, axis = pyplot.subplots()
    draw_spectrogram(axis, tmp_path / "tone.wav", extractor)
    (image,) = axis.images
    values, (left, right, _, _) = np.asarray(image.get_array()), image.get_extent()
    at_45, at_90 = (values[:, int(s / (right - left) * values.shape[1])] for s in (45, 90))
    assert at_45.argmax() == int(mel_bin(2000, extractor)) and at_45.max() > at_90.max() + 10
    ticks = dict(zip([text.get_text() for text in axis.get_yticklabels()], axis.get_yticks()))
    assert list(ticks) == ["0.1", "0.25", "0.5", "1", "2", "4", "8"]
    assert ticks["2"] == mel_bin(2000, extractor) and axis.get_ylabel() == "kHz"
    assert axis.get_xlim() == (0, 120)
    pyplot.close(figure)


def test_mel_bins_lie_where_the_filters_do():
    """The judge is torchaudio's filters: the middle of a bin is where its filter is highest."""
    from torchaudio.compliance.kaldi import get_mel_banks

    extractor = ASTFeatureExtractor()
    banks, _ = get_mel_banks(128, 512, 16_000.0, 20.0, 8000.0, 100.0, -500.0, 1.0)
    for index in (60, 100, 120):  # wide enough for several bins of the FFT
        hz = float(banks[index].argmax()) * 16_000 / 512
        assert mel_bin(hz, extractor) == pytest.approx(index + 0.5, abs=0.6)


def test_characters_that_the_font_lacks_give_no_warning_and_others_do(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.suptitle("\u72ac")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with missing_characters_as_boxes():
            figure.savefig(tmp_path / "x.png")
    with pytest.warns(UserWarning, match="another"), missing_characters_as_boxes():
        warnings.warn("another", UserWarning, stacklevel=1)


def test_long_texts_lose_their_middle():
    assert plain_text("short.wav", 9) == "short.wav"
    assert plain_text("a-long-name.wav", 9) == "a-lo….wav"
    # The backslash before a dollar sign is not drawn and does not count.
    assert plain_text("$$$$", 4) == r"\$\$\$\$" and plain_text("$a") == r"\$a"


def test_the_picture_of_a_short_clip_has_no_gap_at_its_end(tmp_path):
    from matplotlib import pyplot

    soundfile.write(tmp_path / "short.wav", np.random.default_rng(0).standard_normal(4800), 16_000)
    figure, axis = pyplot.subplots()
    draw_spectrogram(axis, tmp_path / "short.wav", ASTFeatureExtractor())
    (image,) = axis.images
    values = np.asarray(image.get_array())
    assert values.shape == (128, 30) and image.get_extent()[1] == pytest.approx(0.3)
    np.testing.assert_array_equal(values[:, 28:], values[:, 27:28].repeat(2, 1))
    pyplot.close(figure)
