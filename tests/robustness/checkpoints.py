"""Damaged model folders: each kind is one damage to a small, undamaged model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

LABELS = ("bark", "siren", "rain")


def whole_model(folder: Path) -> None:
    """A small model with its extractor."""
    config = ASTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=128,
        num_mel_bins=64,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        problem_type="single_label_classification",
    )
    torch.manual_seed(0)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)


def with_json(name: str, **fields) -> Callable[[Path], None]:
    """A damage that changes fields of a JSON file."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def with_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A damage that replaces the content of a file."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def without_tensors(*parts: str) -> Callable[[Path], None]:
    """A damage that removes the tensors whose names contain one of these parts."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        kept = {
            name: tensor
            for name, tensor in load_file(path).items()
            if not any(part in name for part in parts)
        }
        save_file(kept, path, metadata={"format": "pt"})

    return damage


def with_nan(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layernorm.weight"))
    save_file({**weights, name: weights[name] * torch.nan}, path, metadata={"format": "pt"})


class _Malicious:
    def __reduce__(self):
        return os.system, ("touch pickle_ran",)


def with_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weights": _Malicious()}, file)


def without(name: str) -> Callable[[Path], None]:
    """A damage that removes a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()

    return damage


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


WEIGHTS, CONFIG, EXTRACTOR = "model.safetensors", "config.json", "preprocessor_config.json"
DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights cut off": with_bytes(WEIGHTS, lambda content: content[: len(content) // 2]),
    "weights empty": with_bytes(WEIGHTS, lambda content: b""),
    "weights of zeros": with_bytes(WEIGHTS, lambda content: bytes(len(content))),
    "weights missing": without(WEIGHTS),
    "weights a pickle that runs code": with_pickle,
    "head missing": without_tensors("classifier"),
    "three tensors missing": without_tensors("layer.1.output.dense"),
    "weights with NaN": with_nan,
    "config empty": with_bytes(CONFIG, lambda content: b""),
    "config cut off": with_bytes(CONFIG, lambda content: content[:40]),
    "config a list": with_bytes(CONFIG, lambda content: b"[1, 2]"),
    "config missing": without(CONFIG),
    "config of another model": with_json(CONFIG, model_type="bert"),
    "config of an unknown model": with_json(CONFIG, model_type="no-such-model"),
    "hidden_size a word": with_json(CONFIG, hidden_size="wide"),
    "hidden_size null": with_json(CONFIG, hidden_size=None),
    "hidden_size 25": with_json(CONFIG, hidden_size=25),
    "hidden_size absurd": with_json(CONFIG, hidden_size=24 * 10**6),
    "a million layers": with_json(CONFIG, num_hidden_layers=10**6),
    "id2label a list": with_json(CONFIG, id2label=["a", "b"]),
    "id2label null": with_json(CONFIG, id2label=None, label2id=None),
    "id2label absurd": with_json(CONFIG, id2label={"x": "y"}),
    "num_labels absurd": with_json(CONFIG, id2label=None, label2id=None, num_labels=10**9),
    "dtype unknown": with_json(CONFIG, dtype="float13"),
    "problem_type unknown": with_json(CONFIG, problem_type="guess"),
    "max_length absurd": with_json(CONFIG, max_length=10**12),
    "extractor empty": with_bytes(EXTRACTOR, lambda content: b""),
    "extractor a list": with_bytes(EXTRACTOR, lambda content: b"[]"),
    "mean null": with_json(EXTRACTOR, mean=None),
    "std 0": with_json(EXTRACTOR, std=0.0),
    "sampling_rate a word": with_json(EXTRACTOR, sampling_rate="fast"),
    "extractor max_length absurd": with_json(EXTRACTOR, max_length=10**12),
    "padding unknown": with_json(EXTRACTOR, padding="sideways"),
    "a file": as_file,
}
# Labels are texts from unknown sources.
STRANGE_LABELS = (
    "\x1b[31mred\x1b[0m\x07",
    "two\nlines\r\tand tabs",
    "\u202eright to left\u2066",
    "lone \ud800 surrogate",
    "$\\frac{1}{0$ mathtext_",
    "<script>alert(1)</script>",
    "| a | table\n---|---",
    "",
    "same",
    "same",
)


def with_strange_labels(folder: Path) -> None:
    """A model whose labels are `STRANGE_LABELS`."""
    whole_model(folder)
    config = ASTConfig.from_pretrained(folder)
    config.id2label = dict(enumerate(STRANGE_LABELS))
    config.label2id = {name: index for index, name in enumerate(STRANGE_LABELS)}
    fields = json.loads((folder / CONFIG).read_text())
    fields |= {
        "id2label": {str(index): name for index, name in enumerate(STRANGE_LABELS)},
        "label2id": {name: index for index, name in enumerate(STRANGE_LABELS)},
    }
    shutil.rmtree(folder)
    config = ASTConfig.from_dict(fields)
    torch.manual_seed(0)
    ASTForAudioClassification(config).save_pretrained(folder)
    (folder / CONFIG).write_text(json.dumps(fields))
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
