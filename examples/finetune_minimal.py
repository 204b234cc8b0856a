"""The shortest fine-tuning on AudioSet, to copy into your own project and change.

    python finetune_minimal.py [--model MODEL] [--data agkphysics/AudioSet] [--output OUT]

It uses plain transformers.Trainer and needs: pip install "modeling-ast[train]".
"""

import argparse

import torch
from datasets import Audio, load_dataset
from sklearn.metrics import average_precision_score
from transformers import Trainer, TrainingArguments

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, read_audio

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--model", default="MIT/ast-finetuned-audioset-10-10-0.4593")
parser.add_argument("--data", default="agkphysics/AudioSet")
parser.add_argument("--output", default="runs/minimal")
parser.add_argument("--max-steps", type=int, default=-1, help="-1: train for all epochs")
options = parser.parse_args()

# decode=False gives the bytes of the files, which read_audio decodes without torchcodec or ffmpeg.
data = load_dataset(options.data, "balanced").cast_column("audio", Audio(decode=False))

# Use the classes of the checkpoint, in its order, if it has all labels; else those of the data.
label2id = ASTConfig.from_pretrained(options.model).label2id
names = sorted({name for part in data.values() for row in part["human_labels"] for name in row})
if not label2id.keys() >= set(names):
    label2id = {name: index for index, name in enumerate(names)}

# problem_type chooses the loss: for several labels per clip, the binary cross-entropy.
model = ASTForAudioClassification.from_pretrained(
    options.model,
    label2id=label2id,
    id2label={index: name for name, index in label2id.items()},
    problem_type="multi_label_classification",
    ignore_mismatched_sizes=True,  # allows a new head for another number of classes
)
extractor = ASTFeatureExtractor.from_pretrained(options.model)


def collate(rows):
    """Decodes the clips of a batch; it runs in the workers."""
    clips = [read_audio(row["audio"]["bytes"], extractor.sampling_rate) for row in rows]
    batch = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    labels = torch.zeros(len(rows), len(label2id))  # multi-hot
    for row, label in zip(rows, labels):
        label[[label2id[name] for name in row["human_labels"]]] = 1.0
    return {**batch, "labels": labels}


def compute_metrics(prediction):
    """The mean average precision (mAP) over the classes that the held-out clips have."""
    present = prediction.label_ids.any(axis=0)
    targets, logits = prediction.label_ids[:, present], prediction.predictions[:, present]
    return {"mAP": average_precision_score(targets, logits, average="macro")}


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        options.output,
        max_steps=options.max_steps,
        num_train_epochs=5,
        learning_rate=1e-5,
        per_device_train_batch_size=12,
        dataloader_num_workers=2,  # 0 on macOS and Windows, where workers cannot run a flat script
        remove_unused_columns=False,  # the collator reads the data's own columns
    ),
    data_collator=collate,
    train_dataset=data["train"],
    eval_dataset=data["test"],
    processing_class=extractor,
    compute_metrics=compute_metrics,
)
trainer.train()
trainer.save_model()  # also saves the extractor, so that a pipeline can load the folder
print(trainer.evaluate())
