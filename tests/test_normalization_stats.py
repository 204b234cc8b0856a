"""normalization_stats.py as a person runs it; torchaudio's Kaldi and numpy judge the numbers."""

import json
import sys

import normalization_stats as script
import numpy as np
import pytest
import soundfile
import torch
import torchaudio


@pytest.fixture
def sounds(tmp_path):
    """Clips of 0.2 to 2 s; the model's 97 frames are about 1 s."""
    rng = np.random.default_rng(0)
    waves = {}
    for index, samples in enumerate((3200, 16000, 32000, 9001)):
        path = tmp_path / "sounds" / "ab"[index % 2] / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.standard_normal(samples) * 0.1 * (index + 1), 16000, "FLOAT")
        waves[path] = soundfile.read(path, dtype="float32")[0]
    return tmp_path / "sounds", list(waves.values())


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["normalization_stats.py", *map(str, words)])
    script.main()
    return capsys.readouterr().out


def kaldi(waves, max_frames):
    frames = [
        torchaudio.compliance.kaldi.fbank(
            torch.tensor(wave)[None],
            window_type="hanning",
            num_mel_bins=40,
            sample_frequency=16000,
            htk_compat=True,
            use_energy=False,
            dither=0.0,
        )[:max_frames]
        for wave in waves
    ]
    values = torch.cat(frames).double().numpy()
    return values.mean(), values.std()


@pytest.mark.parametrize(("words", "frames"), [([], 97), (["--max_length", 30], 30)])
def test_the_numbers_are_kaldis(sounds, tiny_folder, tmp_path, monkeypatch, capsys, words, frames):
    folder, waves = sounds
    options = ("--data", folder, "--bad_clips", tmp_path / "bad.txt", "--json", *words)
    out = json.loads(run(monkeypatch, capsys, tiny_folder, *options))
    mean, std = kaldi(waves, frames)
    assert (out["mean"], out["std"]) == (
        pytest.approx(mean, abs=1e-4),
        pytest.approx(std, abs=1e-4),
    )


def test_it_prints_flags_for_finetune_and_lists_bad_clips(
    sounds, tiny_folder, tmp_path, monkeypatch, capsys
):
    folder, waves = sounds
    (folder / "a" / "broken.wav").write_bytes(b"no sound")
    bad = tmp_path / "bad.txt"
    options = ("--data", folder, "--bad_clips", bad)
    words = run(monkeypatch, capsys, tiny_folder, *options, "--max_bad_share", "0.5").split()
    assert words[::2] == ["--mean", "--std"]
    assert float(words[1]) == pytest.approx(kaldi(waves, 97)[0], abs=1e-4)
    assert "broken.wav" in bad.read_text()
    with pytest.raises(SystemExit, match="error: 1 of 5 clips cannot be decoded"):
        run(monkeypatch, capsys, tiny_folder, *options)
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, tiny_folder)
    assert "--data is missing" in capsys.readouterr().err
