"""read_audio and resample. Judges: the written samples, soundfile's own header, torchaudio."""

import io
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio

from modeling_ast.audio import read_audio, resample


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def encode(samples: np.ndarray, rate: int, **kwargs) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"format": "WAV", "subtype": "FLOAT"}, 0.0),
        ({"format": "WAV", "subtype": "PCM_16"}, 2.0**-15),
        ({"format": "FLAC", "subtype": "PCM_24"}, 2.0**-23),
        # Lossy codecs keep the sound, not the samples.
        ({"format": "OGG", "subtype": "VORBIS"}, 0.05),
        ({"format": "OGG", "subtype": "OPUS"}, 0.05),
        ({"format": "MP3"}, 0.05),
    ],
)
def test_a_file_and_its_bytes_give_the_samples(tmp_path, kwargs, error):
    wave = tone(16000)
    content = encode(wave, 16000, **kwargs)
    path = tmp_path / "clip.bin"
    path.write_bytes(content)
    for source in (content, path, str(path), bytearray(content), memoryview(content)):
        read = read_audio(source)
        assert read.dtype == np.float32 and read.shape == wave.shape
        assert np.abs(read - wave)[200:-200].max() <= error


def test_channels_are_averaged():
    left, right = tone(16000), tone(16000, hz=1000)
    content = encode(np.stack([left, right], 1), 16000, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(read_audio(content), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("given", [8000, 11025, 22050, 44100, 48000])
def test_resampling_is_torchaudios(given):
    wave = tone(given)
    wanted = torchaudio.functional.resample(torch.from_numpy(wave), given, 16000).numpy()
    read = read_audio(encode(wave, given, format="WAV", subtype="FLOAT"), 16000)
    # Not bit by bit: a sum depends on where its terms lie in memory.
    np.testing.assert_allclose(read, wanted, atol=1e-6)
    both = resample(np.stack([wave, -wave]), given, 16000)
    np.testing.assert_allclose(both, np.stack([wanted, -wanted]), atol=1e-6)


def test_equal_rates_need_no_torchaudio(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    wave = tone(22050)
    assert resample(wave, 22050, 22050) is wave
    with pytest.raises(ImportError, match=r"22050 Hz .* 16000 Hz.*install torch>=2.11"):
        read_audio(encode(wave, 22050, format="WAV"))


@pytest.mark.parametrize("given", [47999, 44101, 8001])
def test_an_odd_rate_takes_no_gigabytes_and_keeps_the_pitch(given):
    read = resample(tone(given, hz=440.0), given, 16000)
    assert abs(len(read) - 8000) <= 8
    # Half a second resolves 2 Hz.
    peak = np.abs(np.fft.rfft(read)).argmax() * 16000 / len(read)
    assert peak == pytest.approx(440.0, abs=1.0)


def test_each_bad_file_is_named(tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.flac").touch()
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    (tmp_path / "half.flac").write_bytes(encode(tone(16000), 16000, format="FLAC")[:4000])
    sf.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    for name, error, message in [
        ("text.wav", ValueError, r"text.wav' cannot be decoded as audio .*Format not recognised"),
        ("samples.raw", ValueError, r"samples.raw' cannot be decoded as audio"),
        ("half.flac", ValueError, r"half.flac' cannot be decoded as audio"),
        ("empty.flac", ValueError, r"empty.flac' is empty \(0 bytes\)"),
        ("silent.wav", ValueError, r"silent.wav' is audio of zero length"),
        ("missing.wav", FileNotFoundError, r"no file at .*missing.wav'"),
        ("", ValueError, r"is no file; give the path of one audio file"),
    ]:
        with pytest.raises(error, match=message):
            read_audio(tmp_path / name)


def test_each_bad_argument_is_named():
    for source, error, message in [
        (b"", ValueError, "the audio of 0 bytes is empty"),
        (b"abc", ValueError, "the audio of 3 bytes cannot be decoded"),
        (None, TypeError, "source is a NoneType"),
    ]:
        with pytest.raises(error, match=message):
            read_audio(source)
    for rates in ((16000, 0), (-1, 16000), (16000.5, 16000)):
        with pytest.raises(ValueError, match="must be a positive whole number of Hz"):
            resample(tone(16000), *rates)
