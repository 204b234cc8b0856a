"""Optimiser and schedules, against torch's MultiStepLR in the authors' loop, and formulas."""

import pytest
import torch
import transformers
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_ast.training.optimizer import (
    SCHEDULES,
    EpochDecay,
    layered_adamw,
    parameter_groups,
    published_adam,
)
from tests.test_averaging import Linear, LinearConfig

# First epoch, step and factor from egs/*/run.sh, and whether there is a warm-up.
PUBLISHED = {
    "audioset_full": (2, 1, 0.5, True),
    "audioset_balanced": (10, 5, 0.5, True),
    "esc50": (5, 1, 0.85, False),
    "speech_commands": (5, 1, 0.85, False),
}


def authors_rates(recipe: str, epochs: int, steps_per_epoch: int, rate: float) -> list[float]:
    """The rate of each step in a loop like the authors'."""
    first, every, factor, warm_up = PUBLISHED[recipe]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], rate)
    scheduler = MultiStepLR(optimizer, list(range(first, 1000, every)), gamma=factor)
    rates, step = [], 0
    for _ in range(epochs):
        for _ in range(steps_per_epoch):
            if warm_up and step <= 1000 and step % 50 == 0:
                optimizer.param_groups[0]["lr"] = step / 1000 * rate
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            step += 1
        scheduler.step()
    return rates


@pytest.mark.parametrize("recipe", sorted(PUBLISHED))
def test_rates_are_the_authors(recipe):
    epochs, steps_per_epoch, rate = 22, 520, 2.5e-4
    steps = range(epochs * steps_per_epoch)
    ours = [rate * SCHEDULES[recipe].share(step, steps_per_epoch) for step in steps]
    wanted = authors_rates(recipe, epochs, steps_per_epoch, rate)
    for step, (own, theirs) in enumerate(zip(ours, wanted)):
        if step % 50 and step < 1000 and PUBLISHED[recipe][3]:
            # Between two steps of their warm-up.
            assert theirs <= own <= theirs + 50 / 1000 * rate
        else:
            assert own == pytest.approx(theirs, rel=1e-12), step


def test_the_published_numbers():
    full = SCHEDULES["audioset_full"]
    shares = [full.share(2000 * epoch, 2000) for epoch in range(1, 5)]
    assert shares == [1.0, 0.5, 0.25, 0.125]
    assert [full.share(step, 2000) for step in (0, 1, 500, 1000)] == [0.0, 0.001, 0.5, 1.0]
    balanced = SCHEDULES["audioset_balanced"]
    assert [balanced.share(2000 * e, 2000) for e in (9, 10, 14, 15, 20)] == [
        1,
        0.5,
        0.5,
        0.25,
        0.125,
    ]


def test_layers_have_their_own_rates(tiny_model):
    groups = parameter_groups(tiny_model, 1e-3, layer_decay=0.5, head_rate=10)
    rates = {group["name"]: group["lr"] for group in groups}
    # Three layers.
    assert rates == {
        "embeddings": pytest.approx(1e-3 * 0.5**4),
        "layer 0": pytest.approx(1e-3 * 0.5**3),
        "layer 1": pytest.approx(1e-3 * 0.5**2),
        "layer 2": pytest.approx(1e-3 * 0.5),
        "final norm": pytest.approx(1e-3),
        "head": pytest.approx(1e-2),
    }
    assert [group["name"] for group in groups] == list(rates)
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    for group in groups:
        wanted = {
            "embeddings": "audio_spectrogram_transformer.embeddings.",
            "final norm": "audio_spectrogram_transformer.layernorm.",
            "head": "classifier.",
        }.get(group["name"], f"audio_spectrogram_transformer.{group['name'].replace(' ', 's.')}.")
        assert all(names[id(parameter)].startswith(wanted) for parameter in group["params"])
    # Each parameter is in one group.
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(names)


def test_other_layouts_and_frozen_parameters(tiny_config):
    plain = transformers.ASTForAudioClassification(
        transformers.ASTConfig(
            **{
                name: getattr(tiny_config, name)
                for name in (
                    "hidden_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "max_length",
                    "num_mel_bins",
                    "intermediate_size",
                )
            }
        )
    )
    names = [group["name"] for group in parameter_groups(plain, 1e-3, 0.9)]
    assert names == ["embeddings", "layer 0", "layer 1", "layer 2", "final norm", "head"]
    for name, parameter in plain.named_parameters():
        parameter.requires_grad = "layers.2" in name or "classifier" in name
    groups = parameter_groups(plain, 1e-3, 0.9)
    # The rates are still those of the whole model.
    assert {group["name"]: group["lr"] for group in groups} == {
        "layer 2": pytest.approx(0.9e-3),
        "head": pytest.approx(1e-3),
    }


def test_adam_is_the_published_one(tiny_model):
    optimizer = published_adam(tiny_model, 1e-5)
    assert type(optimizer) is torch.optim.Adam
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-5, (0.95, 0.999), 5e-7)
    # Adam's first step is the rate times the sign of the gradient plus the decay.
    linear = nn.Linear(3, 2)
    nn.init.constant_(linear.weight, 2.0)
    step = published_adam(linear, 0.1, weight_decay=0.5)
    linear.weight.grad, linear.bias.grad = torch.full((2, 3), -0.9), torch.full((2,), 0.3)
    step.step()
    torch.testing.assert_close(linear.weight.detach(), torch.full((2, 3), 1.9))


class Rates(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def test_trainer_follows_the_schedule(tmp_path):
    model, rates = Linear(LinearConfig()), Rates()
    optimizer = published_adam(model, 0.1)
    decay = EpochDecay(first=1, every=2, factor=0.1, warmup_steps=3)
    arguments = TrainingArguments(
        tmp_path,
        num_train_epochs=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    clips = [{"input_values": torch.ones(6), "labels": 0}] * 9
    # 5 batches, which are 3 steps.
    trainer = Trainer(
        model,
        arguments,
        train_dataset=clips,
        callbacks=[rates],
        optimizers=(optimizer, decay.scheduler(optimizer, 3)),
    )
    trainer.train()
    wanted = [0, 0.1 / 3, 0.2 / 3] + [0.01] * 6 + [0.001] * 3
    assert [rate for (rate,) in rates.seen] == pytest.approx(wanted)


def test_each_bad_argument_is_named(tiny_model):
    for call, message in [
        (lambda: parameter_groups(tiny_model, 0.0), "learning_rate is 0.0"),
        (lambda: parameter_groups(tiny_model, 1e-3, layer_decay=1.1), "layer_decay is 1.1"),
        (lambda: parameter_groups(tiny_model, 1e-3, head_rate=-1), "head_rate is -1"),
        (lambda: parameter_groups(tiny_model, 1e-3, weight_decay=-1), "weight_decay is -1"),
        (lambda: EpochDecay(first=-1), "first is -1"),
        (lambda: EpochDecay(first=1, every=0), "every is 0"),
        (lambda: EpochDecay(first=1).scheduler(None, 0), "steps_per_epoch is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_adamw_by_layers_shrinks_matrices_only(tiny_model):
    """Without a gradient a step multiplies a weight by 1 - rate * decay (Loshchilov, Hutter)."""
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    optimizer = layered_adamw(tiny_model, 0.1, layer_decay=0.5, head_rate=3, weight_decay=0.2)
    for parameter in tiny_model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Three layers: the last one is a half, the first an eighth of the rate.
    rates = {"layers.2.": 0.05, "layers.0.": 0.0125, "classifier.": 0.3, "patch_emb": 0.00625}
    for name, parameter in tiny_model.named_parameters():
        is_matrix = name.endswith(("proj.weight", "fc1.weight", "fc2.weight", "dense.weight"))
        for part, rate in rates.items():
            if part in name:
                shrunk = 1 - rate * 0.2 if is_matrix or "projection.weight" in name else 1
                torch.testing.assert_close(parameter.detach(), before[name] * shrunk)
        if "token" in name or "position" in name or "layernorm" in name:
            assert torch.equal(parameter, before[name])
