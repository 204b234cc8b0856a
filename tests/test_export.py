"""The exported folder: its files, that it is complete, and the messages of the command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, AudioTagger
from modeling_ast.commands import main
from tests.conftest import ROOT

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

import onnx
import onnxruntime

from modeling_ast.conversion import ConversionError
from modeling_ast.exporting import checking, export, export_model
from modeling_ast.exporting.onnx_files import FILES, OnnxFile

NAMES = {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "onnx/model.onnx",
    "onnx/model_fp16.onnx",
    "onnx/model_quantized.onnx",
    "onnx/model_masked.onnx",
    "onnx/waveform.onnx",
    "onnx/waveform_quantized.onnx",
}


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_in_the_folder(exported_folder):
    assert files_in(exported_folder) == NAMES
    preprocessor = json.loads((exported_folder / "preprocessor_config.json").read_text())
    assert preprocessor["feature_extractor_type"] == "ASTFeatureExtractor"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_inputs_and_outputs(exported_folder, file):
    """transformers.js refuses files with inputs that it does not know."""
    proto = onnx.load(exported_folder / file.path)
    onnx.checker.check_model(proto)
    inputs = {
        "frames": ["input_values"],
        "masked": ["input_values", "attention_mask"],
        "waveform": ["waveform", "num_samples"],
    }
    outputs = ["logits", "scores"] if file.graph == "waveform" else ["logits"]
    assert [entry.name for entry in proto.graph.input] == inputs[file.graph]
    assert [entry.name for entry in proto.graph.output] == outputs
    float32 = onnx.TensorProto.FLOAT
    assert proto.graph.input[0].type.tensor_type.elem_type == float32
    assert {entry.type.tensor_type.elem_type for entry in proto.graph.output} == {float32}
    free = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert free[0] and free[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_path_of_this_computer_is_in_a_file(exported_folder, file):
    content = (exported_folder / file.path).read_bytes()
    assert str(ROOT).encode() not in content and b".py" not in content


def test_8_bit_files_keep_the_front_end_in_float(exported_folder):
    proto = onnx.load(exported_folder / "onnx/waveform_quantized.onnx")
    kinds = {entry.name: entry.data_type for entry in proto.graph.initializer}
    assert {kinds[name] for name in ("dft", "filters")} == {onnx.TensorProto.FLOAT}
    # 3 for attention's inputs, 1 for its output, 2 for the feed-forward half, 1 for the classifier.
    assert sum(node.op_type == "MatMulInteger" for node in proto.graph.node) == 7


@pytest.mark.parametrize("frames", [16, 17, 40, 97, 200])
@pytest.mark.parametrize("clips", [1, 3])
def test_plain_transformers_judges_the_graph_of_frames(exported_folder, frames, clips):
    """Padded to the model's length, because transformers' own model accepts no other."""
    values = torch.randn(clips, frames, 40, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(exported_folder / "onnx/model.onnx")
    (logits,) = session.run(None, {"input_values": values.numpy()})
    model = ASTForAudioClassification.from_pretrained(exported_folder)
    if frames == 97:
        model = transformers.ASTForAudioClassification.from_pretrained(exported_folder)
    with torch.no_grad():
        expected = model(values).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def opsets_in(folder):
    """Versions of ONNX's own operators in the files of a folder."""
    protos = [onnx.load(folder / file.path) for file in FILES]
    return {entry.version for proto in protos for entry in proto.opset_import if not entry.domain}


def test_the_opset_is_18_by_default(exported_folder):
    assert opsets_in(exported_folder) == {18}


@pytest.mark.parametrize(
    "opset", [20, *(pytest.param(number, marks=pytest.mark.slow) for number in (19, 21, 22))]
)
def test_other_opsets(exported_folder, tmp_path, opset):
    """Each file passes its check, or nothing is written."""
    assert len(export_model(exported_folder, tmp_path / "out", opset=opset).files) == len(FILES)
    assert opsets_in(tmp_path / "out") == {opset}


def test_an_opset_that_cannot_be_written_is_refused(exported_folder, tmp_path):
    with pytest.raises(ValueError, match="opset 17 cannot be written; give 18, 19, 20, 21 or 22"):
        export_model(exported_folder, tmp_path / "out", opset=17)
    assert not list(tmp_path.iterdir())


def test_an_opset_that_torch_passes_over_is_refused(exported_folder, tmp_path, monkeypatch):
    """torch keeps opset 18 and only logs it where it cannot convert a graph."""
    written = torch.onnx.export

    def export_in_18(*args, **kwargs):
        return written(*args, **(kwargs | {"opset_version": 18}))

    monkeypatch.setattr(torch.onnx, "export", export_in_18)
    with pytest.raises(ConversionError, match=r"cannot write the model in opset 20; take another"):
        export_model(exported_folder, tmp_path / "out", opset=20)
    assert not list(tmp_path.iterdir())


def test_the_folder_is_a_checkpoint_like_any_other(exported_folder, clip):
    tagger = AudioTagger.from_pretrained(exported_folder, num_workers=0)
    (tags,) = tagger([clip])
    assert tags.error is None and tagger.padding == "longest"


def test_a_file_that_is_off_is_refused_and_nothing_is_left(exported_folder, tmp_path, monkeypatch):
    """In this test the graph has other weights."""

    def write_other_weights(files, folder, tagger, opset):
        (folder / "onnx").mkdir()
        other = folder / "onnx" / "model.onnx"
        proto = onnx.load(exported_folder / "onnx/model.onnx")
        for entry in proto.graph.initializer:
            if entry.name.endswith("dense.bias"):
                bias = onnx.numpy_helper.to_array(entry) + np.float32(0.01)
                entry.CopyFrom(onnx.numpy_helper.from_array(bias, entry.name))
        onnx.save(proto, other)
        return {OnnxFile("model.onnx", "frames"): other}

    monkeypatch.setattr(export, "write_files", write_other_weights)
    with pytest.raises(
        ConversionError, match=r"model\.onnx have an error of 0\.01 but at most 0\.0001"
    ):
        export_model(exported_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_made_up_clips_have_30_lengths_and_batches_of_1_to_4():
    extractor = ASTFeatureExtractor(max_length=97, num_mel_bins=40)
    batches = checking.made_up_clips(extractor)
    assert len({len(batch[0]) for batch in batches}) == 30
    assert {len(batch) for batch in batches} == {1, 2, 3, 4}
    lengths = [len(clip) for batch in batches for clip in batch]
    assert min(lengths) == 400 and max(lengths) == 400 + 96 * 160
    assert all(clip.abs().max() <= 1 for batch in batches for clip in batch)


def test_an_older_export_is_replaced_only_by_force(exported_folder, tmp_path, capsys):
    target = tmp_path / "out"
    (target / "onnx").mkdir(parents=True)
    (target / "onnx" / "model.onnx").write_text("old")
    assert main(["export", str(exported_folder), str(target)]) == 1
    assert "is not empty; choose another name, or replace it with --force" in error_of(capsys)
    (target / "onnx" / "notes.txt").write_text("mine")
    assert main(["export", str(exported_folder), str(target), "--force"]) == 1
    assert "holds onnx/notes.txt, which no conversion wrote" in error_of(capsys)
    assert (target / "onnx" / "model.onnx").read_text() == "old"


def error_of(capsys):
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere", "out"], 1, "nowhere"),
        *(
            (
                ["model", "out", "--opset", opset],
                2,
                f"error: opset {opset} cannot be written; give 18, 19, 20, 21 or 22\n",
            )
            for opset in ("17", "23")
        ),
        (["model", "out", "--eval-split", "test"], 2, "unrecognized arguments: --eval-split"),
        (["model"], 2, "OUT"),
    ],
)
def test_what_is_refused(arguments, status, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["export", *arguments]) == status
    except SystemExit as usage:
        assert usage.code == status
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_misses_its_limit_can_be_left_out(
    exported_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(checking.LIMITS, "int8", 1e-9)
    arguments = ["export", str(exported_folder), str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.endswith("nothing was written: export the others with --leave-out int8\n")
    assert main([*arguments, "--leave-out", "int8", "float16"]) == 0
    assert files_in(tmp_path / "out") == {
        name for name in NAMES if "quantized" not in name and "fp16" not in name
    }
    with pytest.raises(ValueError, match="leave_out has 'float32'; give some of float16, int8"):
        export_model(exported_folder, tmp_path / "again", leave_out=["float32"])


def test_a_target_that_holds_the_model_is_refused(exported_folder, capsys):
    assert main(["export", str(exported_folder), str(exported_folder), "--force"]) == 1
    assert "would be lost; choose another place" in error_of(capsys)


def test_the_script_has_the_same_arguments():
    script = ROOT / "conversion" / "ast_to_onnx.py"
    shown = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "MODEL OUT" in shown.stdout
