"""The report on each file, from the command to data_report.json, for four kinds of data."""

import json

import numpy as np
import pytest
import soundfile

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.audio_files import Skipped
from modeling_ast.commands import main
from modeling_ast.training.data_report import DataReport, Missing
from tests.conftest import randomise


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = ASTConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        max_length=60,
        num_mel_bins=32,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("base") / "model"
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


def write_clip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(len(path.name)).standard_normal(4000), 16000)


def folder_of_labels(root):
    for label in ("train horn", "bus"):
        for index in range(5):
            write_clip(root / label / f"training day {index}.wav")
    (root / "bus" / "._0.wav").write_bytes(b"x")
    for index in (7, 8, 9):
        (root / "bus" / f"broken {index}.wav").write_bytes(b"no sound")
    return ["--data", root, "--eval-share", "0.3"], 14, {"cannot be decoded": 3, "resource": 1}


def esc50(root):
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for index in range(10):
        write_clip(root / "audio" / f"{index}-A.wav")
        lines.append(f"{index}-A.wav,{1 + index // 2},{index % 2},{'ab'[index % 2]},True,x,A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return ["--data", root, "--eval-fold", "1"], 10, {}


def fsd50k(root):
    lines = ["fname,labels,mids,split"]
    for index in range(10):
        write_clip(root / "dev" / f"{index:05d}.wav")
        split = "val" if index > 6 else "train"
        lines.append(f'{index:05d},"{"ab"[index % 2]},c","/m/{index % 2},/m/2",{split}')
    (root / "dev.csv").write_text("\r\n".join([*lines, '77777,"a,c","/m/0,/m/2",train']))
    return ["--data", root / "dev.csv", "--audio-root", root / "dev"], 11, {"no such file": 1}


def audio_set(root):
    lines = [
        "# Segments csv",
        "# num_ytids=8",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    for index in range(8):
        name = f"-YTID_{index:05d}"
        if index:
            write_clip(root / "wav" / f"{name}.wav")
        lines.append(f'{name}, {index}.000, {index + 10}.000, "/m/{index % 2}"')
    (root / "some_segments.csv").write_text("\n".join(lines) + "\n")
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/0,"A, b"\n1,/m/1,C\n'
    )
    words = ["--data", root / "some_segments.csv", "--audio-root", root / "wav"]
    return [*words, "--eval-share", "0.3"], 8, {"no such file": 1}


@pytest.mark.parametrize("make", [folder_of_labels, esc50, fsd50k, audio_set])
def test_a_fine_tuning_says_what_became_of_each_file(make, base, tmp_path, capsys):
    words, found, reasons = make(tmp_path / "data")
    out = tmp_path / "out"
    words += ["--model", base, "--output-dir", out, "--max-steps", "4", "--length-clips", "0"]
    words += ["--per-device-train-batch-size", "8", "--max-bad-share", "0.4", "--report-to", "none"]
    assert main(["finetune", *map(str, words)]) == 0
    printed = capsys.readouterr().err
    report = json.loads((out / "data_report.json").read_text())
    assert report["found"] == found == sum(report["used"].values()) + len(report["skipped"])
    assert f"{found} found: " in printed
    # One label per clip, or two for FSD50K.
    counted = sum(number for counts in report["labels"].values() for number in counts.values())
    assert counted == sum(report["used"].values()) * (2 if make is fsd50k else 1)
    texts = [entry["reason"] for entry in report["skipped"]]
    assert len(texts) == sum(reasons.values())
    assert all(sum(part in text for text in texts) == number for part, number in reasons.items())
    assert (out / "missing_clips.csv").exists() == ("no such file" in reasons)
    if make is folder_of_labels:
        assert {"bus/broken 7.wav", "bus/._0.wav"} < {entry["file"] for entry in report["skipped"]}
        assert "(bus/broken 7.wav" in printed  # found only when it was decoded
    if make is audio_set:
        assert report["missing"] == {"A, b": 1} and set(report["labels"]) == {"A, b", "C"}


def test_stats_and_evaluate_print_it(base, tmp_path, capsys):
    words, _, _ = folder_of_labels(tmp_path / "data")
    words = [*map(str, words), "--bad-clips", str(tmp_path / "bad.txt"), "--max-bad-share", "1"]
    assert main(["stats", str(base), *words]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("--mean ") and "14 found: train " in printed.err
    assert "1 skipped: resource file of macOS" in printed.err


def test_stats_and_evaluate_list_missing_clips_and_check_labels(base, tmp_path, capsys):
    rows = [f"{index}.wav,{'abc'[index % 3]}" for index in range(9)]
    for index in range(8):
        write_clip(tmp_path / f"{index}.wav")
    table = tmp_path / "all.csv"
    table.write_text("\n".join(["file,label", *rows]) + "\n")
    for verb, share in (("stats", []), ("evaluate", ["--eval-share", 0.5, "--length-clips", 0])):
        missing, bad = tmp_path / f"{verb}.csv", tmp_path / "bad.txt"
        words = [verb, base, "--data", table, "--bad-clips", bad, "--missing-clips", missing]
        if verb == "evaluate":
            (tmp_path / "named.csv").write_text("index,display_name\n0,LABEL_0\n1,LABEL_1\n")
            words += ["--label-csv", tmp_path / "named.csv"]
            table.write_text(table.read_text().replace(",a", ",LABEL_0").replace(",b", ",LABEL_1"))
            table.write_text(table.read_text().replace(",c", ",LABEL_1"))
        assert main([*map(str, words), *map(str, share)]) == 0
        assert missing.read_text().splitlines()[0] == "file,labels"
        assert missing.read_text().splitlines()[1].startswith("8.wav,")
        assert f"missing clips are listed in {missing}" in capsys.readouterr().err
    (tmp_path / "names.csv").write_text("index,display_name\n0,x\n1,y\n")
    words = ["stats", base, "--data", table, "--label-csv", tmp_path / "names.csv"]
    assert main([*map(str, words)]) == 1
    assert "among the labels of the clips but not among the 2" in capsys.readouterr().err


def test_one_class_is_refused_by_the_command(base, tmp_path, capsys):
    for index in range(4):
        write_clip(tmp_path / "data" / "car" / f"{index}.wav")
    words = ["--model", base, "--data", tmp_path / "data", "--output-dir", tmp_path / "out"]
    assert main(["finetune", *map(str, words), "--eval-share", "0.5"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: all 2 clips to train on have the same label 'car'")


def test_the_totals_add_up_whatever_is_skipped():
    report = DataReport("nowhere")
    report.count("train", [["/m/0"], ["/m/0", "/m/1"]], 2)
    report.count("test", [["/m/1"]], 1)
    report.missing = [Missing("x", ["/m/1"])]
    report.skipped = [Skipped("x", "no such file")]
    report.rename({"/m/0": "a", "/m/1": "b", "0": "a"})
    assert report.labels == {"a": {"train": 2}, "b": {"train": 1, "test": 1}}
    assert report.found == 4 and report.missing_by_label == {"b": 1}
    report.skip_bad("train", ["p", "q\n"], [["/m/0"], ["/m/0", "/m/1"]], {"q": "bad"})
    assert report.used == {"train": 1, "test": 1} and report.found == 4
    assert report.labels == {"a": {"train": 1}, "b": {"train": 0, "test": 1}}
    assert report.lines()[0] == "data nowhere: 4 found: train 1, test 1, skipped 2"
    report.used["train"] = None  # a stream
    assert report.found is None and "train a stream" in report.lines()[0]
    json.loads(json.dumps(report.as_dict(), allow_nan=False))
