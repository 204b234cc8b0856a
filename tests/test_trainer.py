"""ASTTrainer: each argument reaches Trainer, and a resumed run ends like an uninterrupted one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback, TrainingArguments

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training.augmentation import Augmentation
from modeling_ast.training.batches import AudioCollator
from modeling_ast.training.optimizer import EpochDecay, published_adam
from modeling_ast.training.sampling import BalancedSampler
from modeling_ast.training.trainer import ASTTrainer
from tests.test_batches import mixing_case

MEL_BINS = 32


class MeanConfig(PreTrainedConfig):
    model_type = "mean-for-tests"


class MeanModel(PreTrainedModel):
    """Mean over time, then one linear layer; the model records its inputs."""

    config_class = MeanConfig

    def __init__(self, config):
        super().__init__(config)
        self.classifier = torch.nn.Linear(MEL_BINS, 24)
        self.post_init()
        self.seen: list[tuple[bool, torch.Tensor]] = []

    def forward(self, input_values, labels=None):
        self.seen.append((self.training, input_values.clone()))
        logits = self.classifier(input_values.mean(1))
        return {"loss": F.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


class Rates(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append(optimizer.param_groups[0]["lr"])


def make_trainer(folder, features: bool = True, rates: Rates | None = None) -> ASTTrainer:
    """24 clips in batches of 4: 6 steps in each of 2 epochs."""
    rows, encode = mixing_case(24)
    extractor = ASTFeatureExtractor(max_length=16, num_mel_bins=MEL_BINS)
    augmentation = Augmentation(frequency_mask=8, time_mask=5)
    collator = partial(AudioCollator, extractor, encode, features=features)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=24,
        remove_unused_columns=False,
        save_steps=2,
        eval_strategy="epoch",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    torch.manual_seed(0)
    return ASTTrainer(
        MeanModel(MeanConfig()),
        arguments,
        data_collator=collator(augmentation=augmentation),
        eval_collator=collator(),
        train_dataset=rows,
        eval_dataset=rows,
        train_sampler=BalancedSampler(torch.ones(24), seed=1),
        make_optimizer=partial(published_adam, learning_rate=0.1),
        epoch_decay=EpochDecay(first=1, factor=0.25, warmup_steps=2),
        extractor=extractor,
        augmentation=augmentation,
        callbacks=[rates or Rates()],
    )


@pytest.mark.parametrize("features", [True, False])
def test_evaluation_sees_the_clips_as_they_are(tmp_path, features):
    trainer = make_trainer(tmp_path, features)
    rows, encode = mixing_case(24)
    wanted = AudioCollator(trainer.extractor, encode)(rows)["input_values"]
    for _ in range(2):
        trainer.evaluate()
        trainer.predict(rows)
    assert [training for training, _ in trainer.model.seen] == [False] * 4
    for _, values in trainer.model.seen:
        torch.testing.assert_close(values, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("features", [True, False])
def test_training_sees_them_mixed_and_masked(tmp_path, features):
    trainer = make_trainer(tmp_path, features)
    trainer.train()
    seen = [values for training, values in trainer.model.seen if training]
    assert len(seen) == 12
    silence = -trainer.extractor.mean / (2 * trainer.extractor.std)
    # A mask over mel bins hides the same bins in all frames of a clip.
    masked = torch.cat([torch.isclose(v, torch.tensor(silence)).all(1).any(1) for v in seen])
    assert masked.sum() > 0.6 * len(masked)


def test_sampler_optimiser_and_schedule_are_used(tmp_path):
    rates = Rates()
    trainer = make_trainer(tmp_path, rates=rates)
    trainer.train()
    assert rates.seen == pytest.approx([0, 0.05, 0.1, 0.1, 0.1, 0.1] + [0.025] * 6)
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is torch.optim.Adam
    assert {group["name"] for group in optimizer.param_groups} == {"head"}
    assert trainer._get_train_sampler() is trainer.train_sampler


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("step", [4, 6, 8])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, features, step):
    """The checkpoint of step 6 is older than the evaluation at the end of the first epoch."""
    unbroken = make_trainer(tmp_path, features)
    unbroken.train()
    resumed = make_trainer(tmp_path, features)
    resumed.train(resume_from_checkpoint=tmp_path / f"checkpoint-{step}")
    seen = [values for training, values in unbroken.model.seen if training][step:]
    again = [values for training, values in resumed.model.seen if training]
    assert len(seen) == len(again)
    for own, other in zip(seen, again):
        assert torch.equal(own, other)
    for own, other in zip(unbroken.model.parameters(), resumed.model.parameters()):
        assert torch.equal(own, other)


def test_waveforms_without_an_extractor_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, features=False)
    trainer.extractor = None
    with pytest.raises(ValueError, match="holds waveforms but the trainer has no extractor"):
        trainer.evaluate()


def test_sharding_that_would_silently_not_happen_is_refused(tmp_path):
    """accelerate shards only over GPUs; elsewhere it would silently train without FSDP."""
    arguments = TrainingArguments(tmp_path, fsdp="full_shard", use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match=r"shards only over several GPUs.*1 process\(es\) on cpu"):
        ASTTrainer(MeanModel(MeanConfig()), arguments)
