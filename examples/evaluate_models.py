"""Judges a model, or an ensemble of models, on held-out clips.

    python examples/evaluate_models.py MODEL... --data DATA [--eval_split test] [--json]

MODEL is an AST on the Hub or a directory; DATA is what data_sources.py describes, of which the
held-out part is heard. Models may differ in stride, length, rate and in the order of their labels,
which are matched by name. An ensemble is the mean of the models' probabilities: sigmoids where a
clip may have several labels, as published, else softmaxes. --per_class writes a CSV file with a
row for each class. Source: Gong et al. 2021, section 3.1 (Ensemble-S, Ensemble-M).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from classify import load
from data_sources import DataArguments, is_exclusive, label_column, load_part, read_classes
from datasets import Dataset
from run_folder import write_table
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

from modeling_ast import activation
from modeling_ast.training import (
    AudioCollator,
    BadClips,
    ClipReader,
    LabelEncoder,
    accuracy,
    class_table,
    drop_bad_clips,
    ensemble_probabilities,
    tagging_metrics,
)


@dataclass
class EvaluationArguments:
    """How the models are run, and what is told."""

    scores: str = field(
        default="auto",
        metadata={
            "help": "auto asks each model's config and takes sigmoid for AudioSet's 527 classes",
            "choices": ["auto", "sigmoid", "softmax"],
        },
    )
    batch_size: int = field(default=16, metadata={"help": "clips at once"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; a GPU if any"})
    per_class: str | None = field(default=None, metadata={"help": "CSV file to write"})
    bad_clips: str = field(
        default="bad_clips.txt", metadata={"help": "list of clips that cannot be decoded"}
    )
    json: bool = field(default=False, metadata={"help": "print JSON instead of a table"})


@dataclass
class HeldOut:
    """The clips that all models judge."""

    clips: Dataset
    classes: list[tuple[str, str]]
    targets: np.ndarray  # (clips, C), zeros and ones
    exclusive: bool
    data: DataArguments


def parse_arguments() -> tuple[list[str], EvaluationArguments, DataArguments]:
    """Reads the command line."""
    parser = HfArgumentParser((EvaluationArguments, DataArguments))
    parser.description = "Judge a model, or an ensemble of models, on held-out clips."
    parser.add_argument("models", metavar="MODEL", nargs="+", help="on the Hub, or a directory")
    options, data, rest = parser.parse_args_into_dataclasses()
    if data.data is None:
        parser.error("--data is missing; give a name on the Hub, a directory or a file")
    return rest.models, options, data


def read_held_out(options: EvaluationArguments, data: DataArguments) -> HeldOut:
    """The clips that can be decoded, and what is true of them."""
    clips = load_part(data, held_out=True)
    classes = read_classes(data, clips)
    bad_clips = BadClips(options.bad_clips, len(clips), data.max_bad_share)
    clips = drop_bad_clips(clips, reader_for(data), bad_clips)
    label2id = {key: index for index, pair in enumerate(classes) for key in pair}
    encode = LabelEncoder(label2id, multi_label=True, num_labels=len(classes))
    column = label_column(data, clips)
    targets = torch.stack([encode(row[column]) for row in clips.select_columns(column)])
    return HeldOut(clips, classes, targets.numpy(), is_exclusive(data, clips), data)


def reader_for(data: DataArguments, sampling_rate: int = 16000) -> ClipReader:
    """Decodes the rows of the data set."""
    return ClipReader(sampling_rate, data.audio_column, root=data.root)


@torch.inference_mode()
def probabilities(name: str, held_out: HeldOut, options: EvaluationArguments) -> np.ndarray:
    """What a model says of each clip and class (clips, C), in the order of the data's classes."""
    model, extractor = load(name, options.device)
    own = columns_of(model.config, held_out.classes, name)
    collate = AudioCollator(
        extractor, reader=reader_for(held_out.data, extractor.sampling_rate), crop="middle"
    )
    loader = DataLoader(
        held_out.clips,
        options.batch_size,
        num_workers=options.num_workers,
        collate_fn=collate,
    )
    logits = []
    for batch in tqdm(loader, desc=name, unit="batch", leave=False):
        inputs = {key: tensor.to(model.device) for key, tensor in batch.items()}
        logits.append(model(**inputs).logits.float().cpu())
    # The mean over one model, in float64: its probabilities.
    kind = activation(options.scores, model.config)
    return ensemble_probabilities([torch.cat(logits)], kind == "sigmoid")[:, own].numpy()


def columns_of(config, classes: list[tuple[str, str]], name: str) -> list[int]:
    """The model's class index of each of the data's classes, by either of its names."""
    found = [[config.label2id[key] for key in pair if key in config.label2id] for pair in classes]
    missing = [pair[1] for pair, indices in zip(classes, found) if not indices]
    if missing:
        raise ValueError(
            f"{name} does not know {len(missing)} of the {len(classes)} classes, such as "
            f"{missing[:3]}; it knows {list(config.label2id)[:3]}, ..., so name the column of "
            f"labels with --label_column, or a --label_csv with the model's names"
        )
    return [indices[0] for indices in found]


def judge(scores: np.ndarray, held_out: HeldOut) -> dict[str, float]:
    """The metrics of probabilities (clips, C)."""
    metrics = tagging_metrics(scores, held_out.targets)
    if held_out.exclusive:
        return {"accuracy": accuracy(scores, held_out.targets.argmax(1))} | metrics
    return metrics


def table(rows: list[dict]) -> str:
    """A line for each model and for the ensemble."""
    names = list(rows[0])[1:]
    width = max(len(row["model"]) for row in rows)
    lines = [" " * width + "".join(f"{name:>19}" for name in names)]
    for row in rows:
        numbers = "".join(
            f"{row[name]:>19.4f}" if isinstance(row[name], float) else f"{row[name]:>19}"
            for name in names
        )
        lines.append(f"{row['model']:<{width}}{numbers}")
    return "\n".join(lines)


def run(models: list[str], options: EvaluationArguments, data: DataArguments) -> dict:
    """All results: clips, a row for each model and for the ensemble, a row for each class."""
    held_out = read_held_out(options, data)
    rows, total = [], 0.0
    for name in models:
        scores = probabilities(name, held_out, options)
        rows.append({"model": name} | judge(scores, held_out))
        total = total + scores
    mean = total / len(models)
    if len(models) > 1:
        rows.append({"model": f"ensemble of {len(models)}"} | judge(mean, held_out))
    classes = class_table(mean, held_out.targets, [name for _, name in held_out.classes])
    return {"clips": len(held_out.clips), "models": rows, "classes": classes}


def main() -> None:
    """Evaluates and prints."""
    models, options, data = parse_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        result = run(models, options, data)
        if options.per_class:
            write_table(result["classes"], Path(options.per_class))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        result["classes"] = [row._asdict() for row in result["classes"]]
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(f"{result['clips']} clips\n{table(result['models'])}\n")


if __name__ == "__main__":
    main()
