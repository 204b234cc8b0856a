"""A fine-tuning as in transformers' own example script, with transformers' own AST.

Follows https://github.com/huggingface/transformers, examples/pytorch/audio-classification,
run_audio_classification.py of 5.8: the extractor's features of each clip, cut at random to
`SECONDS`, a Trainer with AdamW and no augmentation, and the accuracy of the last weights. The clips
are decoded and resampled as ours are, so that the two ways differ only in the training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Trainer,
    TrainingArguments,
)
from transformers import set_seed as set_seeds

from modeling_ast import read_audio

# The example's values: --max_length_seconds, and those of the command in its README.
SECONDS = 20.0
LEARNING_RATE, WARMUP_SHARE = 3e-5, 0.1


class Clips(torch.utils.data.Dataset):
    """The clips of `folder`/LABEL/; features are computed when a clip is read."""

    def __init__(self, folder: Path, extractor: ASTFeatureExtractor, cut: bool):
        self.labels = sorted(path.name for path in folder.iterdir())
        self.paths = sorted(folder.glob("*/*"))
        rate = extractor.sampling_rate
        self.waveforms = [read_audio(path, sampling_rate=rate) for path in self.paths]
        self.extractor, self.cut = extractor, cut

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, object]:
        waveform = self.waveforms[index]
        length = round(SECONDS * self.extractor.sampling_rate)
        if self.cut and len(waveform) > length:
            start = np.random.randint(len(waveform) - length)
            waveform = waveform[start : start + length]
        values = self.extractor(waveform, sampling_rate=self.extractor.sampling_rate)
        label = self.labels.index(self.paths[index].parent.name)
        return {"input_values": values["input_values"][0], "labels": label}


def accuracy(prediction) -> dict[str, float]:
    """The share of clips with the largest logit at their label."""
    found = np.argmax(prediction.predictions, axis=1)
    return {"accuracy": float(np.mean(found == prediction.label_ids))}


def finetune(
    start: Path,
    data: Path,
    output: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    from_scratch: bool = False,
) -> float:
    """The accuracy on `data`/test of transformers' AST, trained on `data`/train.

    Args:
        start: A checkpoint with the wanted input length, as transformers cannot refit positions.
        output: A folder for the Trainer's files.
        from_scratch: Whether only the sizes and the statistics of `start` are used, with random
            weights.
    """
    set_seeds(seed)
    extractor = ASTFeatureExtractor.from_pretrained(start)
    train, test = (Clips(data / name, extractor, name == "train") for name in ("train", "test"))
    task = {"num_labels": len(train.labels), "problem_type": "single_label_classification"}
    if from_scratch:
        model = ASTForAudioClassification(ASTConfig.from_pretrained(start, **task))
    else:
        model = ASTForAudioClassification.from_pretrained(
            start, ignore_mismatched_sizes=True, **task
        )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=WARMUP_SHARE,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=accuracy,
        processing_class=extractor,
    )
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


__all__ = ["LEARNING_RATE", "finetune"]
