"""resampling: levels, lengths, blocks. Judges: exact sines, torchaudio."""

import sys

import numpy as np
import pytest
import torch
import torchaudio

from modeling_ast.resampling import resample, resampled_blocks, resampled_length


def tone(rate: int, hz: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def level_db(samples: np.ndarray, rate: int, hz: float) -> float:
    """The level of a resampled sine, in dB relative to amplitude 1; the ends are left out."""
    place = np.arange(len(samples)) / rate
    inner = slice(len(samples) // 8, -len(samples) // 8)
    sines = np.stack([np.sin(2 * np.pi * hz * place), np.cos(2 * np.pi * hz * place)], 1)
    fit = np.linalg.lstsq(sines[inner], samples[inner], rcond=None)[0]
    return 20 * np.log10(np.hypot(*fit) + 1e-12)


@pytest.mark.parametrize("given", [8000, 11025, 22050, 32000, 44100, 48000, 96000, 47999])
def test_a_tone_stays_the_same_tone(given):
    """The result is the sine at the wanted rate, in phase and level."""
    heard = resample(tone(given, 440.0), given, 16000)
    exact = tone(16000, 440.0, 1.001)[: len(heard)]
    np.testing.assert_allclose(heard[400:-400], exact[400:-400], atol=1e-4)


@pytest.mark.parametrize("given", [44100, 48000])
def test_levels_near_the_upper_end(given):
    """torchaudio loses 1.8 dB at 7 kHz, 3.7 dB at 7.5 kHz; its alias of 8.1 kHz is at -7 dB."""
    for hz, least in ((1000, -0.01), (7000, -0.02), (7300, -0.02), (7500, -0.5)):
        assert least < level_db(resample(tone(given, hz), given, 16000), 16000, hz) < 0.01
    for hz in (8100, 8700, 10000):
        assert level_db(resample(tone(given, hz), given, 16000), 16000, 16000 - hz) < -100


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(48000, 16000), (44100, 16000), (8000, 16000), (24000, 44100), (11040, 10000)],
)
def test_lengths_and_blocks(given, wanted):
    rng = np.random.default_rng(0)
    # With 3560 samples at 24000 Hz, and with 25323 at 11040 Hz, the exact length ends in .5.
    for num_samples in (1, 2, 159, 1000, 3560, 25323, 44101):
        wave = rng.standard_normal(num_samples).astype(np.float32)
        whole = resample(wave, given, wanted)
        assert len(whole) == resampled_length(num_samples, given, wanted)
        assert abs(len(whole) - num_samples * wanted / given) <= 0.5
        cuts = np.sort(rng.integers(0, num_samples, 5))
        joined = np.concatenate([*resampled_blocks(np.split(wave, cuts), given, wanted)])
        np.testing.assert_allclose(joined, whole, atol=1e-6)


def test_axes_types_and_equal_rates():
    wave = np.stack([tone(44100, 440), -tone(44100, 440)])
    both = resample(wave, 44100, 16000)
    np.testing.assert_array_equal(both[0], -both[1])
    tensor = resample(torch.from_numpy(wave), 44100, 16000)
    np.testing.assert_array_equal(tensor, both)
    assert resample(np.zeros((0, 441)), 44100, 16000).shape == (0, 160)
    assert resample(np.zeros((3, 0)), 44100, 16000).shape == (3, 0)
    assert resample(wave.astype(np.float16), 44100, 16000).dtype == np.float32
    assert resample(wave, 22050, 22050) is wave


def test_a_tensor_with_a_gradient_goes_through_torchaudio(monkeypatch):
    wave = torch.from_numpy(tone(48000, 440)[:1000]).requires_grad_()
    heard = resample(wave, 48000, 16000)
    expected = torchaudio.functional.resample(wave, 48000, 16000)
    assert len(heard) == resampled_length(1000, 48000, 16000) == 333
    torch.testing.assert_close(heard, expected[:333])
    heard.square().sum().backward()
    assert wave.grad.abs().sum() > 0
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(ImportError, match=r"48000 Hz .* 16000 Hz.*install torch>=2.11"):
        resample(wave, 48000, 16000)


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("given", [47999, 44101, 8001])
def test_an_odd_rate_takes_no_gigabytes_and_keeps_the_pitch(given, needs_gradient):
    wave = torch.from_numpy(tone(given, 440.0, 0.5)).requires_grad_(needs_gradient)
    heard = resample(wave, given, 16000).detach().numpy()
    assert abs(len(heard) - 8000) <= 8
    # Half a second resolves 2 Hz.
    peak = np.abs(np.fft.rfft(heard)).argmax() * 16000 / len(heard)
    assert peak == pytest.approx(440.0, abs=1.0)


def test_rates_that_cannot_be_meant():
    for rates in ((16000, 0), (-1, 16000), (16000.5, 16000), (float("inf"), 16000), (True, 16000)):
        with pytest.raises(ValueError, match="must be a positive whole number of Hz"):
            resample(tone(16000, 440), *rates)
    for rates in ((16000, 99), (67_130_914, 16000), (2**31 - 1, 16000)):
        with pytest.raises(ValueError, match="must be from 100 to 1000000 Hz"):
            resample(tone(16000, 440), *rates)
