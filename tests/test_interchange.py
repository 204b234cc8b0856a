"""Auto classes, pipelines, and directories exchanged with plain transformers, both ways."""

import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    pipeline,
)

import modeling_ast
from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from tests.conftest import TINY, randomise

OLD_LAYOUT_KEY = "audio_spectrogram_transformer.encoder.layer.0.attention.attention.query.weight"


def plain_python(code: str, *arguments) -> dict:
    """Runs code in a process that has never seen this package; its last line is JSON."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


CLASSIFY_IN_PLAIN_TRANSFORMERS = """
import json, sys, numpy as np, torch, transformers
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
folder, clip = sys.argv[1], np.load(sys.argv[2])
extractor = AutoFeatureExtractor.from_pretrained(folder)
model = AutoModelForAudioClassification.from_pretrained(folder)
inputs = extractor(clip, sampling_rate=16000, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0].tolist()
modules = [type(model).__module__, type(extractor).__module__]
print(json.dumps({"logits": logits, "modules": modules, "ours": "modeling_ast" in sys.modules}))
"""


def test_a_directory_of_ours_runs_in_plain_transformers(tiny_folder, tmp_path, clip):
    np.save(tmp_path / "clip.npy", clip)
    result = plain_python(CLASSIFY_IN_PLAIN_TRANSFORMERS, tiny_folder, tmp_path / "clip.npy")
    assert not result["ours"]
    assert all(name.startswith("transformers.") for name in result["modules"])
    extractor = AutoFeatureExtractor.from_pretrained(tiny_folder)
    model = AutoModelForAudioClassification.from_pretrained(tiny_folder)
    inputs = extractor(clip, sampling_rate=16000, return_tensors="pt")
    np.testing.assert_allclose(model(**inputs).logits[0].tolist(), result["logits"], atol=1e-4)


@pytest.fixture
def plain_folder(tmp_path):
    """As plain transformers saves it; its extractor file names the class."""
    folder = tmp_path / "plain"
    randomise(
        transformers.ASTForAudioClassification(transformers.ASTConfig(**TINY))
    ).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=40, max_length=97).save_pretrained(folder)
    written = json.loads((folder / "preprocessor_config.json").read_text())
    assert written["feature_extractor_type"] == "ASTFeatureExtractor"
    return folder


def new_layout(folder):
    """The same directory with the keys of transformers 5's modules."""
    path = folder / "model.safetensors"
    assert OLD_LAYOUT_KEY in load_file(path)
    model = transformers.ASTForAudioClassification.from_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("layout", ["old", "new"])
def test_auto_classes_give_ours_for_both_key_layouts(plain_folder, layout):
    theirs = transformers.ASTForAudioClassification.from_pretrained(plain_folder)
    if layout == "new":
        new_layout(plain_folder)
    assert type(AutoConfig.from_pretrained(plain_folder)) is modeling_ast.ASTConfig
    assert type(AutoFeatureExtractor.from_pretrained(plain_folder)) is ASTFeatureExtractor
    assert type(AutoModel.from_pretrained(plain_folder)) is modeling_ast.ASTModel
    model = AutoModelForAudioClassification.from_pretrained(plain_folder)
    assert type(model) is ASTForAudioClassification
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_saving_writes_the_layout_of_the_hub_bit_for_bit(plain_folder, tmp_path):
    AutoModelForAudioClassification.from_pretrained(plain_folder).save_pretrained(tmp_path / "ours")
    before = load_file(plain_folder / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys() and OLD_LAYOUT_KEY in after
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_a_saved_file_is_loaded_as_it_is(tiny_model, tiny_folder):
    """Trainer resumes that way."""
    content = load_file(tiny_folder / "model.safetensors")
    assert OLD_LAYOUT_KEY in content
    other = randomise(ASTForAudioClassification(tiny_model.config), seed=1)
    missing, unexpected = other.load_state_dict(content, strict=False)
    assert not missing and not unexpected
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_the_encoder_alone_makes_the_round_trip(plain_folder, tmp_path):
    encoder = AutoModel.from_pretrained(plain_folder)
    encoder.save_pretrained(tmp_path / "encoder")
    theirs, info = transformers.ASTModel.from_pretrained(
        tmp_path / "encoder", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name


def test_a_new_head_on_an_old_encoder(plain_folder):
    model = AutoModelForAudioClassification.from_pretrained(
        plain_folder, num_labels=9, ignore_mismatched_sizes=True
    )
    assert model.classifier.dense.weight.shape == (9, 36)


def test_pipeline_is_ours_and_agrees_with_a_direct_call(plain_folder, clip):
    classify = pipeline("audio-classification", model=str(plain_folder), device="cpu")
    assert type(classify.model) is ASTForAudioClassification
    assert type(classify.feature_extractor) is ASTFeatureExtractor
    scores = {row["label"]: row["score"] for row in classify(clip, top_k=5)}
    inputs = classify.feature_extractor(clip, sampling_rate=16000, return_tensors="pt")
    expected = classify.model(**inputs).logits[0].softmax(-1)
    for index, score in enumerate(expected.tolist()):
        assert scores[f"LABEL_{index}"] == pytest.approx(score, abs=1e-6)


def test_pipeline_uses_the_saved_padding_and_batches_exactly(tiny_folder, clip):
    extractor = ASTFeatureExtractor.from_pretrained(tiny_folder)
    extractor.padding = "longest"
    extractor.save_pretrained(tiny_folder)
    classify = pipeline("audio-classification", model=str(tiny_folder))
    assert classify.feature_extractor.padding == "longest"
    clips = [clip[:9000].copy(), clip, clip[:2000].copy(), clip[:30000].copy()]
    one_by_one = [classify(one, top_k=5) for one in clips]
    batched = classify(clips, batch_size=4, top_k=5)
    for alone, together in zip(one_by_one, batched):
        scores = {row["label"]: row["score"] for row in together}
        for row in alone:
            assert scores[row["label"]] == pytest.approx(row["score"], abs=1e-5)


def test_pipeline_computes_features_on_the_device_of_the_extractor(tiny_folder, clip):
    ASTFeatureExtractor.from_pretrained(tiny_folder, device="cpu").save_pretrained(tiny_folder)
    classify = pipeline("audio-classification", model=str(tiny_folder))
    assert classify.feature_extractor.device == "cpu"
    expected = classify.preprocess(clip.copy())["input_values"]
    assert expected.is_cpu and len(classify([clip.copy()] * 3, batch_size=2, top_k=1)) == 3
    classify.feature_extractor.device = "meta"
    values = classify.preprocess(clip.copy())["input_values"]
    assert values.is_meta and values.shape == expected.shape


def test_settings_that_a_file_of_transformers_lacks_can_be_given_while_loading(plain_folder):
    extractor = AutoFeatureExtractor.from_pretrained(plain_folder, padding="longest", max_length=50)
    assert type(extractor) is ASTFeatureExtractor
    assert (extractor.padding, extractor.max_length, extractor.num_mel_bins) == ("longest", 50, 40)
    with pytest.raises(ValueError, match="padding is 'shortest'"):
        AutoFeatureExtractor.from_pretrained(plain_folder, padding="shortest")


def test_multi_label_models_give_sigmoid_scores(tiny_folder, clip):
    postprocess = inspect.signature(transformers.AudioClassificationPipeline.postprocess)
    if postprocess.parameters["function_to_apply"].default == "softmax":
        pytest.skip("the pipeline of this transformers takes softmax for every model")
    model = AutoModelForAudioClassification.from_pretrained(
        tiny_folder, problem_type="multi_label_classification"
    )
    model.save_pretrained(tiny_folder)
    classify = pipeline("audio-classification", model=str(tiny_folder))
    inputs = classify.feature_extractor(clip, sampling_rate=16000, return_tensors="pt")
    expected = classify.model(**inputs).logits[0].sigmoid().sort(descending=True).values
    scores = [row["score"] for row in classify(clip, top_k=5)]
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)


def test_transformers_own_classes_stay_as_they_are():
    assert transformers.ASTFeatureExtractor.__module__.startswith("transformers.models")
    assert transformers.ASTForAudioClassification is not ASTForAudioClassification


def test_code_can_travel_with_a_checkpoint(tiny_model, tmp_path, clip):
    """register_for_auto_class copies our files to the Hub; they must load alone from there."""
    code = """
import json, sys
from modeling_ast import ASTConfig, ASTForAudioClassification, ASTFeatureExtractor
ASTConfig.register_for_auto_class()
ASTFeatureExtractor.register_for_auto_class()
ASTForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
source, target = sys.argv[1:]
model = ASTForAudioClassification.from_pretrained(source)
model.save_pretrained(target)
ASTFeatureExtractor.from_config(model.config, padding="longest").save_pretrained(target)
print(json.dumps({}))
"""
    use = """
import json, sys, numpy as np, torch
sys.modules["modeling_ast"] = None  # as if it were not installed
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
folder, clip = sys.argv[1], np.load(sys.argv[2])
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**extractor(clip, sampling_rate=16000, return_tensors="pt")).logits[0].tolist()
refitted = type(model).from_pretrained(folder, max_length=60)
table = refitted.base_model.embeddings.position_embeddings
assert table.shape[1] == refitted.config.num_patches() + 2
print(json.dumps({"logits": logits, "module": type(model).__module__}))
"""
    tiny_model.save_pretrained(tmp_path / "source")
    np.save(tmp_path / "clip.npy", clip)
    plain_python(code, tmp_path / "source", tmp_path / "target")
    files = {path.name for path in (tmp_path / "target").glob("*.py")}
    assert {"modeling_ast.py", "fast_layers.py", "loading.py", "checks.py", "fbank.py"} <= files
    result = plain_python(use, tmp_path / "target", tmp_path / "clip.npy")
    assert result["module"].startswith("transformers_modules.")
    extractor = ASTFeatureExtractor.from_config(tiny_model.config, padding="longest")
    expected = tiny_model(**extractor(clip, sampling_rate=16000, return_tensors="pt")).logits[0]
    np.testing.assert_allclose(result["logits"], expected.tolist(), atol=1e-5)
