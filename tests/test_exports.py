"""Exported graphs keep their dynamic axes: each is run with other sizes and compared."""

import itertools

import pytest
import torch
from torch.export import Dim

from modeling_ast import ASTConfig, ASTForAudioClassification
from tests.conftest import TINY, randomise
from tests.spectrograms import CLOSE, mask_of, spectrogram

# From two columns of patches on, because torch makes a size of 1 a constant.
FEWEST = TINY["patch_size"] + TINY["time_stride"]
CHOICES = {"batch": [0], "frames": [1], "both": [0, 1]}


def sizes(dynamic):
    """Sizes (clips, frames) with fewer columns than were learned, as many, and more."""
    batches = (1, 2, 5) if 0 in dynamic else (3,)
    frames = (FEWEST, FEWEST + 7, 61, 96, 98, 150, 1024) if 1 in dynamic else (97,)
    return itertools.product(batches, frames)


def inputs(clips, frames, masked):
    given = {"input_values": spectrogram(clips, frames)}
    if masked:
        lengths = [frames * (clip + 1) // clips for clip in range(clips)]
        given["attention_mask"] = mask_of(lengths, frames)
    return given


def declared(dynamic, masked):
    """An example and its dynamic shapes."""
    dims = {0: Dim("batch"), 1: Dim("frames", min=FEWEST, max=1024)}
    given = inputs(3, 97, masked)
    return given, {name: {axis: dims[axis] for axis in dynamic} for name in given}


@pytest.fixture(scope="module")
def model():
    """Two layers: the last one differs from the others."""
    return randomise(ASTForAudioClassification(ASTConfig(**{**TINY, "num_hidden_layers": 2})))


def assert_same_at_other_sizes(run, model, dynamic, masked):
    for clips, frames in sizes(dynamic):
        given = inputs(clips, frames, masked)
        with torch.no_grad():
            torch.testing.assert_close(run(given), model(**given).logits, **CLOSE)


@pytest.mark.parametrize("dynamic", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("masked", [False, True], ids=["bare", "masked"])
@pytest.mark.parametrize("strict", [False, True], ids=["loose", "strict"])
def test_exported_programs(model, dynamic, masked, strict, attention="sdpa"):
    model.set_attn_implementation(attention)
    given, shapes = declared(dynamic, masked)
    program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=strict)
    exported = program.module()
    assert_same_at_other_sizes(lambda given: exported(**given).logits, model, dynamic, masked)


def test_exported_programs_of_eager_attention(model):
    test_exported_programs(model, CHOICES["both"], masked=True, strict=False, attention="eager")


def test_a_program_of_one_size(model):
    """It uses the learned positions without a change."""
    model.set_attn_implementation("sdpa")
    x = spectrogram(2, 97)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x).logits, model(x).logits, **CLOSE)
    assert not any("lerp" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("dynamic", "masked"),
    [
        ("batch", False),
        ("both", True),
        *(
            pytest.param(*choice, marks=pytest.mark.slow)
            for choice in (("frames", False), ("both", False), ("batch", True), ("frames", True))
        ),
    ],
)
def test_onnx_graphs(model, dynamic, masked, tmp_path):
    dynamic = CHOICES[dynamic]
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"torch.onnx.export needs {name}")
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    model.set_attn_implementation("sdpa")
    given, shapes = declared(dynamic, masked)
    graph = tmp_path / "ast.onnx"
    with torch.no_grad():
        torch.onnx.export(
            model, (), graph, kwargs=given, dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    session = runtime.InferenceSession(graph)

    def run(given):
        (logits,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        return torch.from_numpy(logits)

    assert_same_at_other_sizes(run, model, dynamic, masked)
