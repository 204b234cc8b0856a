"""The ONNX files of a model: which ones there are, and how each is written.

The float32 files are traced; float16 and 8-bit files are made from them, so that all of them have
the same graph. transformers.js looks for these names: `dtype: "q8"` reads model_quantized.onnx.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx_ir
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from ..conversion.key_maps import ConversionError
from ..tagging import AudioTagger
from .graphs import FrameGraph, MaskedFrameGraph, WaveformGraph

FOLDER = "onnx"
# Opset 18 is the oldest that torch's exporter writes itself, so most runtimes read it. Beyond 22
# torch writes attention as one operator, which few runtimes know and no tool quantizes.
OPSETS = range(18, 23)
OPSET = OPSETS[0]
# Limit of a protobuf file; several files are not possible, as transformers.js looks for one.
MOST_BYTES = 2**31 - 2**20
# Tables of the front end; in 8 bits quiet frames would be lost in rounding.
KEPT_IN_FLOAT = {"dft", "filters"}


def check_opset(opset: int) -> None:
    """Refuses a version of ONNX's operators in which the files cannot be written.

    Raises:
        ValueError: It is another than `OPSETS`.
    """
    if opset not in OPSETS:
        *others, newest = OPSETS
        raise ValueError(
            f"opset {opset} cannot be written; give {', '.join(map(str, others))} or {newest}"
        )


class OnnxFile(NamedTuple):
    """A file of the folder `onnx`."""

    name: str
    graph: str  # "frames", "masked" or "waveform"
    precision: str = "float32"  # "float16", "int8"

    @property
    def path(self) -> str:
        """The path in the exported folder."""
        return f"{FOLDER}/{self.name}"


# Each file comes after the float32 file that it is made from.
FILES = (
    OnnxFile("model.onnx", "frames"),
    OnnxFile("model_fp16.onnx", "frames", "float16"),
    OnnxFile("model_quantized.onnx", "frames", "int8"),
    OnnxFile("model_masked.onnx", "masked"),
    OnnxFile("waveform.onnx", "waveform"),
    OnnxFile("waveform_quantized.onnx", "waveform", "int8"),
)
# The precisions whose files may be left out; the others are made from the float32 files.
OPTIONAL = ("float16", "int8")


class WaveformSettings(NamedTuple):
    """What a caller of waveform.onnx must know; the file has it in its metadata."""

    labels: list[str]  # in the order of logits and scores
    sampling_rate: int  # Hz
    min_samples: int  # shortest clip: one frame's window
    max_samples: int  # a longer recording is cut into equal parts that are not longer than this
    hop_samples: int  # from one frame to the next
    activation: str  # turns logits into scores: "sigmoid" or "softmax"
    # The calibration of each label, or None if the model has none; see calibration.py.
    slopes: list[float] | None
    intercepts: list[float] | None

    def as_metadata(self) -> dict[str, str]:
        """Each setting as JSON, under its own name."""
        return {name: json.dumps(value) for name, value in self._asdict().items()}

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> WaveformSettings:
        """Reads `as_metadata`.

        Raises:
            KeyError: An entry is missing, so the file is not a waveform.onnx.
        """
        return cls(*(json.loads(metadata[name]) for name in cls._fields))


def write_file(
    file: OnnxFile,
    folder: Path,
    tagger: AudioTagger,
    opset: int = OPSET,
) -> None:
    """Writes one file; other precisions are made from the float32 file of the same graph.

    Args:
        folder: The exported folder, with its folder `onnx`.
        tagger: With the model in evaluation mode, float32, on the CPU.
    Raises:
        ConversionError: The model is too large for one file, or cannot be traced.
    """
    path = folder / file.path
    source = next(other for other in FILES if other.graph == file.graph)
    if file.precision == "float16":
        halved = convert_float_to_float16(onnx.load(folder / source.path), keep_io_types=True)
        onnx.save(_sorted(halved), path)
    elif file.precision == "int8":
        _quantize(folder / source.path, path)
    else:
        _trace(file.graph, path, tagger, opset)


def _trace(kind: str, path: Path, tagger: AudioTagger, opset: int) -> None:
    model = tagger.model
    num_bytes = sum(weight.nbytes for weight in model.parameters())
    if num_bytes > MOST_BYTES:
        raise ConversionError(
            f"the model has {num_bytes / 2**30:.1f} GiB of weights but an ONNX file holds at most "
            f"2 GiB; export a smaller model"
        )
    graph: FrameGraph | WaveformGraph
    if kind == "waveform":
        graph = WaveformGraph(model, tagger.extractor, tagger.calibration)
    else:
        graph = (MaskedFrameGraph if kind == "masked" else FrameGraph)(model)
    inputs, dynamic_shapes, outputs = graph.eval().example()
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            graph,
            (),
            kwargs=inputs,
            dynamic_shapes=dynamic_shapes,
            output_names=list(outputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None only for the exporter of TorchScript
    proto = program.model_proto
    written = {entry.version for entry in proto.opset_import if entry.domain == ""}
    # Where torch cannot convert a graph to an opset, it only logs that.
    if written != {opset}:
        raise ConversionError(
            f"this torch ({torch.__version__}) cannot write the model in opset {opset}; take "
            f"another --opset, or a newer torch"
        )
    _strip(proto)
    if kind == "waveform":
        settings = waveform_settings(tagger)
        onnx.helper.set_model_props(proto, settings.as_metadata())
    onnx.save(proto, path)


def waveform_settings(tagger: AudioTagger) -> WaveformSettings:
    """What a caller of this model's waveform.onnx must know."""
    extractor = tagger.extractor
    names = tagger.model.config.id2label or {}
    known = None if tagger.calibration is None else tagger.calibration.labels.values()
    return WaveformSettings(
        labels=[str(names[index]) for index in range(len(names))],
        sampling_rate=extractor.sampling_rate,
        min_samples=extractor.window_samples,
        max_samples=extractor.max_samples,
        hop_samples=extractor.hop_samples,
        activation=tagger.activation,
        slopes=None if known is None else [label.slope for label in known],
        intercepts=None if known is None else [label.intercept for label in known],
    )


def _strip(proto: onnx.ModelProto) -> None:
    """Removes torch's notes on each node, because they show file paths of this computer.

    Also the shapes of weights, which the weights themselves have: onnxruntime before 1.32 turns
    weights round when it quantizes them, but not these shapes.
    """
    graph = proto.graph
    weights = {weight.name for weight in graph.initializer}
    shapes = [entry for entry in graph.value_info if entry.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    for entry in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    del graph.metadata_props[:]


def _sorted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with each node after its inputs; onnxruntime's converter breaks this order."""
    model = onnx_ir.from_proto(proto)
    model.graph.sort()
    return onnx_ir.to_proto(model)


def _quantize(source: Path, target: Path) -> None:
    """Stores the weights of the linear layers as int8, with a scale for each channel.

    The inputs of these layers become uint8 in each call, so that no calibration data is needed.
    """
    graph = onnx.load(source, load_external_data=False).graph
    with _quiet_exporter():
        quantize_dynamic(
            source,
            target,
            # The convolution stays in float32: it is 1 % of the work, and few runtimes have an
            # integer version of it.
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[node.name for node in graph.node if KEPT_IN_FLOAT & set(node.input)],
            per_channel=True,
            # 7 bits, because with 8 the sum of two products overflows on x86 CPUs without VNNI.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hides the messages of torch, onnxscript and onnxruntime about their progress."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", None)
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stdout(nowhere):
                yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


__all__ = [
    "FILES",
    "FOLDER",
    "OPSET",
    "OPSETS",
    "OnnxFile",
    "WaveformSettings",
    "check_opset",
    "waveform_settings",
    "write_file",
]
