"""Which checkpoint a killed run resumes from."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_ast.training import AverageWeightsCallback, last_whole_checkpoint
from modeling_ast.training.run_record import check_not_ended, has_ended, naming_unwritable


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x, labels):
        logits = self.linear(x)[:, 0]
        return {"loss": (logits - labels).square().mean(), "logits": logits}

    def save_pretrained(self, folder, state_dict):
        assert state_dict.keys() == self.state_dict().keys()


def train(folder, save_strategy="steps", **kwargs):
    """A run of eight steps, with a checkpoint after every second or every fourth one."""
    numbers = torch.arange(8.0)
    rows = [{"x": torch.stack([i / 8, 1 - i, -i]), "labels": i} for i in numbers]
    arguments = TrainingArguments(
        folder,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        save_strategy=save_strategy,
        save_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(Regression(), arguments, train_dataset=rows, **kwargs).train()


def test_what_trainer_wrote_is_whole(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{step}" for step in (2, 4, 6, 8)
    ]
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    # Compared as a number, not as a string: 10 comes after 8.
    (tmp_path / "checkpoint-8").rename(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1.0, "glob'])
def test_half_written_ones_are_passed_over(tmp_path, state):
    """Killed before or during the writing of Trainer's last file."""
    train(tmp_path)
    file = tmp_path / "checkpoint-8" / "trainer_state.json"
    whole = file.read_text()
    if state is None:
        file.unlink()
    else:
        assert state == "" or whole.startswith("{")
        file.write_text(state)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_each_process_has_its_random_state(tmp_path):
    train(tmp_path)
    assert last_whole_checkpoint(tmp_path, num_processes=2) is None
    for step, rank in ((4, 0), (4, 1), (6, 0)):
        checkpoint = tmp_path / f"checkpoint-{step}"
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / f"rng_state_{rank}.pth")
    assert last_whole_checkpoint(tmp_path, num_processes=2) == str(tmp_path / "checkpoint-4")


def cut(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def lost(name):
    return lambda folder: (folder / name).unlink()


def pickled(name, content):
    return lambda folder: torch.save(content, folder / name)


DAMAGES = {
    "weights cut": (cut("model.safetensors"), "model.safetensors is cut"),
    "weights empty": (write("model.safetensors", ""), "model.safetensors is cut"),
    "weights cut, beside a stray folder": (
        lambda folder: ((folder / ".cache").mkdir(), cut("model.safetensors")(folder)),
        "model.safetensors is cut",
    ),
    "weights lost": (lost("model.safetensors"), "it has no weights"),
    "optimiser empty": (write("optimizer.pt", ""), "optimizer.pt is cut"),
    "optimiser cut": (cut("optimizer.pt"), "optimizer.pt is cut"),
    "optimiser lost": (lost("optimizer.pt"), "optimizer.pt is missing"),
    "optimiser of nothing": (pickled("optimizer.pt", {}), "optimizer.pt lacks state"),
    "schedule cut": (cut("scheduler.pt"), "scheduler.pt is cut"),
    "schedule no dict": (pickled("scheduler.pt", [1]), "scheduler.pt lacks last_epoch"),
    "random state cut": (cut("rng_state.pth"), "rng_state.pth is cut"),
    "random state lost": (lost("rng_state.pth"), "rng_state.pth is missing"),
    "state null": (write("trainer_state.json", "null"), "trainer_state.json is cut"),
    "state list": (write("trainer_state.json", "[]"), "trainer_state.json is cut"),
    "state odd": (write("trainer_state.json", '{"x": 1}'), "trainer_state.json is cut"),
    "state's step": (write("trainer_state.json", '{"global_step": null}'), "(global_step is None)"),
    "state's epoch": (write("trainer_state.json", '{"epoch": "x"}'), "(epoch is x)"),
    "state's negative step": (
        write("trainer_state.json", '{"global_step": -1}'),
        "(global_step is",
    ),
    "state's log": (write("trainer_state.json", '{"log_history": [1]}'), "(log_history)"),
    "state's best": (write("trainer_state.json", '{"best_metric": []}'), "(best_metric is [])"),
    "random state of nothing": (
        pickled("rng_state.pth", {"python": (), "numpy": (), "cpu": 1}),
        "rng_state.pth is damaged",
    ),
    "random state of another size": (
        pickled(
            "rng_state.pth",
            {
                "python": random.getstate(),
                "numpy": np.random.get_state(),
                "cpu": torch.zeros(3, dtype=torch.uint8),
            },
        ),
        "rng_state.pth is damaged",
    ),
    "average lost": (lost("weight_mean.safetensors"), "weight_mean.safetensors is missing"),
    "average cut": (cut("weight_mean.safetensors"), "weight_mean.safetensors is cut"),
}


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    train(folder, callbacks=[AverageWeightsCallback()])
    return folder


@pytest.fixture
def said(caplog):
    transformers.utils.logging.enable_propagation()
    return caplog


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_ones_are_passed_over_and_named(kind, averaged_run, tmp_path, said):
    run = tmp_path / "run"
    shutil.copytree(averaged_run, run)
    assert last_whole_checkpoint(run) == str(run / "checkpoint-8")
    damage, words = DAMAGES[kind]
    damage(run / "checkpoint-8")
    assert last_whole_checkpoint(run) == str(run / "checkpoint-6")
    assert f"skipped the checkpoint {run}/checkpoint-8, which is damaged: " in said.text
    assert words in said.text


def test_all_weights_of_the_model_must_be_there(tmp_path, said, tiny_model):
    """The names in files differ from the model's own names."""
    whole, lacking = tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"
    for folder in (whole, lacking):
        tiny_model.save_pretrained(folder)
        (folder / "trainer_state.json").write_text('{"global_step": 2}')
    stored = load_file(lacking / "model.safetensors")
    stored.pop("classifier.dense.weight")
    save_file(stored, lacking / "model.safetensors", {"format": "pt"})
    found = last_whole_checkpoint(tmp_path, only_model=True, model=tiny_model)
    assert found == str(whole)
    assert "its weights lack classifier.dense.weight" in said.text


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_whole_checkpoint_has_the_averaged_weights(tmp_path, strategy, monkeypatch):
    """They are written before trainer_state.json, so that no kill leaves only one of the two."""
    seen = {}
    dump = Trainer._save_checkpoint

    def save(self, *args, **kwargs):
        folder = tmp_path / f"checkpoint-{self.state.global_step}"
        seen[self.state.global_step] = (folder / "weight_mean.safetensors").is_file()
        dump(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    train(tmp_path, strategy, callbacks=[AverageWeightsCallback()])
    # The first epoch ends at step 4.
    first = {2: False} if strategy == "steps" else {}
    after = {4: True, 6: True, 8: True} if strategy == "steps" else {4: True, 8: True}
    assert seen == first | after


def test_only_errors_about_the_output_folder_name_it(tmp_path, monkeypatch):
    """A folder of one letter, which is in nearly every message."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"^no such data set$"), naming_unwritable(Path("a")):
        raise OSError("no such data set")
    for name in ("other/a.bin", None):
        with pytest.raises(OSError, match=r"^.Errno 2"), naming_unwritable(Path("a")):
            raise FileNotFoundError(2, "a file is missing", name)
    for name in ("a/model.bin", str(tmp_path / "a"), b"a/x"):
        with pytest.raises(OSError, match=r"^cannot write into a "), naming_unwritable(Path("a")):
            raise PermissionError(13, "Permission denied", name)
    with pytest.raises(OSError, match=r"^cannot write into a "), naming_unwritable(Path("a")):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="weights in a is damaged"), naming_unwritable(Path("a")):
        raise SafetensorError("Error while deserializing header: invalid header length")


def test_the_results_of_an_evaluation_are_no_run(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    assert not has_ended(tmp_path)
    check_not_ended(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds the model of a run that has ended, without"):
        check_not_ended(tmp_path)
