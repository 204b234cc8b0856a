"""Scores of shorter clips, against plain transformers and scikit-learn; table, card, picture."""

import json

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from sklearn.metrics import average_precision_score

from modeling_ast.labels import Label
from modeling_ast.tagging import AudioTagger
from modeling_ast.training.clips import ClipReader
from modeling_ast.training.held_out import HeldOut
from modeling_ast.training.length_report import draw_lengths, length_section, length_table
from modeling_ast.training.lengths import LengthResult, Lengths, judge_lengths, spread

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def held_out():
    """Clips with several labels: noise with a louder part, which begins at a frame."""
    rng = np.random.default_rng(0)
    rows, targets = [], rng.integers(0, 2, (12, 5))
    targets[:5], targets[5:10] = np.eye(5), 1 - np.eye(5)
    for index in range(12):
        wave = 0.01 * rng.standard_normal(6000 + 900 * index)
        wave[160 * index :][:4000] *= 3 + index
        rows.append({"array": wave.astype(np.float32), "sampling_rate": 16000})
    clips = Dataset.from_list([{"audio": row} for row in rows])
    return HeldOut(clips, ClipReader(), [Label(x, x) for x in NAMES], targets, exclusive=False)


def loudest(wave, length):
    starts = range(0, max(1, len(wave) - length + 1), 160)
    return max((wave[start : start + length] for start in starts), key=lambda x: (x**2).sum())


@pytest.fixture
def named_folder(tiny_folder):
    """The tiny model, with the labels of the clips."""
    config = json.loads((tiny_folder / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    config["id2label"] = dict(enumerate(NAMES))
    config["label2id"] = {name: index for index, name in enumerate(NAMES)}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    return tiny_folder


def test_scores_are_those_of_plain_transformers_on_cut_clips(named_folder, held_out):
    tagger = AudioTagger.from_pretrained(named_folder, num_workers=0)
    lengths = judge_lengths(tagger, held_out)
    waves = [np.asarray(row["audio"]["array"], dtype=np.float32) for row in held_out.clips]
    assert lengths.num_clips == 12
    assert lengths.whole_seconds == pytest.approx(np.median([len(wave) / 16000 for wave in waves]))
    # The longest clip has 0.99 s.
    assert lengths.seconds == [0.25, 0.5]
    model = transformers.ASTForAudioClassification.from_pretrained(named_folder)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=40, max_length=97)
    for seconds, found in zip((0.25, 0.5, 60), lengths.values("mAP")["max_length"], strict=True):
        parts = [loudest(wave, round(seconds * 16000)) for wave in waves]
        # A clip longer than the model's input is processed in two equal parts.
        halves = [np.array_split(part, 1 + (len(part) > 96 * 160 + 400)) for part in parts]
        scores = []
        for pieces in halves:
            inputs = extractor(list(pieces), sampling_rate=16000, return_tensors="pt")
            with torch.no_grad():
                scores.append(model(**inputs).logits.double().sigmoid().mean(0).numpy())
        wanted = average_precision_score(held_out.targets, np.stack(scores), average="macro")
        assert found == pytest.approx(wanted, abs=1e-6)
    # A single clip is not padded, so the mask of a batch must hide its padding.
    for seconds, found in zip((0.25, 0.5), lengths.values("mAP")["longest"]):
        scores = []
        for wave in waves:
            (result,) = AudioTagger(
                tagger.model, tagger.extractor, padding="longest", num_workers=0
            )([(loudest(wave, round(seconds * 16000)), 16000)])
            scores.append(result.scores)
        wanted = average_precision_score(held_out.targets, np.stack(scores), average="macro")
        assert found == pytest.approx(wanted, abs=1e-6)


def test_spread_takes_clips_from_all_over_the_set(held_out):
    few = spread(held_out, 4)
    assert np.array_equal(few.targets, held_out.targets[[0, 4, 7, 11]])
    assert spread(held_out, 12) is held_out


@pytest.fixture
def lengths():
    results = [
        LengthResult(padding, seconds, {"mAP": (seconds or 2) / 4 + (padding == "longest") / 8})
        for padding in ("max_length", "longest")
        for seconds in (0.25, 0.5, 1.0, None)
    ]
    return Lengths(results, 17, 2.04)


def test_the_forms_of_the_scores(lengths, tmp_path):
    assert lengths.as_json("mAP") == {
        "metric": "mAP",
        "clips": 17,
        "seconds": [0.25, 0.5, 1.0, 2.04],
        "max_length": [0.0625, 0.125, 0.25, 0.5],
        "longest": [0.1875, 0.25, 0.375, 0.625],
    }
    text = length_table({"x": lengths, "longer": lengths}, "mAP")
    assert "mAP on 17 clips: on the loudest part of each length" in text
    assert "and on whole clips (median 2.04 s)" in text
    assert "longer  longest      0.1875   0.2500   0.3750   0.6250" in text
    draw_lengths({"x": lengths, "y": lengths}, "mAP", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_whole_clips_are_last_in_the_picture(lengths, tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, *_, **__: pictures.append(figure)
    )
    draw_lengths({"x": lengths}, "mAP", tmp_path / "x.png")
    axis = pictures[0].axes[0]
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    assert ticks == ["0.25", "0.5", "1", "whole\n(median 2.04)"]
    lines = [line for line in axis.lines if line.get_label() in ("max_length", "longest")]
    assert [list(line.get_ydata()) for line in lines] == list(lengths.values("mAP").values())


def test_a_length_that_most_clips_do_not_exceed_is_left_out(named_folder, held_out):
    """The clips have 0.38 to 0.99 s."""
    tagger = AudioTagger.from_pretrained(named_folder, num_workers=0)
    for few, seconds in ((held_out.select([0, 1, 2]), [0.25]), (held_out, [0.25, 0.5])):
        assert judge_lengths(tagger, few).seconds == seconds


def test_the_cards_section(lengths):
    text = length_section(lengths, "mAP", "longest")
    assert (
        "mAP on 17 of the held-out clips" in text
        and "padding that\nis saved with this model is `longest`" in text
    )
    assert "| padding | 0.25 s | 0.5 s | 1 s | whole |\n| --- | ---: | ---: | ---: | ---: |" in text
    assert "| `max_length` | 0.0625 | 0.1250 | 0.2500 | 0.5000 |" in text
    assert "| `longest` | 0.1875 | 0.2500 | 0.3750 | 0.6250 |" in text
    assert "plain transformers and transformers.js always pad to max_length" in text
    assert "(score_by_length.png)" in text
    assert length_section(Lengths([], 0, 0.0), "mAP", "longest") == ""
