"""modeling-ast classify as a user runs it, but in this process, because imports are slow."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from transformers.utils import logging

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    read_audio,
)
from modeling_ast.commands import main
from tests.conftest import randomise

RATE = 16000


@pytest.fixture
def audioset_like(tmp_path):
    """A model that, like those of the Hub, does not state the kind of its labels."""
    config = ASTConfig(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32,
        max_length=200, num_mel_bins=32, num_labels=527,
    )  # fmt: skip
    folder = tmp_path / "model"
    randomise(ASTForAudioClassification(config)).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of the command."""
    status = main(["classify", *map(str, arguments)])
    return status, *capsys.readouterr()


def write(path, seconds, rate=RATE, channels=1, seed=0):
    samples = 0.1 * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return path


def test_scores_are_the_models(audioset_like, tmp_path, capsys):
    path = write(tmp_path / "a.wav", 1.5)
    status, out, _ = run(capsys, audioset_like, path, "--json", "--top-k", 527)
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


def test_formats_rates_and_channels(audioset_like, tmp_path, capsys):
    files = [
        write(tmp_path / "stereo.wav", 1, 44100, 2),
        write(tmp_path / "a.flac", 1, 48000),
        write(tmp_path / "a.ogg", 1, 22050),
        write(tmp_path / "a.mp3", 1, 44100),
        write(tmp_path / "telephone.wav", 1, 8000),
    ]
    status, out, err = run(capsys, audioset_like, *files, "--plot", tmp_path / "out.png")
    assert status == 0 and "error" not in err
    for path in files:
        assert f"{path} (1.0" in out
    picture = (tmp_path / "out.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_bad_files_are_one_line_each_and_the_others_are_classified(audioset_like, tmp_path, capsys):
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
    status, out, err = run(capsys, audioset_like, *bad, good)
    assert status == 1
    assert f"{good} (1.00 s)" in out
    lines = [line for line in err.replace("\r", "\n").splitlines() if "error:" in line]
    assert len(lines) == len(bad) and "Traceback" not in err
    for path, line in zip(bad, lines):
        assert line.startswith("error: ") and line.count(str(path)) == 1


def test_a_missing_model_is_one_line(tmp_path, capsys):
    path = write(tmp_path / "a.wav", 1)
    for name in ("nobody/nothing", str(tmp_path)):
        status, out, err = run(capsys, name, path)
        assert status == 1 and not out
        assert f"cannot load the model {name!r}: " in err and "Traceback" not in err
        assert ("there is no such folder in" in err) is (name == "nobody/nothing")
        assert len(err.strip().splitlines()) == 1


def test_unwritable_picture_is_one_line(audioset_like, tmp_path, capsys):
    path = write(tmp_path / "a.wav", 1)
    target = tmp_path / "no such folder" / "out.png"
    for picture, message in (
        (target, f"error: cannot write {target} (No such file"),
        (tmp_path / "out.xyz", "its name must end in one of"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(capsys, audioset_like, path, "--plot", picture)
        out, err = capsys.readouterr()
        assert stopped.value.code == 2 and message in err and not out


def test_json_has_every_file_in_order(audioset_like, tmp_path, capsys):
    good = write(tmp_path / "good.wav", 1)
    (tmp_path / "notes.wav").write_text("this is no audio")
    files = [tmp_path / "notes.wav", good, tmp_path / "missing.wav"]
    status, out, err = run(capsys, audioset_like, *files, "--json", "--top_k", 2)
    rows = json.loads(out)
    assert status == 1 and [row["file"] for row in rows] == [str(path) for path in files]
    assert [sorted(row) for row in rows] == [
        ["error", "file"],
        ["file", "labels", "seconds"],
        ["error", "file"],
    ]
    assert len(rows[1]["labels"]) == 2 and "no file at" in rows[2]["error"]
    assert err.count("error: ") == 2


def test_flags_may_stand_between_files_and_names_may_begin_with_a_hyphen(
    audioset_like, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.wav", 1)
    write(tmp_path / "-0RWZT-miFs.wav", 1)
    for words in (
        ["a.wav", "--top-k", 1, "a.wav", "--json"],
        ["--json", "--", "a.wav", "-0RWZT-miFs.wav"],
        ["a.wav", "--json", "--top_k=1", "--", "-0RWZT-miFs.wav"],
    ):
        status, out, err = run(capsys, audioset_like, *words)
        assert status == 0, err
        assert [row["file"] for row in json.loads(out)][1] in ("a.wav", "-0RWZT-miFs.wav")


def test_wrong_usage_is_2(audioset_like, tmp_path, capsys):
    path = write(tmp_path / "a.wav", 1)
    for flags, message in [
        (("--top-k", "0"), "--top-k is 0; give at least 1"),
        (("--padding", "short"), "invalid choice: 'short'"),
        (("--int8", "--dtype", "float16"), "--int8 is for a CPU"),
        (("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["classify", str(audioset_like), str(path), *flags])
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_name_that_begins_with_a_hyphen_gets_the_hint(audioset_like, capsys):
    """YouTube's ids may begin with a hyphen."""
    for arguments in (["-0RWZT-miFs.wav"], ["a.wav", "-0RWZT-miFs.wav"]):
        with pytest.raises(SystemExit) as caught:
            run(capsys, audioset_like, *arguments)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "(-- -0RWZT-miFs.wav), or be given as ./-0RWZT-miFs.wav" in error
    with pytest.raises(SystemExit):
        run(capsys, audioset_like, "a.wav", "--flag")
    assert "hyphen" not in capsys.readouterr().err


def test_what_a_file_is_and_any_failure_of_a_decoder_is_its_reason(
    audioset_like, tmp_path, capsys, monkeypatch
):
    good = write(tmp_path / "a.wav", 1.0)
    page, wrong_rate = tmp_path / "page.mp3", write(tmp_path / "rate.wav", 1.0)
    page.write_text("<html>not found</html>")
    content = bytearray(wrong_rate.read_bytes())
    content[24:28] = (67_130_914).to_bytes(4, "little")
    wrong_rate.write_bytes(content)
    status, out, error = run(capsys, audioset_like, page, wrong_rate, good)
    assert status == 1 and "it is an HTML page" in error and str(good) in out
    assert "67130914 Hz; it must be from 100 to 1000000 Hz" in error

    for failure, reason in [
        (MemoryError(), "cannot be read (MemoryError); drop it"),
        (RuntimeError("soxr: bad\nratio"), "cannot be read (soxr: bad); drop it"),
    ]:
        monkeypatch.setattr("modeling_ast.audio.read_audio", Mock(side_effect=failure))
        status, _, error = run(capsys, audioset_like, good)
        assert status == 1 and reason in error


# Cursor, direction and line characters, half a character, a formula, a tag, and equal names.
NASTY = ["a\x1b[2J", "\u202eb", "c\nd", "\udc80", "$\\frac{e$", "<b>f</b>", "dog", "dog"]


def test_labels_of_a_stranger_do_no_harm(tiny_model, tmp_path, capsys):
    """They do no harm in the terminal, as JSON and in a picture; equal names keep their scores."""
    config = ASTConfig.from_dict(
        {**tiny_model.config.to_dict(), "id2label": dict(enumerate(NASTY))}
    )
    folder = tmp_path / "model"
    randomise(ASTForAudioClassification(config)).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    path = write(tmp_path / "$a.wav", 1)
    words = (folder, path, "--top-k", len(NASTY))
    status, out, err = run(capsys, *words, "--plot", tmp_path / "out.png")
    assert status == 0, err
    assert out.replace("\n", "").isprintable() and len(out.splitlines()) == 1 + len(NASTY)
    assert r"a\x1b[2J" in out and r"\u202eb" in out and r"c\nd" in out and r"\udc80" in out
    status, out, _ = run(capsys, *words, "--json")
    (row,) = json.loads(out)
    assert out.replace("\n", "").isprintable()
    names = {entry["label"] for entry in row["labels"]}
    assert names == {*NASTY[:6], "dog [6]", "dog [7]"}


def test_more_labels_than_there_are(audioset_like, tmp_path, capsys, caplog):
    logging.enable_propagation()
    status, out, _ = run(capsys, audioset_like, write(tmp_path / "a.wav", 1), "--top-k", 528)
    assert status == 0 and len(out.splitlines()) == 528
    assert "top_k (--top-k) is 528 but the model has 527 labels" in caplog.text
