"""Size, milliseconds per clip and error of a model in torch, onnxruntime and OpenVINO.

    python tests/benchmarks/export.py [MODEL]

Without MODEL: the base size with 527 labels and random weights, which takes minutes. Rows of
libraries that are not installed (torchao, openvino) are left out. The input is one clip of the
model's length, as frames: the front end is the same for all.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AudioTagger,
    quantize_int8,
)
from modeling_ast.exporting.export import write_files
from modeling_ast.exporting.onnx_files import FILES
from modeling_ast.exporting.running import open_session

NUM_RUNS = 7
Run = Callable[[Tensor], np.ndarray]


def in_torch(model: ASTForAudioClassification) -> Run:
    """A model with any type of weights."""
    return lambda values: model(values).logits.float().numpy()


def torchao_int8(model: ASTForAudioClassification) -> ASTForAudioClassification:
    """The quantization of `quantize_int8`, done by torchao."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def runs_of(tagger: AudioTagger, folder: Path) -> dict[str, tuple[float, Run]]:
    """Name -> megabytes and a function to call."""
    model = tagger.model
    size = sum(weight.nbytes for weight in model.parameters()) / 1e6
    half = copy.deepcopy(model).bfloat16()
    runs: dict[str, tuple[float, Run]] = {
        "torch float32": (size, in_torch(model)),
        "torch bfloat16": (size / 2, in_torch(half)),
        "torch int8 (quantize_int8)": (size / 4, in_torch(quantize_int8(model))),
    }
    if importlib.util.find_spec("torchao"):
        runs["torch int8 (torchao, eager)"] = (size / 4, in_torch(torchao_int8(model)))
    frames = [file for file in FILES if file.graph == "frames"]
    for file, path in write_files(frames, folder, tagger).items():
        megabytes = path.stat().st_size / 1e6
        session = open_session(path)
        runs[f"onnxruntime {file.precision}"] = (
            megabytes,
            lambda values, s=session: s.run(None, {"input_values": values.numpy()})[0],
        )
        if importlib.util.find_spec("openvino") and file.precision != "float16":
            import openvino

            settings = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(path, "CPU", settings)
            runs[f"OpenVINO {file.precision}"] = (
                megabytes,
                lambda values, c=compiled: c({"input_values": values.numpy()})["logits"],
            )
    return runs


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    if sys.argv[1:]:
        tagger = AudioTagger.from_pretrained(sys.argv[1], "cpu", "float32", num_workers=0)
    else:
        config = ASTConfig(num_labels=527)
        model = ASTForAudioClassification(config).eval()
        tagger = AudioTagger(model, ASTFeatureExtractor.from_config(config), num_workers=0)
    config = tagger.model.config
    values = torch.randn(1, config.max_length, config.num_mel_bins) * 0.5
    with tempfile.TemporaryDirectory() as folder:
        with torch.inference_mode(False):
            runs = runs_of(tagger, Path(folder))
        expected = runs["torch float32"][1](values)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(NUM_RUNS):
            for name, (_, run) in runs.items():
                start = perf_counter()
                run(values)
                times[name].append(1000 * (perf_counter() - start))
        print(f"{'':<30}{'MB':>8}{'ms':>8}{'rms error':>12}  (of the logits' deviation)")
        for name, (megabytes, run) in runs.items():
            off = run(values) - expected
            error = np.sqrt(np.mean(off**2)) / expected.std()
            print(f"{name:<30}{megabytes:>8.1f}{median(times[name]):>8.0f}{error:>12.2g}")


if __name__ == "__main__":
    main()
