"""waveform.onnx alone: any length, batches, whole recordings, without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from modeling_ast import AudioTagger
from modeling_ast.calibration import Calibration, LabelCalibration
from tests.conftest import ROOT

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


from modeling_ast.exporting import WaveformModel


def noise(num_samples, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


@pytest.fixture(scope="module")
def tagger(exported_folder):
    return AudioTagger.from_pretrained(exported_folder, num_workers=0, top_k=5)


@pytest.fixture(scope="module")
def model(exported_folder):
    return WaveformModel(exported_folder / "onnx/waveform.onnx")


def test_the_metadata_says_how_to_use_the_file(model, exported_folder):
    config = json.loads((exported_folder / "config.json").read_text())
    settings = model.settings
    assert settings.labels == list(config["id2label"].values())
    assert settings.sampling_rate == 16000 and settings.activation == "softmax"
    # 25 ms; 97 frames, 10 ms apart, the last of them 25 ms long.
    assert settings.min_samples == 400 and settings.hop_samples == 160
    assert settings.max_samples == 96 * 160 + 400


@pytest.mark.parametrize("num_samples", [400, 401, 559, 2799, 2800, 9001, 15760])
def test_one_window(model, tagger, num_samples):
    clip = noise(num_samples)
    (tags,) = tagger([(clip, 16000)])
    np.testing.assert_allclose(model.scores(clip), tags.scores, atol=1e-6)


def test_clips_of_a_batch_get_the_scores_that_they_get_alone(model):
    lengths = [15760, 400, 7000, 2500]
    clips = [noise(length, seed) for seed, length in enumerate(lengths)]
    waveform = np.full((4, 15760), 7.0, np.float32)  # samples after a clip's end have no effect
    for row, clip in zip(waveform, clips):
        row[: len(clip)] = clip
    given = {"waveform": waveform, "num_samples": np.array(lengths)}
    logits, scores = model.session.run(["logits", "scores"], given)
    for clip, row in zip(clips, scores):
        np.testing.assert_allclose(row, model.scores(clip), atol=1e-6)
    softmax = torch.from_numpy(logits).softmax(-1)
    np.testing.assert_allclose(scores, softmax, atol=1e-6)


def test_long_recordings_are_cut_by_the_rule_of_the_package(model, tagger):
    clip = noise(50001)
    (tags,) = tagger([(clip, 16000)])
    np.testing.assert_allclose(model.scores(clip), tags.scores, atol=1e-6)
    parts, scores = model.part_scores(clip)
    assert [start for start, _ in parts] == [0, 12500, 25000, 37501] and scores.shape == (4, 5)


def test_a_constant_offset_and_silence_do_no_harm(model, tagger):
    for clip in (noise(8000, level=1e-4) + np.float32(0.9), np.zeros(8000, np.float32)):
        (tags,) = tagger([(clip, 16000)])
        np.testing.assert_allclose(model.scores(clip), tags.scores, atol=1e-5)


def test_what_is_refused(model, exported_folder, tmp_path):
    with pytest.raises(ValueError, match=r"shape \(399,\) but one clip of at least 400 samples"):
        model.scores(noise(399))
    with pytest.raises(ValueError, match=r"shape \(2, 800\) but one clip"):
        model.scores(noise(1600).reshape(2, 800))
    with pytest.raises(ValueError, match=r"has no labels in its metadata; give the waveform\.onnx"):
        WaveformModel(exported_folder / "onnx/model.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"cannot run .*broken\.onnx .*write it again"):
        WaveformModel(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match=r"cannot run .*missing\.onnx"):
        WaveformModel(tmp_path / "missing.onnx")


def test_long_recordings_are_calibrated_as_a_whole(exported_folder, model):
    """The mean of the parts' scores, then the calibration: the rule of AudioTagger."""
    labels = {name: LabelCalibration(0.5, 0.6, 0.0, 9) for name in model.settings.labels}
    calibration = Calibration(labels, "temperature", "best F1", "softmax", "longest", 9)
    calibrated = WaveformModel(exported_folder / "onnx/waveform.onnx")
    calibrated.settings = model.settings._replace(slopes=[0.6] * 5, intercepts=[0.0] * 5)
    clip = noise(50001)
    expected = calibration.apply(model.scores(clip).astype(np.float64))
    np.testing.assert_allclose(calibrated.scores(clip), expected, atol=1e-6)


def test_the_program_of_the_documentation_needs_no_torch(exported_folder, model, tmp_path):
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    program = page.partition("```py\n")[2].partition("```")[0]
    (tmp_path / "my-ast-onnx").symlink_to(exported_folder)
    soundfile.write(tmp_path / "clip.wav", noise(40000), 16000, subtype="FLOAT")
    code = f"import sys; sys.modules['torch'] = None\n{program}"
    command = [sys.executable, "-c", code, "clip.wav"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    scores = model.scores(noise(40000))
    order = np.argsort(-scores)
    expected = [f"{scores[index]:.3f}  {model.settings.labels[index]}" for index in order]
    assert run.stdout.splitlines() == expected
