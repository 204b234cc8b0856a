"""finetune_minimal.py for two steps, offline; plain transformers loads what it saves."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from sklearn.metrics import average_precision_score

from examples.embedded_data import SOUNDS, write_data_set
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, read_audio
from modeling_ast.training.data_sources import DataArguments, load_data
from tests.conftest import ROOT, randomise

SCRIPT = ROOT / "examples" / "finetune_minimal.py"


@pytest.mark.parametrize(
    "own_labels",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["other labels", "labels of the data"],
)
def test_two_steps(own_labels, tmp_path):
    """The head is new, unless the checkpoint has the data's classes, in any order."""
    data = write_data_set(tmp_path / "data", num_train=24, num_test=28, seconds=1.0, progress=False)
    names = [sound.name for sound in SOUNDS][::-1] if own_labels else ["a", "b", "c"]
    config = ASTConfig(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=32,
        max_length=98,
        num_mel_bins=32,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    base, out = tmp_path / "base", tmp_path / "run"
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(base)
    ASTFeatureExtractor.from_config(config).save_pretrained(base)
    words = ["--model", base, "--data", data, "--output", out, "--max-steps", "2"]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]

    model = transformers.ASTForAudioClassification.from_pretrained(out)
    labels = list(model.config.id2label.values())
    assert labels == (names if own_labels else sorted(sound.name for sound in SOUNDS))
    assert model.config.problem_type == "multi_label_classification"
    _, held_out = load_data(DataArguments(data=str(data)))
    targets = torch.tensor([[name in row["human_labels"] for name in labels] for row in held_out])
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=98)
    waves = [read_audio(row["audio"]["bytes"]) for row in held_out]
    with torch.no_grad():
        inputs = extractor(waves, sampling_rate=16000, return_tensors="pt")
        logits = model(**inputs).logits
    expected = average_precision_score(targets, logits, average="macro")
    printed = ended.stdout.splitlines()[-1].replace("'", '"')
    assert json.loads(printed)["eval_mAP"] == pytest.approx(expected, abs=2e-3)


def test_it_is_short():
    assert len(SCRIPT.read_text().splitlines()) <= 80
