"""FLAC files: frames are found and counted without decoding."""

import io
import time

import numpy as np
import pytest
import soundfile

from modeling_ast import read_audio
from modeling_ast.flac_files import (
    counted_samples,
    first_frame,
    flac_start,
    frames,
    has_all_frames,
    with_num_samples,
)
from tests.made_flac import made_flac


def encode(samples: np.ndarray, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC")
    return buffer.getvalue()


def noise(num_samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(num_samples).uniform(-0.5, 0.5, (num_samples, channels))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("num_samples", [1, 4095, 4096, 4097, 600_000])
def test_the_frames_of_a_whole_file(num_samples, channels):
    content = encode(noise(num_samples, channels))
    start, first = flac_start(content), first_frame(io.BytesIO(content), 0)
    assert (start.channels, start.sample_bits, start.num_samples) == (channels, 16, num_samples)
    found = list(frames(content, start, first))
    assert [frame.number for frame in found] == list(range(len(found)))
    assert sum(frame.block_samples for frame in found) == num_samples
    assert has_all_frames(content, first)
    counted = counted_samples(io.BytesIO(content), len(content), first)
    assert counted == (num_samples if len(found) > 1 else 0, False)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_with_more_samples_than_it_announces_is_heard_to_its_end(channels, caplog):
    samples = noise(50_000, channels)
    content = encode(samples)
    lying = with_num_samples(content, 20_000) + content[26:]
    assert not has_all_frames(lying, first_frame(io.BytesIO(lying), 0))
    np.testing.assert_array_equal(read_audio(lying), read_audio(content))
    assert "announces 20,000 samples; the 50,000 there are used" in caplog.text
    tagged = lying + b"TAG" + bytes(125)
    np.testing.assert_array_equal(read_audio(tagged), read_audio(content))


def test_a_lost_frame_is_missed():
    content = encode(noise(50_000))
    first = first_frame(io.BytesIO(content), 0)
    places = [frame.place for frame in frames(content, flac_start(content), first)]
    for begin, end in zip(places, [*places[1:], len(content)]):
        assert not has_all_frames(content[:begin] + content[end:], first)


def ints(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9000, 9000, num_samples, dtype=np.int16)


def heard(content: bytes) -> np.ndarray:
    return np.round(read_audio(content) * 32768).astype(np.int16)


def test_a_file_made_by_hand_is_heard():
    samples = ints(1000)
    begin, frames = made_flac(samples)
    np.testing.assert_array_equal(heard(begin + b"".join(frames)), samples)


def test_frames_of_another_recording_behind_the_last_one_are_not_heard(caplog):
    """As in files that were recovered from a disk."""
    samples = ints(1000)
    begin, frames = made_flac(samples)
    others = made_flac(ints(5000, 1))[1]
    for between in (b"", bytes(2000)):
        for behind in (others[6:20], others):
            content = begin + b"".join(frames) + between + b"".join(behind)
            np.testing.assert_array_equal(heard(content), samples)
    assert "announces 1,000 samples; the frames behind these are not used" in caplog.text


@pytest.mark.parametrize("first", [2, 1000, 2**30])
def test_numbers_that_do_not_begin_at_0(first, caplog):
    """The end of a longer file."""
    samples = ints(1000)
    begin, frames = made_flac(samples, numbers=range(first, first + 6))
    for tail in (b"", b"TAG" + bytes(125)):
        np.testing.assert_array_equal(heard(begin + b"".join(frames) + tail), samples)
    assert not caplog.records


def test_numbers_that_jump_announce_nothing():
    samples = ints(1000)
    numbers = [0, 1, 2, 3, 2**35, 2**35 + 1]
    begin, frames = made_flac(samples, numbers=numbers)
    with pytest.raises(ValueError, match="cannot be decoded as audio after"):
        read_audio(begin + b"".join(frames))


def test_a_short_frame_in_the_middle():
    """The samples that it lacks are not made up at the end."""
    begin, frames = made_flac(ints(1000), lengths=[192, 192, 100, 192, 192, 132])
    content = begin + b"".join(frames)
    assert not has_all_frames(content, len(begin))
    assert counted_samples(io.BytesIO(content), len(content), len(begin))[0] <= 1000


def test_too_few_announced_in_short_frames():
    samples = ints(5000)
    for announced in (1, 191, 192, 4800, 4999):
        begin, frames = made_flac(samples, announced=announced)
        np.testing.assert_array_equal(heard(begin + b"".join(frames)), samples)


@pytest.mark.parametrize("which", [-2, -3])
def test_a_damaged_frame_near_the_end_is_no_silence(which):
    """libFLAC fills it with zeros and has then read all samples."""
    begin, frames = made_flac(ints(5000))
    for place in (2, 20, -3):
        damaged = bytearray(frames[which])
        damaged[place] ^= 4
        parts = [*frames]
        parts[which] = bytes(damaged)
        with pytest.raises(ValueError, match="cannot be decoded as audio after"):
            read_audio(begin + b"".join(parts))


def test_many_bytes_that_begin_like_frames_or_files_take_no_minutes():
    content = encode(noise(20_000))
    chain = (b"fLaC\x00\x00\x00\x22" + bytes(30)) * 20_000
    for tail in (b"\xff\xf8" * 2**22, b"\xff\xf8\x70\x08" * 2**20, chain):
        begin = time.process_time()
        np.testing.assert_array_equal(read_audio(content + tail), read_audio(content))
        assert time.process_time() - begin < 5
