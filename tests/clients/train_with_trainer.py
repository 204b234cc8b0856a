"""The statements of transformers' run_audio_classification.py, on a local folder of sounds.

    python train_with_trainer.py MODEL SOUNDS OUT [--ours]

Prints {"accuracy": ..., "model": its module} as JSON. With --ours it imports this package first.
Source: transformers, examples/pytorch/audio-classification, read at commit 049d2bf.
"""

import importlib
import json
import sys

import numpy as np
from datasets import Audio, load_dataset
from sklearn.metrics import accuracy_score
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)


def main(model_name: str, sounds: str, out: str) -> None:
    """Trains, saves and evaluates."""
    set_seed(0)
    data = load_dataset("audiofolder", data_dir=sounds)
    extractor = AutoFeatureExtractor.from_pretrained(model_name, return_attention_mask=True)
    data = data.cast_column("audio", Audio(sampling_rate=extractor.sampling_rate))
    name = extractor.model_input_names[0]

    def transform(batch):
        waveforms = [audio["array"] for audio in batch["audio"]]
        inputs = extractor(waveforms, sampling_rate=extractor.sampling_rate)
        return {name: inputs.get(name), "labels": list(batch["label"])}

    labels = data["train"].features["label"].names
    config = AutoConfig.from_pretrained(
        model_name,
        num_labels=len(labels),
        label2id={label: str(index) for index, label in enumerate(labels)},
        id2label={str(index): label for index, label in enumerate(labels)},
        finetuning_task="audio-classification",
    )
    model = AutoModelForAudioClassification.from_pretrained(
        model_name, config=config, ignore_mismatched_sizes=True
    )
    # The AST of transformers has no such method; the script is given
    # --freeze_feature_encoder False there.
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    for part in data.values():
        part.set_transform(transform, output_all_columns=False)
    arguments = TrainingArguments(
        output_dir=out,
        remove_unused_columns=False,
        learning_rate=1e-3,
        num_train_epochs=10,
        per_device_train_batch_size=4,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        compute_metrics=lambda given: {
            "accuracy": accuracy_score(given.label_ids, np.argmax(given.predictions, axis=1))
        },
        processing_class=extractor,
    )
    trainer.train()
    trainer.save_model()
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.create_model_card(finetuned_from=model_name, tasks="audio-classification")
    print(json.dumps({"accuracy": accuracy, "model": type(model).__module__}))


if __name__ == "__main__":
    if "--ours" in sys.argv:
        importlib.import_module("modeling_ast")
    main(*sys.argv[1:4])
