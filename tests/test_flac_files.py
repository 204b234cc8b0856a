"""FLAC files: frames are found and counted without decoding."""

import io

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
    counted = counted_samples(io.BytesIO(content), len(content))
    assert counted == (num_samples if len(found) > 1 else 0)


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
