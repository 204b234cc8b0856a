"""`modeling-ast evaluate`, against plain transformers and scikit-learn."""

import csv
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import transformers
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    recall_score,
    roc_auc_score,
)

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import evaluate_models
from tests.conftest import TINY, randomise

WORDS = ["cat", "dog", "owl"]


@pytest.fixture
def sounds(tmp_path):
    """Files in test/; two models cut them into one to three parts, the third into one or two."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(18):
        path = tmp_path / "sounds" / "test" / WORDS[index % 3] / f"{index:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = rng.standard_normal(8000 + 1700 * index) * 0.02 * (1 + index % 3)
        soundfile.write(path, samples, 16000, "FLOAT")
        rows.append((path, soundfile.read(path, dtype="float32")[0], index % 3))
    return tmp_path / "sounds", sorted(rows)


@pytest.fixture
def models(tmp_path):
    """Three models with different strides, lengths, labels and orders of labels."""
    folders = []
    for seed, changes in enumerate(
        (
            {"labels": WORDS},
            {"labels": [*WORDS[::-1], "fox"], "time_stride": 11, "frequency_stride": 12},
            {"labels": WORDS, "max_length": 160},
        )
    ):
        labels = dict(enumerate(changes.pop("labels")))
        sizes = {name: value for name, value in TINY.items() if name != "num_labels"}
        config = ASTConfig(
            **{**sizes, **changes},
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
            problem_type="multi_label_classification",
        )
        folder = tmp_path / f"model{seed}"
        randomise(ASTForAudioClassification(config), seed).save_pretrained(folder)
        ASTFeatureExtractor.from_config(config).save_pretrained(folder)
        folders.append(folder)
    return folders


def expected_scores(folder, rows):
    """Scores by plain transformers: (clips, C), in the order of WORDS."""
    model = transformers.ASTForAudioClassification.from_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    extractor = transformers.ASTFeatureExtractor(
        num_mel_bins=settings["num_mel_bins"], max_length=settings["max_length"]
    )
    order = [model.config.label2id[word] for word in WORDS]
    longest = 400 + 160 * (settings["max_length"] - 1)
    with torch.no_grad():
        scores = []
        for _, wave, _ in rows:
            count = math.ceil(len(wave) / longest)
            bounds = [round(part * len(wave) / count) for part in range(count + 1)]
            parts = [wave[start:stop] for start, stop in pairwise(bounds)]
            inputs = extractor(parts, sampling_rate=16000, return_tensors="pt")
            scores.append(model(**inputs).logits.double().sigmoid().mean(0)[order])
    return torch.stack(scores).numpy()


@pytest.fixture
def run(capsys):
    """Runs the command, returns its output and its errors, and restores the libraries' logging."""
    verbosity = transformers.utils.logging.get_verbosity()

    def run_command(*words, status=0):
        assert evaluate_models.main([str(word) for word in words]) == status
        return capsys.readouterr()

    yield run_command
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


def test_models_and_their_ensemble(sounds, models, tmp_path, run):
    folder, rows = sounds
    table = tmp_path / "classes.csv"
    files = ("--per_class", table, "--bad-clips", tmp_path / "bad.txt")
    out = json.loads(run(*models, "--data", folder, "--json", "--batch_size", 5, *files).out)
    truth = np.array([label for *_, label in rows])
    targets = np.eye(3)[truth]
    each = [expected_scores(model, rows) for model in models]
    mean = sum(each) / 3
    assert out["clips"] == 18 and out["models"][3]["model"] == "ensemble of 3"
    for row, scores in zip(out["models"], [*each, mean], strict=True):
        precision = average_precision_score(targets, scores, average="macro")
        assert row["mAP"] == pytest.approx(precision, abs=1e-6)
        assert row["mAUC"] == pytest.approx(roc_auc_score(targets, scores), abs=1e-6)
        assert row["accuracy"] == accuracy_score(truth, scores.argmax(1))
    with table.open(newline="") as file:
        written = list(csv.DictReader(file))
    for index, row in enumerate(written):
        expected = average_precision_score(targets[:, index], mean[:, index])
        assert float(row["average_precision"]) == pytest.approx(expected, abs=1e-6)
        assert (row["name"], row["positives"]) == (WORDS[index], "6")
    text = run(models[0], "--data", folder, *files).out
    assert text.startswith("18 clips\n") and str(models[0]) in text and "ensemble of" not in text


def loudest(wave, seconds):
    """The loudest part of a length that begins at a frame; a shorter clip is returned whole."""
    length = round(seconds * 16000)
    starts = range(0, max(1, len(wave) - length + 1), 160)
    return max((wave[start : start + length] for start in starts), key=lambda x: (x**2).sum())


def test_both_paddings_at_several_lengths(sounds, models, tmp_path, run):
    """Compared with evaluations of clips that were cut by hand, with the same padding."""
    folder, rows = sounds
    options = ("--json", "--bad-clips", tmp_path / "bad.txt")
    result = json.loads(run(models[2], "--data", folder, *options).out)
    lengths = result["lengths"][str(models[2])]
    assert (lengths["metric"], lengths["clips"]) == ("accuracy", 18)
    seconds = [len(wave) / 16000 for _, wave, _ in rows]
    assert lengths["seconds"] == [0.25, 0.5, 1.0, pytest.approx(np.median(seconds))]
    for index, cut in ((0, 0.25), (2, 1.0), (-1, 60.0)):
        shorter = tmp_path / f"cut{cut}"
        for path, wave, _ in rows:
            target = shorter / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, loudest(wave, cut), 16000, "FLOAT")
        for padding in ("max_length", "longest"):
            flags = ("--padding", padding, "--length-clips", 0)
            expected = json.loads(run(models[2], "--data", shorter, *options, *flags).out)
            assert expected["lengths"] == {}
            assert lengths[padding][index] == expected["models"][0]["accuracy"]
    picture = tmp_path / "curves.png"
    words = (*models[:2], "--data", folder, *options[1:], "--length-clips", 7)
    text = run(*words, "--length-plot", picture).out
    assert "accuracy on 7 clips: on the loudest part of each length, and on whole clips" in text
    assert "(median 1." in text
    assert "always pad to max_length" in text and text.count("longest ") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_padding_is_the_saved_one_unless_it_is_given(sounds, models, tmp_path, run):
    """The third model's input is longer than the clips, so that padding changes its scores."""
    folder, _ = sounds
    options = (models[2], "--data", folder, "--bad-clips", tmp_path / "bad.txt", "--json")
    longest = run(*options, "--padding", "longest", "--batch-size", 1).out
    saved = run(*options).out
    assert json.loads(longest)["classes"] != json.loads(saved)["classes"]
    assert run(*options, "--padding", "max_length").out == saved
    extractor = ASTFeatureExtractor.from_pretrained(models[2], padding="longest")
    extractor.save_pretrained(models[2])
    assert run(*options, "--batch-size", 1).out == longest


def test_undefined_numbers_are_null(sounds, models, tmp_path, run):
    """The last class of the class list has no clip."""
    folder, _ = sounds
    labels = tmp_path / "labels.csv"
    labels.write_text("index,display_name\n0,cat\n1,dog\n2,owl\n3,fox\n")
    words = ("--data", folder, "--label-csv", labels, "--bad-clips", tmp_path / "bad.txt", "--json")
    result = json.loads(run(models[1], *words).out, parse_constant=pytest.fail)
    assert result["models"][0]["undefined_classes"] == 1
    assert result["classes"][3] == {
        "name": "fox",
        "average_precision": None,
        "auc": None,
        "positives": 0,
        "precision": result["classes"][3]["precision"],
        "recall": None,
        "f1": result["classes"][3]["f1"],
    }


def test_a_directory_of_results(sounds, models, tmp_path, run):
    """Compared with scikit-learn, for an ensemble; the summary has the same numbers."""
    folder, rows = sounds
    out = tmp_path / "some" / "results"
    options = ("--data", folder, "--bad-clips", tmp_path / "bad.txt", "--length-clips", 0)
    text = run(*models[:2], *options, "--output-dir", out, "--worst-clips", 5).out
    truth = np.array([label for *_, label in rows])
    mean = (expected_scores(models[0], rows) + expected_scores(models[1], rows)) / 2
    guesses = mean.argmax(1)
    results = json.loads((out / "results.json").read_text())
    value = accuracy_score(truth, guesses)
    assert results["value"] == value and results["chance"] == pytest.approx(1 / 3)
    assert results["low"] < value < results["high"]
    recalls = recall_score(truth, guesses, average=None, zero_division=np.nan)
    np.testing.assert_allclose([row["recall"] for row in results["classes"]], recalls)
    assert f"accuracy {value:.3f} on 18 held-out clips (95 % interval" in text
    assert "weakest classes, by F1: " in text and "most often confused: " in text
    assert json.loads((out / "metrics.json").read_text())["eval_accuracy"] == value
    with (out / "worst_clips.csv").open(newline="") as file:
        worst = list(csv.DictReader(file))
    surest = sorted(np.flatnonzero(guesses != truth), key=lambda clip: -mean[clip].max())
    assert [row["file"] for row in worst] == [
        str(rows[clip][0].relative_to(folder)) for clip in surest
    ]
    assert [row["true"] for row in worst] == [WORDS[truth[clip]] for clip in surest]
    assert (out / "worst_clips.html").read_text().count("<audio") == 5
    readme = (out / "README.md").read_text()
    for name in ("worst_clips.html", "worst_clips.csv", "confusion.png"):
        assert f"({name})" in readme and (out / name).is_file()
    # The same directory may be used again; a model's directory is refused at once.
    run(*models[:2], *options, "--output-dir", out, "--worst-clips", 0)
    assert not (out / "worst_clips.html").exists()
    error = run(models[0], *options, "--output-dir", models[0], status=1).err
    assert "holds a model, whose card and figures would be replaced" in error
    error = run(models[0], *options, "--output-dir", rows[0][0], status=1).err
    assert "is a file but must be a directory" in error and "give another --output-dir" in error
    # A refused evaluation leaves no empty directory.
    new = tmp_path / "new" / "deeper"
    run(tmp_path / "no model", *options, "--output-dir", new, status=1)
    assert not new.parent.exists()


def test_groups_make_the_interval_wider(sounds, models, tmp_path, run):
    """The groups are the labels, and the model is good on only some of them."""
    folder, _ = sounds
    options = (models[0], "--data", folder, "--bad-clips", tmp_path / "bad.txt", "--json")
    options += ("--length-clips", 0)
    alone = json.loads(run(*options).out)
    grouped = json.loads(run(*options, "--group-by", "(cat|dog|owl)/").out)
    assert (alone["groups"], grouped["groups"]) == (None, 3)
    assert grouped["value"] == alone["value"]
    assert grouped["low"] < alone["low"] and grouped["high"] > alone["high"]
    assert "--group-by" in run(*options, "--group-by", "(x).wav", status=1).err


def test_mistakes_are_one_line(sounds, models, tmp_path, run):
    folder, rows = sounds
    extra = folder / "test" / "wolf" / "x.wav"
    extra.parent.mkdir()
    extra.write_bytes(rows[0][0].read_bytes())
    options = ("--data", folder, "--bad-clips", tmp_path / "bad.txt")

    def message(*words):
        printed = run(*words, status=1)
        (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert printed.out == "" and printed.err.endswith(f"{line}\n")
        return line

    assert "does not know 1 of the 4 classes, such as ['wolf']" in message(models[0], *options)
    device = message(models[2], *options, "--label-csv", "nowhere.csv")
    assert "cannot read the label file nowhere.csv" in device
    assert "cannot use the device 'abacus'" in message(models[0], *options, "--device", "abacus")
    extra.unlink()
    extra.parent.rmdir()
    (folder / "test" / "cat" / "x.wav").write_bytes(b"no sound")
    line = message(models[0], *options)
    assert "1 of 19 clips cannot be decoded" in line and "cat/x.wav: " in line


def test_bad_clips_are_left_out_of_everything(sounds, models, tmp_path, run):
    folder, _ = sounds
    options = ("--json", "--data", folder, "--bad-clips", tmp_path / "bad.txt")
    expected = json.loads(run(*models[:2], *options).out)
    (folder / "test" / "cat" / "a.wav").write_bytes(b"no sound")
    # The list of an earlier run does not count.
    (tmp_path / "bad.txt").write_text("".join(f"old{i}.wav\tno sound\n" for i in range(9)))
    printed = run(*models[:2], *options, "--max-bad-share", 0.1)
    result = json.loads(printed.out)
    assert result == expected and "a.wav" in (tmp_path / "bad.txt").read_text()
    assert "old0" not in (tmp_path / "bad.txt").read_text()
    assert f"data {folder}: 19 found: test 18, skipped 1" in printed.err
    assert "cannot be decoded" in printed.err and "(test/cat/a.wav)" in printed.err


def test_a_run_says_what_was_held_out(sounds, models, tmp_path, run):
    """Also without --data; training clips give a warning, and a flag takes precedence."""
    folder, _ = sounds
    whole = tmp_path / "whole"
    (folder / "test").rename(whole)
    run_file = {"data": str(whole), "eval_share": 0.3, "streaming": False}
    (models[0] / "run.json").write_text(json.dumps(run_file))
    options = ("--bad-clips", tmp_path / "bad.txt", "--length-clips", 0)
    for given in ((), ("--data", whole)):
        printed = run(models[0], *given, *options)
        assert printed.out.startswith("6 clips\n") and "trained on" not in printed.err
    printed = run(*models[:2], *options, "--eval-split", "train")
    assert printed.out.startswith("18 clips\n")
    assert (
        f"WARNING: 12 of 18 clips are among those that {models[0]} was trained on; the scores "
        f"are too good\n"
    ) in printed.err
    assert printed.err.count("WARNING") == 1
    # The training clips of a model without run.json are unknown.
    assert "18 clips" in run(models[1], "--data", whole, "--eval-split", "train", *options).out


@pytest.mark.parametrize(
    ("words", "words_of_error"),
    [
        (["model"], "--data is missing"),
        (["--data", "data"], "MODEL"),
        (["model", "--data", "data", "--streaming"], "--streaming is for modeling-ast finetune"),
        (
            ["model", "--data", "data", "--length-clips", "0", "--length-plot", "x.png"],
            "--length-plot shows the scores of --length-clips, which is 0",
        ),
        (["model", "--data", "data", "--top_z", "3"], "unrecognized arguments: --top-z 3"),
    ],
)
def test_wrong_usage(words, words_of_error, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate_models.main(words)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert words_of_error in printed.err and "usage: modeling-ast evaluate MODEL..." in printed.err
