"""Normalisation statistics, against numpy on all values at once and torchaudio's Kaldi."""

import math

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training.clips import BadClips, TooManyBadClips
from modeling_ast.training.normalization import Moments, normalization_stats
from tests.test_clips import audio_set, flac, noise

MAX_LENGTH = 50


def extractor() -> ASTFeatureExtractor:
    return ASTFeatureExtractor(max_length=MAX_LENGTH, num_mel_bins=64, mean=3.0, std=0.1)


def test_merged_moments_are_those_of_the_whole():
    # With a mean far from 0, plain sums of squares would lose all digits.
    values = 1e8 + torch.randn(997, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [Moments.of(part) for part in values.split([0, 1, 500, 0, 496])]
    total = Moments()
    for part in parts:
        total = total.merge(part)
    assert total.count == 997
    assert total.mean == pytest.approx(values.numpy().mean(), rel=1e-15)
    assert total.std == pytest.approx(values.numpy().std(), rel=1e-7)
    assert math.isnan(Moments().std) and Moments().merge(Moments()) == Moments()


def clips() -> list[np.ndarray]:
    """Clips of different levels and lengths; the last one is longer than 50 frames."""
    lengths = (0.1, 0.3, 0.025, 0.2, 0.9)
    return [noise(i, seconds) * 4.0**-i for i, seconds in enumerate(lengths)]


def judged(waves: list[np.ndarray]) -> np.ndarray:
    """All log-mel values that the model would see, by torchaudio."""
    frames = []
    for wave in waves:
        # The written file is rounded to 16 bits.
        pcm = torch.from_numpy(np.round(wave * 2**15).astype(np.float32) / 2**15)
        fbank = kaldi.fbank(
            pcm.unsqueeze(0), window_type="hanning", num_mel_bins=64, sample_frequency=16000
        )
        frames.append(fbank[:MAX_LENGTH].double().numpy().ravel())
    return np.concatenate(frames)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_statistics_are_those_of_torchaudios_frames(num_workers, streaming, capfd):
    dataset = audio_set([flac(wave) for wave in clips()])
    if streaming:
        dataset = dataset.to_iterable_dataset()
        num_workers = min(num_workers, 1)
    stats = normalization_stats(dataset, extractor(), batch_size=2, num_workers=num_workers)
    values = judged(clips())
    assert stats.count == len(values)
    # Frames agree to about 1e-4 if a clip is soft.
    assert stats.mean == pytest.approx(values.mean(), abs=1e-4)
    assert stats.std == pytest.approx(values.std(), abs=1e-4)
    assert "clip" in capfd.readouterr().err


def test_bad_clips_are_left_out_and_listed(tmp_path, capfd):
    contents = [flac(wave) for wave in clips()]
    contents[1:1] = [b"?"]
    dataset = audio_set(contents)
    bad = BadClips(tmp_path / "bad_clips.txt", 6, max_share=0.2)
    stats = normalization_stats(dataset, extractor(), bad_clips=bad, progress=False)
    assert stats == normalization_stats(
        audio_set([flac(wave) for wave in clips()]), extractor(), progress=False
    )
    assert list(bad.read()) == ["1.flac"]
    assert "clip/s" not in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"clip 1.flac cannot be used"):
        normalization_stats(dataset, extractor(), progress=False)
    with pytest.raises(TooManyBadClips):
        strict = BadClips(tmp_path / "other.txt", 6)
        normalization_stats(dataset, extractor(), bad_clips=strict, progress=False)


def test_a_data_set_without_clips_is_refused(tmp_path):
    bad = BadClips(tmp_path / "bad_clips.txt", 1, max_share=1.0)
    with pytest.raises(ValueError, match="no clip that can be decoded"):
        normalization_stats(audio_set([b"?"]), extractor(), bad_clips=bad, progress=False)
