"""Every tool gives the same scores for the same file, model and padding.

Judge: plain transformers, on the ceil(n / longest) equal parts of the clip, averaged. For the
padding "longest", which it does not have, its model is built for just the patches of the part.
"""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import transformers
from transformers import TrainingArguments

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, AudioTagger
from modeling_ast.commands import main
from modeling_ast.training import ASTTrainer, AudioCollator, BadClips, LabelEncoder, evaluation
from modeling_ast.training.data_sources import DataArguments
from modeling_ast.training.evaluation import EvaluationArguments
from modeling_ast.training.held_out import read_held_out
from tests.conftest import TINY, randomise

RATE = 16000
FRAMES = TINY["max_length"]
# Samples that the model's 97 frames cover.
LONGEST = (FRAMES - 1) * 160 + 400
SECONDS = [0.1, 0.26, 0.5, 0.97, LONGEST / RATE, 1.0, 1.01, 1.97, 3.3, 10.24, 27.7, 45.0]
PADDINGS = ["max_length", "longest"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model for several labels in each clip, saved by plain transformers."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.ASTConfig(**TINY, problem_type="multi_label_classification")
    randomise(transformers.ASTForAudioClassification(config)).save_pretrained(folder)
    transformers.ASTFeatureExtractor(
        num_mel_bins=config.num_mel_bins, max_length=FRAMES
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips():
    """Tones that rise, in noise, so that no part of a clip is like another."""
    clips = []
    for seed, seconds in enumerate(SECONDS):
        n = np.arange(round(seconds * RATE)) / RATE
        tone = 0.3 * np.sin(2 * np.pi * (200 + 60 * n) * n)
        noise = 0.05 * np.random.default_rng(seed).standard_normal(len(n))
        clips.append((tone + noise).astype(np.float32))
    return clips


@pytest.fixture(scope="module")
def sounds(clips, tmp_path_factory):
    """The clips as files, in the order of their names."""
    root = tmp_path_factory.mktemp("sounds")
    paths = [root / f"{number:02}.wav" for number in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip, RATE, subtype="FLOAT")
    return paths


def parts_of(clip):
    count = math.ceil(len(clip) / LONGEST)
    bounds = [round(part * len(clip) / count) for part in range(count + 1)]
    return [clip[start:stop] for start, stop in pairwise(bounds)]


def plain_scores(folder, part, padding):
    """The scores (C,) of plain transformers."""
    model = transformers.ASTForAudioClassification.from_pretrained(folder)
    frames = FRAMES
    if padding == "longest":
        whole_frames = 1 + (len(part) - 400) // 160
        columns = max(1, 1 + (whole_frames - 16) // TINY["time_stride"])
        frames = 16 + (columns - 1) * TINY["time_stride"]
        model = of_length(model, frames, columns)
    extractor = transformers.ASTFeatureExtractor(
        num_mel_bins=TINY["num_mel_bins"], max_length=frames
    )
    inputs = extractor(part, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0].double().sigmoid()


def of_length(model, frames, columns):
    """The model with the first columns of its position table."""
    shorter = transformers.ASTConfig(**{**model.config.to_dict(), "max_length": frames})
    weights = model.state_dict()
    (name,) = (name for name in weights if name.endswith("position_embeddings"))
    rows = 1 + (TINY["num_mel_bins"] - 16) // TINY["frequency_stride"]
    table = weights[name]  # (1, 2 + rows * all columns, D)
    patches = table[:, 2:].unflatten(1, (rows, -1))[:, :, :columns].flatten(1, 2)
    weights[name] = torch.cat((table[:, :2], patches), 1)
    cut = transformers.ASTForAudioClassification(shorter)
    cut.load_state_dict(weights)
    return cut.eval()


@pytest.fixture(scope="module", params=PADDINGS)
def judged(request, folder, clips):
    """(padding, scores (clips, C)) of a tool."""
    padding = request.param
    rows = [
        torch.stack([plain_scores(folder, part, padding) for part in parts_of(clip)]).mean(0)
        for clip in clips
    ]
    return padding, torch.stack(rows).numpy()


def save_padding(folder, target, padding):
    """A copy of the model whose extractor has saved a padding."""
    ASTForAudioClassification.from_pretrained(folder).save_pretrained(target)
    ASTFeatureExtractor.from_pretrained(folder, padding=padding).save_pretrained(target)
    return target


def as_row(labels, model_folder):
    """Scores (C,) of [{"label", "score"}, ...]."""
    config = json.loads((model_folder / "config.json").read_text())
    row = np.full(len(config["label2id"]), np.nan)
    for entry in labels:
        row[config["label2id"][entry["label"]]] = entry["score"]
    return row


def test_the_paddings_differ(folder, clips):
    rows = [plain_scores(folder, clips[1], padding) for padding in PADDINGS]
    assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_extractor_and_model(folder, clips, judged):
    padding, expected = judged
    extractor = ASTFeatureExtractor.from_pretrained(folder, padding=padding)
    model = ASTForAudioClassification.from_pretrained(folder)
    for clip, scores in zip(clips, expected, strict=True):
        inputs = extractor(parts_of(clip), sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            found = model(**inputs).logits.double().sigmoid().mean(0)
        np.testing.assert_allclose(found, scores, atol=TOLERANCE)


def test_pipeline(folder, clips, judged, tmp_path):
    padding, expected = judged
    saved = save_padding(folder, tmp_path / "model", padding)
    classify = transformers.pipeline("audio-classification", model=str(saved))
    for clip, scores in zip(clips, expected, strict=True):
        results = classify(parts_of(clip), top_k=TINY["num_labels"], function_to_apply="sigmoid")
        found = np.mean([as_row(labels, saved) for labels in results], axis=0)
        np.testing.assert_allclose(found, scores, atol=TOLERANCE)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("from_files", [False, True])
def test_tagger(folder, clips, sounds, judged, num_workers, from_files):
    padding, expected = judged
    tagger = AudioTagger.from_pretrained(folder, num_workers=num_workers, padding=padding)
    for result, scores in zip(tagger(sounds if from_files else clips), expected, strict=True):
        np.testing.assert_allclose(result.scores, scores, atol=TOLERANCE)


@pytest.mark.parametrize("saved", [False, True])
def test_classify(folder, sounds, judged, tmp_path, capsys, saved):
    padding, expected = judged
    model = save_padding(folder, tmp_path / "model", padding) if saved else folder
    flags = [] if saved else ["--padding", padding]
    paths = map(str, sounds)
    assert main(["classify", str(model), *paths, "--json", "--top-k", "5", *flags]) == 0
    for row, scores in zip(json.loads(capsys.readouterr().out), expected, strict=True):
        np.testing.assert_allclose(as_row(row["labels"], model), scores, atol=TOLERANCE)


@pytest.mark.parametrize("saved", [False, True])
def test_tag(folder, sounds, judged, tmp_path, saved):
    padding, expected = judged
    model = save_padding(folder, tmp_path / "model", padding) if saved else folder
    flags = [] if saved else ["--padding", padding]
    output = tmp_path / "tags.jsonl"
    arguments = [str(model), str(sounds[0].parent), "--output", str(output), "--top-k", "5"]
    assert main(["tag", *arguments, "--workers", "0", *flags]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row, scores in zip(rows, expected, strict=True):
        np.testing.assert_allclose(as_row(row["labels"], model), scores, atol=TOLERANCE)


@pytest.fixture(scope="module")
def labelled(sounds, folder, tmp_path_factory):
    """A table of the files with labels of the model; each class has some files."""
    table = tmp_path_factory.mktemp("table") / "clips.csv"
    names = [f"LABEL_{number % TINY['num_labels']}" for number in range(len(sounds))]
    rows = [f"{path},{name}" for path, name in zip(sounds, names)]
    table.write_text("\n".join(["audio,label", *rows, ""]))
    return table


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluate(folder, labelled, judged, tmp_path, num_workers):
    padding, expected = judged
    data = DataArguments(data=str(labelled), eval_split="train")
    options = EvaluationArguments(padding=padding, num_workers=num_workers)
    found = evaluation.probabilities(
        evaluation.load_tagger(str(folder), options),
        read_held_out(data),
        BadClips(tmp_path / "bad.txt", len(expected)),
    )
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_trainers_evaluation(folder, sounds, judged, tmp_path, features, batch_size):
    padding, expected = judged
    extractor = ASTFeatureExtractor.from_pretrained(folder, padding=padding)
    encode = LabelEncoder({"a": 0, "b": 4}, multi_label=True)
    rows = [{"audio": str(path), "labels": "ab"[index % 2]} for index, path in enumerate(sounds)]
    trainer = ASTTrainer(
        ASTForAudioClassification.from_pretrained(folder),
        TrainingArguments(
            tmp_path,
            per_device_eval_batch_size=batch_size,
            remove_unused_columns=False,
            use_cpu=True,
            report_to=[],
        ),
        eval_collator=AudioCollator(extractor, encode, crop="parts", features=features),
        extractor=extractor,
    )
    output = trainer.predict(rows)
    found = torch.from_numpy(output.predictions).double().sigmoid()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert output.label_ids.argmax(1).tolist() == [0, 4] * (len(sounds) // 2)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_tone_at_the_very_end_of_a_long_clip_changes_the_scores(clips, padding):
    """The sound is in the last 0.3 s of 45 s, and the model takes 10.24 s."""
    config = ASTConfig(**{**TINY, "max_length": 1024})
    model = randomise(ASTForAudioClassification(config), std=0.5)
    tagger = AudioTagger(
        model, ASTFeatureExtractor.from_config(config), num_workers=0, padding=padding
    )
    changed = clips[-1].copy()
    n = np.arange(round(0.3 * RATE)) / RATE
    changed[-len(n) :] += (0.5 * np.sin(2 * np.pi * 3000 * n)).astype(np.float32)
    before, again, after = tagger([clips[-1], clips[-1], changed])
    assert np.abs(before.scores - again.scores).max() < 1e-6
    assert np.abs(before.scores - after.scores).max() > 1e-4
