"""Balanced sampling: formula of the weights, frequencies, Trainer, two processes, resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import Trainer, TrainingArguments

from modeling_ast.training.sampling import (
    BalancedSampler,
    EpochCallback,
    balanced_weights,
)

LABELS = [["a"], ["a", "b"], ["a"], [], ["c", "b", "a"], ["a"]]


def test_weights_are_the_authors_formula():
    a, b, c = (1000 / (n + 0.01) for n in (5, 2, 1))
    wanted = [a, a + b, a, 0, c + b + a, a]
    torch.testing.assert_close(balanced_weights(LABELS), torch.tensor(wanted, dtype=torch.float64))
    # One label for each clip, in any form.
    single = torch.tensor([1000 / 2.01, 1000 / 1.01, 1000 / 2.01], dtype=torch.float64)
    for labels in (["x", "y", "x"], [3, 0, 3], np.array([3, 0, 3]), torch.tensor([[3], [0], [3]])):
        torch.testing.assert_close(balanced_weights(labels), single)


def test_clips_are_drawn_in_proportion_to_their_weights():
    weights = balanced_weights(LABELS)
    drawn = np.bincount(list(BalancedSampler(weights, 60_000)), minlength=6)
    assert drawn[3] == 0
    expected = (60_000 * weights / weights.sum()).numpy()
    kept = expected > 0
    assert scipy.stats.chisquare(drawn[kept], expected[kept]).pvalue > 1e-4


def test_single_label_classes_become_equally_frequent():
    labels = [0] * 900 + [1] * 90 + [2] * 10
    drawn = np.array(labels)[list(BalancedSampler(balanced_weights(labels), 30_000))]
    # With 1000 / (n + 0.01) a class of n clips gets too little by the share 0.01 / n.
    assert scipy.stats.chisquare(np.bincount(drawn)).pvalue > 1e-4


def test_the_order_is_a_function_of_seed_and_epoch():
    weights = torch.ones(500)
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            sampler = BalancedSampler(weights, seed=seed)
            sampler.set_epoch(epoch)
            orders[seed, epoch] = list(sampler)
            assert list(sampler) == orders[seed, epoch]
            assert len(sampler) == len(orders[seed, epoch]) == 500
    # By chance one place of 500 would agree.
    pairs = [(x, y) for x in orders for y in orders if x < y]
    assert all(np.mean(np.equal(orders[x], orders[y])) < 0.03 for x, y in pairs)


def test_each_bad_argument_is_named():
    for weights in ([], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0]], [float("inf")]):
        with pytest.raises(ValueError, match="one finite number of at least 0 for each clip"):
            BalancedSampler(weights)
    with pytest.raises(ValueError, match="num_samples is 0"):
        BalancedSampler([1.0], num_samples=0)


class Recorder(torch.nn.Module):
    """A model that records the clips that it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, index, labels=None):
        self.seen += index.tolist()
        return {"loss": self.weight * index.float().mean()}


class BalancedTrainer(Trainer):
    def __init__(self, sampler, **kwargs):
        self.sampler = sampler
        super().__init__(**kwargs, callbacks=[EpochCallback(sampler)])

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler


def make_trainer(folder: Path, **kwargs) -> BalancedTrainer:
    """50 clips in batches of 4: 13 steps in an epoch of one process."""
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        num_train_epochs=3,
        save_steps=10,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        **kwargs,
    )
    sampler = BalancedSampler(torch.arange(50.0), seed=5)
    clips = [{"index": i} for i in range(50)]
    return BalancedTrainer(sampler, model=Recorder(), args=arguments, train_dataset=clips)


def order(epoch: int) -> list[int]:
    sampler = BalancedSampler(torch.arange(50.0), seed=5)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_trainer_follows_the_order_and_resumes_within_an_epoch(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert trainer.model.seen == order(0) + order(1) + order(2)
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-20")
    # 20 steps are epoch 0 and 7 batches of epoch 1.
    assert resumed.model.seen == order(1)[28:] + order(2)


def train_twice(folder: Path) -> None:
    """Each of two processes does this: a whole run, then one resumed from its middle."""
    # torch 2.11 cannot load an optimiser's state in several processes on a CPU ("cpu:0").
    options = {"ddp_backend": "gloo", "save_only_model": True}
    trainer = make_trainer(folder, **options)
    trainer.train()
    resumed = make_trainer(folder, **options)
    resumed.train(resume_from_checkpoint=folder / "checkpoint-10")
    seen = [trainer.model.seen, resumed.model.seen]
    (folder / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_two_processes_share_an_epoch_and_resume_within_it(tmp_path):
    call = "from pathlib import Path; import test_sampling as t; t.train_twice(Path({!r}))"
    script = tmp_path / "run.py"
    script.write_text(call.format(str(tmp_path)))
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [sys.executable, *launch, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    # 13 batches, the last one of 2 clips: accelerate continues from the epoch's start, so that each
    # process has 7 batches of 4.
    for epoch in range(3):
        batches = np.array(order(epoch) + order(epoch)[:6]).reshape(14, 4)
        assert first[0][28 * epoch : 28 * epoch + 28] == batches[0::2].flatten().tolist()
        assert second[0][28 * epoch : 28 * epoch + 28] == batches[1::2].flatten().tolist()
    # 10 steps are epoch 0 and 3 steps of epoch 1.
    assert first[1] == first[0][40:]
    assert second[1] == second[0][40:]
