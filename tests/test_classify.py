"""classify.py as a person runs it; one process for each group, imports are slow."""

import json
import sys

import classify
import numpy as np
import pytest
import soundfile
import torch

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    activation,
    read_audio,
)
from tests.conftest import randomise

RATE = 16000


@pytest.fixture
def audioset_like(tmp_path):
    """A model that says, like those of the Hub, nothing of its labels' kind."""
    config = ASTConfig(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32,
        max_length=200, num_mel_bins=32, num_labels=527,
    )  # fmt: skip
    folder = tmp_path / "model"
    randomise(ASTForAudioClassification(config)).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


def run(monkeypatch, capsys, *arguments):
    """(exit status, standard output, standard error) of the script."""
    monkeypatch.setattr(sys, "argv", ["classify.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        classify.main()
    out, err = capsys.readouterr()
    status = end.value.code
    if isinstance(status, str):  # what sys.exit(message) prints
        status, err = 1, err + status
    return status, out, err


def write(path, seconds, rate=RATE, channels=1, seed=0):
    samples = 0.1 * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return path


def test_scores_are_the_models(audioset_like, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.wav", 1.5)
    status, out, _ = run(monkeypatch, capsys, audioset_like, path, "--json", "--top-k", 527)
    assert status == 0
    (row,) = json.loads(out)
    assert row["file"] == str(path) and row["seconds"] == 1.5
    model = ASTForAudioClassification.from_pretrained(audioset_like)
    extractor = ASTFeatureExtractor.from_pretrained(audioset_like)
    inputs = extractor(read_audio(path), sampling_rate=RATE, return_tensors="pt")
    expected = model(**inputs).logits[0].sigmoid()
    for entry in row["labels"]:
        index = model.config.label2id[entry["label"]]
        assert entry["score"] == pytest.approx(expected[index].item(), abs=1e-6)
    scores = [entry["score"] for entry in row["labels"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("choice", "problem", "name"),
    [
        ("auto", None, "sigmoid"),
        ("auto", "single_label_classification", "softmax"),
        ("auto", "multi_label_classification", "sigmoid"),
        ("softmax", "multi_label_classification", "softmax"),
    ],
)
def test_kind_of_scores(choice, problem, name):
    config = ASTConfig(num_labels=527, problem_type=problem)
    assert activation(choice, config) == name
    assert activation("auto", ASTConfig(num_labels=35)) == "softmax"


def test_a_long_file_is_heard_whole(audioset_like, tmp_path):
    path = write(tmp_path / "long.wav", 5.0)
    model, extractor = classify.load(str(audioset_like), "cpu")
    waveform = read_audio(path)
    parts = [waveform[:32000], waveform[32000:64000], waveform[64000:]]
    inputs = extractor(parts, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        rows = model(**inputs).logits.sigmoid()
    expected = (rows * torch.tensor([[2.0], [2.0], [1.0]])).sum(0) / 5
    result = classify.classify(str(path), model, extractor)
    for label, score in result.scores.items():
        index = model.config.label2id[label]
        assert score == pytest.approx(expected[index].item(), abs=1e-6)


def test_formats_rates_and_channels(audioset_like, tmp_path, monkeypatch, capsys):
    files = [
        write(tmp_path / "stereo.wav", 1, 44100, 2),
        write(tmp_path / "a.flac", 1, 48000),
        write(tmp_path / "a.ogg", 1, 22050),
        write(tmp_path / "a.mp3", 1, 44100),
        write(tmp_path / "telephone.wav", 1, 8000),
    ]
    status, out, err = run(
        monkeypatch, capsys, audioset_like, *files, "--plot", tmp_path / "out.png"
    )
    assert status == 0 and "error" not in err
    for path in files:
        assert f"{path} (1.0" in out
    picture = (tmp_path / "out.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_bad_files_are_one_line_each_and_the_others_are_classified(
    audioset_like, tmp_path, monkeypatch, capsys
):
    good = write(tmp_path / "good.wav", 1)
    text, empty = tmp_path / "notes.wav", tmp_path / "empty.wav"
    text.write_text("this is no audio")
    empty.write_bytes(b"")
    short = write(tmp_path / "short.wav", 0.01)
    silent = tmp_path / "none.wav"
    soundfile.write(silent, np.zeros(0), RATE)
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.full(RATE, np.nan), RATE, subtype="FLOAT")
    bad = [text, empty, short, silent, nan, tmp_path / "missing.wav", tmp_path]
    status, out, err = run(monkeypatch, capsys, audioset_like, *bad, good)
    assert status == 1
    assert f"{good} (1.00 s)" in out
    lines = [line for line in err.replace("\r", "\n").splitlines() if "error:" in line]
    assert len(lines) == len(bad) and "Traceback" not in err
    for path, line in zip(bad, lines):
        assert line.startswith(f"error: {path}: ")


def test_a_missing_model_is_one_line(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.wav", 1)
    for name in ("nobody/nothing", str(tmp_path)):
        status, out, err = run(monkeypatch, capsys, name, path)
        assert status == 1 and not out
        assert f"cannot load the model {name!r}" in err and "Traceback" not in err
        assert len(err.strip().splitlines()) == 1


def test_unwritable_picture_is_one_line(audioset_like, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.wav", 1)
    target = tmp_path / "no such folder" / "out.png"
    status, out, err = run(monkeypatch, capsys, audioset_like, path, "--plot", target)
    assert status == 1 and f"cannot draw {target}" in err and "1.00 s" in out
