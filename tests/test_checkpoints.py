"""Which checkpoint a killed run goes on from."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_ast.training import AverageWeightsCallback, last_whole_checkpoint


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
    """Eight steps, a checkpoint after every second one, or after the fourth and the eighth."""
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
    # A number, not a text: 10 comes after 8.
    (tmp_path / "checkpoint-8").rename(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1.0, "glob'])
def test_half_written_ones_are_passed_over(tmp_path, state):
    """Killed before, or amid, the file that Trainer writes last."""
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
    for rank in (0, 1):
        (tmp_path / "checkpoint-4" / f"rng_state_{rank}.pth").touch()
    (tmp_path / "checkpoint-6" / "rng_state_0.pth").touch()
    assert last_whole_checkpoint(tmp_path, num_processes=2) == str(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_whole_checkpoint_has_the_averaged_weights(tmp_path, strategy, monkeypatch):
    """They are there before trainer_state.json is, so that no kill parts the two."""
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
