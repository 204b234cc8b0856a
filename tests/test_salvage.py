"""Damaged files: parts that can be decoded keep their times, and the others are marked."""

import numpy as np
import pytest
import soundfile

from modeling_ast import stream_audio
from modeling_ast.events import EventDetector
from modeling_ast.salvage import salvaged_blocks
from tests.loud_model import loud_tagger

RATE = 16_000


def noise(seconds, rate):
    """Noise of low frequencies, in which a shift of half a sample at 16 kHz does not matter."""
    white = np.random.default_rng(0).standard_normal(round(seconds * rate))
    return 0.1 * np.convolve(white, np.hanning(rate // 400), "same") / (rate / 800) ** 0.5


def damage(path, start, length, seed=0):
    """Overwrites `length` bytes, from a share `start` of the file on."""
    content = bytearray(path.read_bytes())
    at = round(start * len(content))
    content[at : at + length] = np.random.default_rng(seed).bytes(length)
    path.write_bytes(content)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_flac_goes_on_behind_damages(rate, tmp_path):
    whole = noise(30, rate)
    path = tmp_path / "a.flac"
    soundfile.write(path, whole, rate)
    expected = np.concatenate(list(stream_audio(path, RATE)))
    damage(path, 1 / 3, 3000)
    damage(path, 2 / 3, 3000, seed=1)
    pieces = list(salvaged_blocks(path, RATE, 5.0))
    joined = np.concatenate([block for block, _ in pieces])
    assert len(joined) == pytest.approx(len(expected), abs=1)
    missing = np.isnan(joined)
    assert len({reason for _, reason in pieces if reason}) == 2
    assert 0.1 < missing.sum() / RATE < 6
    # The middle of each of the three parts has not changed and is at its time.
    for second in (5, 15, 25):
        part = slice(second * RATE, second * RATE + RATE)
        np.testing.assert_allclose(joined[part], expected[part], atol=0.02)
    (detection,) = EventDetector(loud_tagger()).detect([path])
    assert len(detection.bad_stretches) == 2 and detection.error is None
    assert detection.seconds == pytest.approx(30, abs=0.001)


def joined_file(path, damaged):
    """Three files of 20 s, the second twice and the third three times as loud as the first; one of
    them is damaged in its middle."""
    contents = []
    for number in range(3):
        part = path.with_stem("part")
        soundfile.write(part, (number + 1) * noise(20, RATE) / 4, RATE)
        if number == damaged:
            damage(part, 0.5, 2000)
        contents.append(part.read_bytes())
    path.write_bytes(b"".join(contents))
    return path


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_joined_files_behind_a_damaged_one_keep_their_times(damaged, tmp_path):
    path = joined_file(tmp_path / "a.flac", damaged)
    pieces = list(salvaged_blocks(path, RATE, 5.0))
    joined = np.concatenate([block for block, _ in pieces])
    assert len(joined) == 60 * RATE
    assert np.isnan(joined).any() and all(
        (reason is not None) == np.isnan(block).any() for block, reason in pieces
    )
    starts = [round((20 * number + 2) * RATE) for number in range(3)]
    levels = np.array([joined[start : start + 4 * RATE].std() for start in starts])
    np.testing.assert_allclose(levels, levels[0] * np.array([1, 2, 3]), rtol=1e-3)


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_joined_files_behind_a_damaged_one_are_heard(damaged, suffix, tmp_path):
    """These formats do not say how much sound is in the damaged bytes."""
    pieces = list(salvaged_blocks(joined_file(tmp_path / f"a.{suffix}", damaged), RATE, 5.0))
    joined = np.concatenate([block for block, _ in pieces])
    # Only the end of a recording may be lost for an unknown time.
    assert all(len(block) for block, _ in pieces[:-1])
    # libvorbis itself goes on behind a damage, and says nothing.
    assert suffix == "ogg" or any(reason for _, reason in pieces)
    first, last = joined[2 * RATE : 6 * RATE].std(), joined[-6 * RATE : -2 * RATE].std()
    assert last / first == pytest.approx(3, rel=0.05)


def test_a_whole_file_is_that_of_stream_audio(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(3, 22_050), 22_050)
    blocks = list(salvaged_blocks(path, RATE, 1.0))
    for (block, reason), expected in zip(blocks, stream_audio(path, RATE, 1.0), strict=True):
        assert reason is None
        np.testing.assert_array_equal(block, expected)


def test_damaged_to_the_end(tmp_path, caplog):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(10, RATE), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    *good, (block, reason) = salvaged_blocks(path, RATE, 1.0)
    assert len(block) == 0 and "cannot be decoded" in reason
    assert 4.5 < sum(len(block) for block, _ in good) / RATE < 5.5
    (detection,) = EventDetector(loud_tagger()).detect([path])
    (stretch,) = detection.bad_stretches
    assert stretch.offset is None and stretch.onset == pytest.approx(detection.seconds)
    assert EventDetector(loud_tagger())(path) == detection.events
    assert f"from {stretch.onset:.3f} s to its end: " in caplog.text


def test_nothing_can_be_decoded(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(b"fLaC" + bytes(1000))
    with pytest.raises(ValueError, match="cannot be decoded"):
        list(salvaged_blocks(path, RATE, 1.0))
