"""A fine-tuning in two processes: as one with batches of twice the size, and nothing twice."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from examples.embedded_data import SOUNDS, write_data_set
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, read_audio
from modeling_ast.training.data_sources import DataArguments, load_data
from tests.conftest import ROOT, randomise

SCRIPT = ROOT / "examples" / "finetune.py"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
GLOO = ["--use_cpu", "--ddp_backend", "gloo"]
# Two epochs of four steps, of eight clips each.
RUN = [
    *("--num_train_epochs", "2", "--learning_rate", "1e-3", "--logging_steps", "1"),
    *("--eval_strategy", "epoch", "--save_strategy", "epoch", "--average_from", "1"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An odd number is held out, so that the last batches are uneven."""
    folder = tmp_path_factory.mktemp("embedded") / "data"
    return write_data_set(folder, num_train=32, num_test=27, seconds=1.0, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = ASTConfig(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=32,
        max_length=100,
        num_mel_bins=32,
        layer_norm_eps=1e-6,
    )
    folder = tmp_path_factory.mktemp("base") / "model"
    randomise(ASTForAudioClassification(config), std=0.05).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


def launch(*words):
    """Runs in its own processes; returns what they printed."""
    run = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


def one(base, data, out, *words):
    paths = ("--model", base, "--data", data, "--output_dir", out)
    launch(SCRIPT, *paths, *RUN, "--per_device_train_batch_size", 8, "--use_cpu", *words)
    return out


def two(base, data, out, *words, script=(SCRIPT,)):
    paths = ("--model", base, "--data", data, "--output_dir", out)
    sizes = ("--per_device_train_batch_size", 4, "--per_device_eval_batch_size", 4)
    launch(*TWO, *script, *paths, *RUN, *sizes, *GLOO, *words)
    return out


@pytest.fixture(scope="module")
def alone(base, data, tmp_path_factory):
    return one(base, data, tmp_path_factory.mktemp("alone") / "run")


def curve(run, key="loss"):
    state = json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())
    return [row[key] for row in state["log_history"] if key in row]


def assert_same_training(run, alone):
    """The same losses; weights as near as sums in another order leave them after eight steps."""
    assert len(curve(run)) == 8
    np.testing.assert_allclose(curve(run), curve(alone), rtol=1e-3)
    for name in ("model.safetensors", "average/model.safetensors"):
        weights, wanted = load_file(run / name), load_file(alone / name)
        assert weights.keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-3, atol=2e-4)


def assert_counted_once(run, data):
    """scikit-learn's mAP of the saved models, and the labels of the held-out clips, not more."""
    _, held_out = load_data(DataArguments(data=str(data)))
    targets = np.array([[sound.mid in row["labels"] for sound in SOUNDS] for row in held_out])
    waveforms = [read_audio(row["audio"]["bytes"]) for row in held_out]
    metrics = json.loads((run / "metrics.json").read_text())
    for prefix, folder in (("eval", run), ("average", run / "average")):
        model = ASTForAudioClassification.from_pretrained(folder).eval()
        extractor = ASTFeatureExtractor.from_pretrained(folder)
        inputs = extractor(waveforms, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits.numpy()
        expected = average_precision_score(targets, scores, average="macro")
        assert metrics[f"{prefix}_mAP"] == pytest.approx(expected, abs=2e-3)
    with (run / "per_class.csv").open() as file:
        positives = [int(row["positives"]) for row in csv.DictReader(file)]
    assert positives == targets.sum(0).tolist()


@pytest.mark.slow
def test_two_processes_train_as_one(base, data, alone, tmp_path):
    run = two(base, data, tmp_path / "run")
    assert_same_training(run, alone)
    assert_counted_once(run, data)


@pytest.mark.slow
def test_sharded_processes_train_as_one_and_resume(base, data, alone, tmp_path):
    """FSDP; started again without its last checkpoint, the run ends with the same weights."""
    words = ("--fsdp", "full_shard", "--fsdp_config", '{"version": 2}')
    harness = (ROOT / "tests" / "fsdp_on_cpu.py", SCRIPT)
    run = two(base, data, tmp_path / "run", *words, script=harness)
    # What accelerate writes of a sharded model shows that it was one.
    assert (run / "checkpoint-8" / "pytorch_model_fsdp.bin").is_file()
    assert_same_training(run, alone)
    assert_counted_once(run, data)
    wanted = {name: load_file(run / name / "model.safetensors") for name in (".", "average")}
    shutil.rmtree(run / "checkpoint-8")
    state = run / "checkpoint-4" / "trainer_state.json"
    written = state.stat().st_mtime_ns
    two(base, data, run, *words, script=harness)
    assert state.stat().st_mtime_ns == written  # a new run would write it again
    for name, weights in wanted.items():
        again = load_file(run / name / "model.safetensors")
        assert all(torch.equal(again[key], tensor) for key, tensor in weights.items())


@pytest.mark.slow
def test_a_stream_of_bad_and_good_clips_in_two_processes(base, data, tmp_path):
    """No clip twice in an epoch; a bad one is listed once and replaced, a held-out one left out."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    for split, number in (("bal_train", 5), ("eval", 3)):
        file = next((folder / "data" / split).glob("*.parquet"))
        spoil(file, number)
    out = tmp_path / "run"
    words = ("--streaming", "--train_clips", 32, "--shuffle_buffer", 8, "--max_bad_share", 0.1)
    module = ("-m", "modeling_ast", "finetune")
    run = two(base, folder, out, *words, "--dataloader_num_workers", 1, script=module)
    assert len(curve(run)) == 8
    bad = (run / "bad_clips.txt").read_text().splitlines()
    assert len(bad) == 2 and all("cannot be decoded" in line for line in bad)
    with (run / "per_class.csv").open() as file:
        positives = sum(int(row["positives"]) for row in csv.DictReader(file))
    _, held_out = load_data(DataArguments(data=str(data)))
    assert positives == sum(len(row["labels"]) for i, row in enumerate(held_out) if i != 3)


def spoil(file, number):
    """Cuts the FLAC of one row of a parquet file."""
    table = parquet.read_table(file)
    audio = table["audio"].to_pylist()
    audio[number]["bytes"] = audio[number]["bytes"][:20]
    index = table.schema.get_field_index("audio")
    field = table.schema.field(index)
    parquet.write_table(table.set_column(index, field, pyarrow.array(audio, field.type)), file)
