"""`modeling-ast calibrate`, and every command that uses its file."""

import csv
import json

import numpy as np
import pytest
import soundfile

from modeling_ast import AudioTagger
from modeling_ast.calibration import Calibration, LabelCalibration
from modeling_ast.commands import main
from modeling_ast.strict_json import to_json

RATE = 16_000
LABELS = [f"LABEL_{index}" for index in range(5)]


def run(capsys, *arguments):
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def write_table(folder, name, files):
    """A table of clips, each with a label."""
    with (folder / name).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio", "label"])
        table.writerows(files)
    return folder / name


@pytest.fixture
def data(tmp_path):
    """A table of 40 clips to calibrate with, and one of 10 that the model was trained on."""
    folder = tmp_path / "data"
    folder.mkdir()
    files = []
    for number in range(50):
        x = 0.1 * np.random.default_rng(number).standard_normal(RATE // 2)
        soundfile.write(folder / f"{number}.wav", x, RATE)
        files.append((f"{number}.wav", LABELS[number % 5]))
    write_table(folder, "train.csv", files[40:])
    write_table(folder, "test.csv", files[:40])
    lines = ["index,mid,display_name", *(f"{i},{label},{label}" for i, label in enumerate(LABELS))]
    (folder / "class_labels_indices.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def model(tiny_model, tiny_folder):
    """A tiny model for clips with several labels."""
    tiny_model.config.problem_type = "multi_label_classification"
    tiny_model.config.save_pretrained(tiny_folder)
    return tiny_folder


def make_calibration(folder, thresholds=(0.1, 0.9, 0.9, 0.9, 0.1)):
    labels = {
        name: LabelCalibration(value, 0.5, 0.25, 20) for name, value in zip(LABELS, thresholds)
    }
    calibration = Calibration(labels, "platt", "best F1", "sigmoid", "max_length", 40)
    calibration.save(folder)
    return calibration


def test_calibration_json_is_written_and_used(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("calibrate", model, "--data", data, "--min-positives", 8)
    status, out, _ = run(capsys, *arguments)
    assert status == 0 and f"40 clips of {data}, temperature, best F1" in out
    content = json.loads((model / "calibration.json").read_text())
    assert list(content["labels"]) == LABELS and content["num_clips"] == 40
    assert all(label["positives"] == 8 for label in content["labels"].values())
    tagger = AudioTagger.from_pretrained(model)
    plain = AudioTagger.from_pretrained(model, calibration=False)
    (calibrated,), (raw,) = (list(one([data / "0.wav"])) for one in (tagger, plain))
    np.testing.assert_allclose(calibrated.scores, tagger.calibration.apply(raw.scores))
    assert raw.detected is None and plain.calibration is None
    status, out, _ = run(capsys, *arguments, "--json", "--method", "platt", "--precision", "0.2")
    result = json.loads(out)
    assert (
        result["clips"] == 40 and result["fallback"] == [] and set(result["after"]) == {"F1", "ECE"}
    )
    # A second calibration starts from the uncalibrated scores of the model.
    first = json.loads((model / "calibration.json").read_text())
    run(capsys, *arguments, "--method", "platt", "--precision", "0.2")
    assert json.loads((model / "calibration.json").read_text()) == first


def test_labels_with_few_clips_are_named(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(data, "test.csv", [(f"{n}.wav", LABELS[min(n % 8, 4)]) for n in range(40)])
    status, out, _ = run(capsys, "calibrate", model, "--data", data)
    assert status == 0 and out.count("of all labels: too few clips") == 4
    assert "LABEL_4     20" in out


def test_too_few_clips_of_each_label(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "calibrate", model, "--data", data)
    assert status == 1 and not out and not (model / "calibration.json").exists()
    assert "no label has 10 clips (the most is 8 of 40 clips); give more" in err
    assert run(capsys, "calibrate", model, "--data", data, "--min-positives", 8)[0] == 0


def test_clips_of_the_training_are_refused(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_file = {"data": str(data), "train_split": "train", "eval_split": "test", "seed": 0}
    (model / "run.json").write_text(to_json(run_file))
    other = tmp_path / "other.csv"
    files = [(str(data / f"{number}.wav"), LABELS[number % 5]) for number in range(35, 50)]
    write_table(tmp_path, "other.csv", files)
    for arguments, count in (
        (("--data", data, "--eval-split", "train"), "10 of the 10 clips"),
        (("--data", other, "--eval-split", "train"), "10 of the 15 clips"),
    ):
        csv_flag = ("--label-csv", data / "class_labels_indices.csv")
        status, _, err = run(capsys, "calibrate", model, *arguments, *csv_flag)
        assert status == 1 and count in err
        assert "give other clips, such as --eval-split test" in err
    assert not (model / "calibration.json").exists()
    assert run(capsys, "calibrate", model, "--data", data, "--min-positives", 8)[0] == 0


@pytest.mark.parametrize("given", [(), ("--data", "data"), ("--data", "data/../data")])
def test_run_json_says_which_clips_are_held_out(given, model, data, tmp_path, capsys, monkeypatch):
    """The run's own random division is used, so that no training clip is among them."""
    monkeypatch.chdir(tmp_path)
    (data / "test.csv").replace(data / "train.csv")
    run_file = {"data": str(data), "eval_share": 0.6, "audio_column": "audio"}
    (model / "run.json").write_text(to_json(run_file))
    arguments = ("calibrate", model, *given, "--min-positives", 2)
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    assert ": 24 clips of" in out
    # Flags take precedence.
    status, _, err = run(capsys, *arguments, "--eval-share", "0.9")
    assert status == 1 and "are among those that" in err


def test_a_damaged_run_json(model, data, capsys):
    (model / "run.json").write_text("[]")
    with pytest.raises(SystemExit) as ended:
        run(capsys, "calibrate", model, "--data", data)
    assert ended.value.code == 2
    assert "does not hold the arguments of a run" in capsys.readouterr().err


def test_help_has_no_flag_that_does_nothing(capsys):
    with pytest.raises(SystemExit):
        run(capsys, "calibrate", "--help")
    assert "--no-calibration" not in capsys.readouterr().out


def test_one_line_says_that_a_calibration_is_used(model, data, tmp_path, capsys):
    make_calibration(model)
    short = ("--window", "0.5")
    for verb in (
        ("classify", model, data / "0.wav"),
        ("tag", model, data, "--output", tmp_path / "tags.jsonl", "--padding", "longest"),
        ("detect", model, data / "0.wav", *short),
    ):
        status, _, err = run(capsys, *verb)
        assert status == 0 and err.splitlines()[0] == (
            f"calibration.json of {model} is used (platt, best F1, fitted to 40 clips); "
            f"--no-calibration leaves it out"
        )
    err = run(capsys, "classify", model, data / "0.wav", "--no-calibration")[2]
    assert "calibration" not in err


def test_classify(model, data, capsys):
    calibration = make_calibration(model)
    name = data / "0.wav"
    status, out, _ = run(capsys, "classify", model, name, "--json")
    (row,) = json.loads(out)
    scores = {pair["label"]: pair["score"] for pair in row["labels"]}
    expected = [label for label in LABELS if scores[label] >= calibration.labels[label].threshold]
    assert status == 0 and row["detected"] == expected and 0 < len(expected) < 5
    out = run(capsys, "classify", model, name)[1]
    assert out.count("  *\n") == len(expected)
    (row,) = json.loads(run(capsys, "classify", model, name, "--json", "--no-calibration")[1])
    assert "detected" not in row
    for pair in row["labels"]:
        (calibrated,) = calibration.apply(np.array([[pair["score"]] * 5]))
        assert scores[pair["label"]] == pytest.approx(calibrated[0])


def test_tag(model, data, tmp_path, capsys):
    arguments = ("tag", model, data, "--output", tmp_path / "tags.parquet")
    assert run(capsys, *arguments, "--no-calibration")[0] == 0
    calibration = make_calibration(model)
    status, _, err = run(capsys, *arguments)
    assert status == 0, err  # all clips were done already
    (data / "new.wav").write_bytes((data / "0.wav").read_bytes())
    status, _, err = run(capsys, *arguments)
    assert status == 1 and "with calibration 'none', not" in err and "--no-calibration" in err
    other = ("tag", model, data, "--output", tmp_path / "other.jsonl")
    assert run(capsys, *other)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    assert {row["calibration"] for row in rows} == {calibration.fingerprint}
    assert all(set(row["detected"]) <= set(LABELS) for row in rows)


def test_detect(model, data, tmp_path, capsys):
    make_calibration(model, (1e-6, 0.999999, 0.5, 0.5, 0.5))
    rules = ("--window", "0.5", "--hop", "0.1", "--json")
    out = run(capsys, "detect", model, data / "0.wav", *rules)[1]
    labels = {event["label"] for event in json.loads(out)["recordings"][0]["events"]}
    assert "LABEL_0" in labels and "LABEL_1" not in labels
    out = run(capsys, "detect", model, data / "0.wav", *rules, "--threshold", "0.000001")[1]
    labels = {event["label"] for event in json.loads(out)["recordings"][0]["events"]}
    assert labels == set(LABELS)


def test_evaluate(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("evaluate", model, "--data", data, "--length-clips", 0, "--json")
    (plain,) = json.loads(run(capsys, *arguments)[1])["models"]
    make_calibration(model)
    (calibrated,) = json.loads(run(capsys, *arguments)[1])["models"]
    (off,) = json.loads(run(capsys, *arguments, "--no-calibration")[1])["models"]
    assert off == plain and calibrated["F1"] != plain["F1"] and calibrated["ECE"] != plain["ECE"]
    # One slope and intercept for all labels does not change the order of the clips.
    assert calibrated["mAP"] == pytest.approx(plain["mAP"])


def test_one_sentence(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "calibrate", "nobody/nothing", "--data", data)
    assert status == 1 and "there is no folder at 'nobody/nothing'" in err and "--output" in err
    status, _, err = run(capsys, "calibrate", model, "--data", tmp_path / "missing")
    assert status == 1 and len(err.strip().splitlines()) == 1
    status, _, err = run(capsys, "calibrate", model, "--data", data, "--precision", "2")
    assert status == 1 and "precision is 2.0; give more than 0 and at most 1" in err
    (model / "calibration.json").write_text("{}")
    status, _, err = run(capsys, "classify", model, data / "0.wav")
    assert status == 1 and "is not a calibration" in err and "--no-calibration" in err
    # The file is written again, as that message advises.
    assert run(capsys, "calibrate", model, "--data", data, "--min-positives", 8)[0] == 0
    assert run(capsys, "classify", model, data / "0.wav")[0] == 0
    with pytest.raises(SystemExit) as ended:
        run(capsys, "calibrate", model)
    assert ended.value.code == 2 and "--data is missing" in capsys.readouterr().err
