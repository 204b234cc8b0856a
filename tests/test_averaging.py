"""Weight averaging under Trainer, also killed and resumed, and ensembles, against numpy's mean."""

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.training.averaging import AverageWeightsCallback, ensemble_probabilities
from tests.conftest import TINY, randomise
from tests.test_average_checkpoints import assert_is_mean


def tiny(seed: int, **kwargs) -> ASTForAudioClassification:
    return randomise(ASTForAudioClassification(ASTConfig(**{**TINY, **kwargs})), seed)


def test_bad_epochs_are_named():
    for epochs in ((0, None), (3, 2)):
        with pytest.raises(ValueError, match=f"average are {epochs[0]} to {epochs[1]}"):
            AverageWeightsCallback(*epochs)


class Recorder(TrainerCallback):
    """Copies the weights at the end of each epoch in another way."""

    def __init__(self):
        self.epochs = {}

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.epochs[round(state.epoch)] = weights


class LinearConfig(PreTrainedConfig):
    model_type = "linear-for-tests"


class Linear(PreTrainedModel):
    """The smallest model that Trainer trains and that has its own save_pretrained."""

    config_class = LinearConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(6, 5)
        self.post_init()

    def forward(self, input_values, labels):
        return {"loss": F.cross_entropy(self.linear(input_values), labels)}


def make_trainer(folder, first=2, last=None, model=None, shape=(6,), **kwargs):
    """8 clips in batches of 2: 4 steps in each of 4 epochs."""
    generator = torch.Generator().manual_seed(0)
    clips = [
        {"input_values": torch.randn(shape, generator=generator), "labels": i % 5} for i in range(8)
    ]
    arguments = TrainingArguments(
        folder,
        num_train_epochs=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **kwargs,
    )
    torch.manual_seed(0)
    return Trainer(
        model or Linear(LinearConfig()),
        arguments,
        train_dataset=clips,
        processing_class=ASTFeatureExtractor(max_length=97),
        callbacks=[AverageWeightsCallback(first, last), Recorder()],
    )


def recorded(trainer) -> dict:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Recorder)).epochs


@pytest.mark.parametrize(("first", "last"), [(1, None), (2, 3)])
def test_a_run_ends_with_the_mean_of_its_epochs(tmp_path, first, last):
    shape = (TINY["max_length"], TINY["num_mel_bins"])
    trainer = make_trainer(tmp_path, first, last, tiny(0), shape, save_strategy="no")
    trainer.train()
    epochs = recorded(trainer)
    assert sorted(epochs) == [1, 2, 3, 4]
    chosen = [epochs[e] for e in range(first, (last or 4) + 1)]
    averaged = ASTForAudioClassification.from_pretrained(tmp_path / "average")
    assert_is_mean(averaged.state_dict(), chosen)
    # The run itself continues with its own weights, and the extractor is saved with the average.
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, epochs[4][name])
    assert ASTFeatureExtractor.from_pretrained(tmp_path / "average").max_length == 97


@pytest.mark.parametrize("step", [3, 9, 12])
def test_a_resumed_run_ends_with_the_same_average(tmp_path, step):
    """Step 3 is before the end of the first epoch, 9 inside the third epoch, and 12 at its end."""
    trainer = make_trainer(tmp_path)
    trainer.train()
    wanted = Linear.from_pretrained(tmp_path / "average").state_dict()
    assert_is_mean(wanted, [recorded(trainer)[epoch] for epoch in (2, 3, 4)])
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=tmp_path / f"checkpoint-{step}")
    again = Linear.from_pretrained(tmp_path / "average").state_dict()
    for name, value in wanted.items():
        assert torch.equal(again[name], value), name


def test_an_epoch_that_max_steps_ends_counts(tmp_path):
    trainer = make_trainer(tmp_path, first=2, max_steps=6, save_strategy="no")
    trainer.train()
    averaged = Linear.from_pretrained(tmp_path / "average").state_dict()
    assert_is_mean(averaged, [trainer.model.state_dict()])


def test_a_run_that_cannot_average_stops_before_it_trains(tmp_path):
    with pytest.raises(ValueError, match="first epoch to average is 5 but the run has 4"):
        make_trainer(tmp_path, first=5).train()
    make_trainer(tmp_path).train()
    checkpoint = tmp_path / "checkpoint-9"
    (checkpoint / "weight_mean.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"weight_mean.safetensors with .* before step 9 is missing"
    ):
        make_trainer(tmp_path).train(resume_from_checkpoint=checkpoint)


def test_ensembles_average_probabilities():
    logits = [np.random.default_rng(i).normal(0, 5, (7, 4)).astype(np.float32) for i in range(3)]
    several = ensemble_probabilities(map(torch.from_numpy, logits))
    np.testing.assert_allclose(several, scipy.special.expit(np.stack(logits)).mean(0), atol=1e-7)
    one = ensemble_probabilities(logits, multi_label=False)
    wanted = scipy.special.softmax(np.stack(logits).astype(np.float64), -1).mean(0)
    np.testing.assert_allclose(one, wanted, atol=1e-12)
    sure = ensemble_probabilities([torch.tensor([[20.0], [21.0]])])
    assert sure.dtype == torch.float64 and sure[0] < sure[1]


def test_each_bad_ensemble_is_named():
    with pytest.raises(ValueError, match="there are no logits"):
        ensemble_probabilities([])
    with pytest.raises(ValueError, match=r"model 1 gave logits of shape \(2, 4\).*\(2, 3\)"):
        ensemble_probabilities([torch.zeros(2, 3), torch.zeros(2, 4)])
