"""`modeling-ast stats`, against torchaudio's Kaldi and numpy."""

import json

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from modeling_ast.commands import stats


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


def run(capsys, *words, status=0):
    assert stats.main([str(word) for word in words]) == status
    return capsys.readouterr()


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
def test_the_numbers_are_kaldis(sounds, tiny_folder, tmp_path, capsys, words, frames):
    folder, waves = sounds
    options = ("--data", folder, "--bad_clips", tmp_path / "bad.txt", "--json", *words)
    out = json.loads(run(capsys, tiny_folder, *options).out)
    mean, std = kaldi(waves, frames)
    assert (out["mean"], out["std"]) == (
        pytest.approx(mean, abs=1e-4),
        pytest.approx(std, abs=1e-4),
    )


def test_it_prints_flags_for_finetune_and_lists_bad_clips(sounds, tiny_folder, tmp_path, capsys):
    folder, waves = sounds
    (folder / "a" / "broken.wav").write_bytes(b"no sound")
    bad = tmp_path / "bad.txt"
    options = ("--data", folder, "--bad-clips", bad)
    words = run(capsys, tiny_folder, *options, "--max-bad-share", "0.5").out.split()
    assert words[::2] == ["--mean", "--std"]
    assert float(words[1]) == pytest.approx(kaldi(waves, 97)[0], abs=1e-4)
    assert "broken.wav" in bad.read_text()


def test_only_the_bad_clips_of_this_run_count(sounds, tiny_folder, tmp_path, capsys):
    """Not those that a run with other data has left in the file."""
    folder, _ = sounds
    (folder / "a" / "broken.wav").write_bytes(b"no sound")
    bad = tmp_path / "bad.txt"
    bad.write_text("".join(f"old{index}.wav\tno sound\n" for index in range(9)))
    options = ("--data", folder, "--bad-clips", bad, "--max-bad-share", 0.2)
    run(capsys, tiny_folder, *options)
    assert len(bad.read_text().splitlines()) == 1 and "broken.wav" in bad.read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_clips_are_one_line(sounds, tiny_folder, tmp_path, capsys, workers):
    """Also if a worker raises the error, to which torch adds a traceback."""
    folder, _ = sounds
    (folder / "a" / "broken.wav").write_bytes(b"no sound")
    options = ("--data", folder, "--bad-clips", tmp_path / "bad.txt", "--num-workers", workers)
    printed = run(capsys, tiny_folder, *options, status=1)
    line = printed.err.splitlines()[-1]
    assert line.startswith("error: 1 of 5 clips cannot be decoded") and "broken.wav: " in line
    assert printed.out == "" and "Traceback" not in printed.err


def test_a_missing_model_and_a_missing_folder(sounds, tiny_folder, tmp_path, capsys):
    folder, _ = sounds
    words = run(capsys, tmp_path / "model", "--data", folder, status=1).err.splitlines()
    assert words[-1].startswith("error: ") and f"{tmp_path}/model" in words[-1]
    words = run(capsys, tiny_folder, "--data", tmp_path / "data", status=1).err.splitlines()
    assert words[-1].startswith("error: ") and f"{tmp_path}/data" in words[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data is missing"),
        (["--data", "data", "--streaming"], "--streaming is for modeling-ast finetune"),
    ],
)
def test_wrong_usage(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        stats.main(["model", *words])
    assert end.value.code == 2 and message in capsys.readouterr().err
