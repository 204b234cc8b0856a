import json

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTConfig
from tests.conftest import TINY


def test_fields_and_defaults_are_those_of_transformers():
    theirs = transformers.ASTConfig().to_dict()
    ours = ASTConfig().to_dict()
    assert {name: ours[name] for name in theirs} == theirs
    front_end = {"sampling_rate", "do_normalize", "mean", "std"}
    patchout = {"patchout_frequency", "patchout_time"}
    assert set(ours) - set(theirs) == front_end | patchout


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
        ({"initializer_range": -0.1}, ["initializer_range is -0.1"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob is 1.0", "[0, 1)"]),
        ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob is -0.1"]),
        ({"hidden_act": "gulu"}, ["hidden_act is 'gulu'", "gelu"]),
        ({"sampling_rate": 0}, ["sampling_rate is 0", "1000 Hz"]),
        ({"sampling_rate": 16000.5}, ["sampling_rate"]),
        ({"window_seconds": 0.0}, ["window_seconds is 0.0", "two samples of 16000 Hz"]),
        ({"hop_seconds": 0.0}, ["hop_seconds is 0.0", "at least one sample of 16000 Hz"]),
        ({"hop_seconds": 0.03}, ["hop_seconds is 0.03", "at most window_seconds=0.025"]),
    ],
)
def test_impossible_values_are_refused(fields, words):
    with pytest.raises(StrictDataclassError) as error:
        ASTConfig(**fields)
    for word in words:
        assert word in str(error.value)


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
