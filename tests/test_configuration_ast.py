import json

import numpy as np
import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_ast import ASTConfig, ASTForAudioClassification
from tests.conftest import TINY


def test_fields_and_defaults_are_those_of_transformers():
    theirs = transformers.ASTConfig().to_dict()
    ours = ASTConfig().to_dict()
    assert {name: ours[name] for name in theirs} == theirs
    front_end = {"sampling_rate", "do_normalize", "mean", "std"}
    training = {"patchout_frequency", "patchout_time", "drop_path_rate"}
    assert set(ours) - set(theirs) == front_end | training | {"int8_linear"}


def test_front_end_defaults_are_those_of_transformers_extractor():
    theirs = transformers.ASTFeatureExtractor()
    config = ASTConfig()
    for name in ("sampling_rate", "do_normalize", "mean", "std", "num_mel_bins", "max_length"):
        assert getattr(config, name) == getattr(theirs, name), name


@pytest.mark.parametrize(
    ("stride", "patches"), [(10, (12, 101)), (12, (10, 85)), (14, (9, 73)), (16, (8, 64))]
)
def test_grids_of_the_released_models(stride, patches):
    config = ASTConfig(frequency_stride=stride, time_stride=stride)
    assert config.patch_grid() == patches
    assert config.num_patches() == patches[0] * patches[1]


@pytest.mark.parametrize("seconds", [1, 2, 5, 10])
def test_the_papers_formula_for_whole_seconds(seconds):
    ceiling = -(-(100 * seconds - 16) // 10)
    assert ASTConfig().num_patches(100 * seconds) == 12 * ceiling


def test_patches_of_128_x_2():
    config = ASTConfig(patch_size=(128, 2), frequency_stride=128, time_stride=2, max_length=1024)
    assert config.patch_shape == (128, 2)
    assert config.patch_grid() == (1, 512)


def test_pair_survives_json_and_a_square_pair_is_an_integer(tmp_path):
    ASTConfig(patch_size=(8, 4)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["patch_size"] == [8, 4]
    assert ASTConfig.from_pretrained(tmp_path).patch_shape == (8, 4)
    assert ASTConfig(patch_size=[16, 16]).patch_size == 16


def test_padding_value_is_a_normalised_zero():
    # What the published AudioSet models saw in padded frames.
    assert ASTConfig().padding_value == pytest.approx(0.467, abs=5e-4)
    assert ASTConfig(do_normalize=False).padding_value == 0.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 100}, ["hidden_size is 100", "multiple of num_attention_heads=12"]),
        ({"hidden_size": 0}, ["hidden_size is 0", "at least 1"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers is -1", "at least 1"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0", "at least 1"]),
        ({"intermediate_size": 0}, ["intermediate_size is 0"]),
        ({"time_stride": 0}, ["time_stride is 0", "at least 1"]),
        ({"frequency_stride": -10}, ["frequency_stride is -10"]),
        ({"max_length": 0}, ["max_length is 0"]),
        ({"max_length": 8}, ["patch_size is 16", "at most max_length=8"]),
        ({"num_mel_bins": 8}, ["patch_size is 16", "at most num_mel_bins=8"]),
        ({"num_mel_bins": 0}, ["num_mel_bins is 0"]),
        ({"patch_size": 0}, ["patch_size is 0"]),
        ({"patch_size": (129, 2)}, ["patch_size is (129, 2)", "num_mel_bins=128"]),
        ({"patch_size": (16, 16, 16)}, ["patch_size"]),
        ({"patch_size": "16"}, ["patch_size"]),
        ({"std": 0.0}, ["std is 0.0", "above 0"]),
        ({"mean": "loud"}, ["mean"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps is 0.0"]),
        ({"layer_norm_eps": -1}, ["layer_norm_eps is -1", "a number above 0"]),
        ({"window_seconds": -1}, ["window_seconds is -1", "two samples of 16000 Hz"]),
        ({"hop_seconds": 0}, ["hop_seconds is 0", "at least one sample of 16000 Hz"]),
        ({"initializer_range": -0.1}, ["initializer_range is -0.1"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob is 1.0", "[0, 1)"]),
        ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob is -0.1"]),
        ({"hidden_act": "gulu"}, ["hidden_act is 'gulu'", "gelu"]),
        ({"sampling_rate": 0}, ["sampling_rate is 0", "1000 Hz"]),
        ({"sampling_rate": 16000.5}, ["sampling_rate"]),
        ({"window_seconds": 0.0}, ["window_seconds is 0.0", "two samples of 16000 Hz"]),
        ({"hop_seconds": 0.0}, ["hop_seconds is 0.0", "at least one sample of 16000 Hz"]),
        ({"hop_seconds": 0.03}, ["hop_seconds is 0.03", "at most window_seconds=0.025"]),
        ({"mean": None}, ["mean"]),
        ({"mean": float("nan")}, ["mean is nan"]),
        ({"mean": float("-inf")}, ["mean is -inf"]),
        ({"std": float("inf")}, ["std is inf"]),
        ({"layer_norm_eps": float("inf")}, ["layer_norm_eps is inf"]),
        ({"num_labels": 10**9}, ["num_labels is 1000000000", "from 0 to 100000"]),
        ({"num_labels": -3}, ["num_labels is -3"]),
        ({"num_labels": "x"}, ["num_labels is 'x'"]),
        ({"num_labels": True}, ["num_labels is True"]),
        ({"id2label": ["a", "b"]}, ["id2label is ['a', 'b']", "a mapping"]),
        ({"id2label": "ab"}, ["id2label is 'ab'"]),
        ({"id2label": {"x": "a"}}, ["id2label is {'x': 'a'}", "numbers its names 0, 1, ..."]),
        ({"id2label": {"0": "a", "2": "b"}}, ["id2label", "numbers its names 0, 1, ..."]),
        ({"id2label": {0: None}}, ["id2label is {0: None}", "texts"]),
        ({"label2id": [1]}, ["label2id is [1]", "a mapping"]),
        ({"dtype": "float99"}, ["dtype is 'float99'", "floating-point type"]),
        ({"dtype": "int8"}, ["dtype is 'int8'", "floating-point type"]),
        ({"dtype": 3}, ["dtype is 3"]),
        ({"torch_dtype": "nn"}, ["torch_dtype is 'nn'"]),
        ({"num_hidden_layers": 10**6}, ["num_hidden_layers is 1000000", "at most 200"]),
        ({"hidden_size": 12 * 10**6}, ["hidden_size is 12000000", "at most 65536"]),
        ({"max_length": 10**9}, ["max_length is 1000000000", "at most 1000000"]),
        ({"hidden_size": 60000, "num_hidden_layers": 99}, ["the number of weights is 14"]),
    ],
)
def test_impossible_values_are_refused(fields, words):
    with pytest.raises(StrictDataclassError) as error:
        ASTConfig(**fields)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False, "patch_size": (8, 4), "num_labels": 1},
        {"num_hidden_layers": 1, "max_length": 200, "num_labels": 0},
    ],
)
def test_the_number_of_weights_is_that_of_the_model(changes):
    model = ASTForAudioClassification(ASTConfig(**{**TINY, **changes}))
    assert model.config.num_weights() == sum(weight.numel() for weight in model.parameters())


def test_names_may_be_numbers_and_are_texts_then():
    assert ASTConfig(id2label={"0": 7, "1": "b"}).id2label == {0: "7", 1: "b"}


# One field at a time, and two: what JSON and numpy can hold.
NUMPY = st.sampled_from(
    [np.float32(1.5), np.float64(0.5), np.int64(16), np.int8(-1), np.bool_(True), np.str_("gelu")]
)
NUMBERS = st.one_of(
    st.integers(), st.integers(0, 200), st.floats(), st.floats(0, 1), st.booleans(), NUMPY
)
VALUES = st.one_of(
    st.none(),
    NUMBERS,
    st.text(max_size=3),
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.sampled_from(["0", "1", "x"]), st.text(max_size=2), max_size=2),
)
# The other fields are those of every model of transformers, which decides about them.
FIELDS = [*ASTConfig.__annotations__, "num_labels", "id2label", "label2id", "dtype", "torch_dtype"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=2))
def test_any_value_is_accepted_or_refused_as_documented(fields):
    try:
        config = ASTConfig(**fields)
    except (StrictDataclassError, ValueError):
        return
    again = ASTConfig.from_dict(json.loads(config.to_json_string()))
    assert again.patch_grid() == config.patch_grid()
    assert again.num_weights() == config.num_weights() > 0


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match=r"num_frames is 15 but one patch spans 16 frames; pad"):
        ASTConfig().patch_grid(15)


def test_plain_transformers_reads_ours_and_we_read_theirs(tmp_path):
    ASTConfig(**TINY, mean=-6.6268077, std=5.358466).save_pretrained(tmp_path / "ours")
    theirs = transformers.ASTConfig.from_pretrained(tmp_path / "ours")
    for name, value in TINY.items():
        assert getattr(theirs, name) == value
    theirs.save_pretrained(tmp_path / "theirs")
    again = ASTConfig.from_pretrained(tmp_path / "theirs")
    assert again.mean == -6.6268077
    assert {name: getattr(again, name) for name in TINY} == TINY
