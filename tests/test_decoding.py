"""decoding: files of any bytes. Judges: numpy's mean, and the documented exceptions."""

import io
import logging

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_ast.audio import read_audio, stream_audio
from modeling_ast.decoding import AudioFile, mean_of_columns


def encode(samples: np.ndarray, rate: int, **kwargs) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, **kwargs)
    return file.getvalue()


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (3000, 2))
FORMATS = [
    {"format": "WAV"},
    {"format": "FLAC"},
    {"format": "MP3"},
    {"format": "OGG"},
    {"format": "OGG", "subtype": "OPUS"},
    {"format": "AIFF"},
    {"format": "AU"},
]
FILES = [encode(NOISE, 16000, **kwargs) for kwargs in FORMATS]


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_the_mean_of_the_channels(channels):
    samples = np.random.default_rng(1).standard_normal((1000, channels)).astype(np.float32)
    np.testing.assert_allclose(mean_of_columns(samples), samples.mean(1), atol=1e-6)
    content = encode(samples, 16000, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(read_audio(content), samples.mean(1), atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    content=st.sampled_from(FILES),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 10**6),
    doubled=st.booleans(),
)
def test_damaged_files_are_read_or_refused(content, places, cut, doubled):
    """Only documented exceptions of `read_audio` are raised, and no file costs gigabytes."""
    data = bytearray(content)
    for place, value in places:
        # Most of the changed bytes are in headers.
        data[place % min(len(data), 200 if place % 2 else len(data))] = value
    data = bytes(data[: cut % (2 * len(data)) or None]) * (1 + doubled)
    check_refusals(data)


@settings(max_examples=100, deadline=None)
@given(
    head=st.sampled_from(
        [b"", b"RIFF", b"OggS\0\2", b"fLaC\0\0\0\x22", b"ID3\3\0\0", b"\xff\xfb\x90"]
    ),
    rest=st.binary(max_size=300),
)
def test_any_bytes_are_read_or_refused(head, rest):
    check_refusals(head + rest)


def check_refusals(content: bytes) -> None:
    try:
        samples = read_audio(content, max_bytes=2**26)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert samples.dtype == np.float32 and samples.ndim == 1 and len(samples)


def test_a_rate_that_cannot_be_meant_is_refused_before_anything_is_decoded():
    content = bytearray(encode(NOISE, 16000, format="WAV"))
    for rate in (1, 99, 67_130_914, 2**31 - 1):
        content[24:28] = rate.to_bytes(4, "little")
        with pytest.raises(ValueError, match=f"cannot be used: .* {rate} Hz; .* 100 to 1000000 Hz"):
            AudioFile(bytes(content))


def test_what_is_larger_than_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    """A minute of silence takes 3 kB as FLAC."""
    content = encode(np.zeros(16000 * 60), 16000, format="FLAC")
    assert len(content) < 10_000
    assert len(read_audio(content, max_bytes=4 * 16000 * 60)) == 16000 * 60
    assert len(read_audio(content, max_bytes=None)) == 16000 * 60
    assert sum(map(len, stream_audio(content))) == 16000 * 60
    monkeypatch.setattr("modeling_ast.decoding.AudioStream.mono_blocks", None)
    message = r"at least 60 s, 3,840,000 bytes at 16000 Hz, but at most 3,839,999 .* stream_audio"
    with pytest.raises(ValueError, match=message):
        read_audio(content, max_bytes=4 * 16000 * 60 - 1)


def test_an_mp3_that_was_cut_is_heard_as_far_as_it_goes(caplog):
    logging.getLogger("transformers").propagate = True
    content = encode(np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 16000, format="MP3")
    assert 1 < len(read_audio(content[: len(content) // 2])) / 16000 < 2
    assert "announces 3.00 s; what is there is used" in caplog.text


def test_a_name_of_any_bytes(tmp_path):
    name = str(tmp_path / "-\udcff 'x'\t\u3042.flac")
    with open(name, "wb") as file:
        file.write(FILES[1])
    assert len(read_audio(name)) == 3000
    with pytest.raises(ValueError, match="has a null character"):
        read_audio("a\0.wav")
