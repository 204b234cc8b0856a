"""Loading with another patch grid."""

import logging

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTConfig, ASTForAudioClassification, ASTModel
from modeling_ast.position import resize_position_grid
from tests.conftest import TINY
from tests.spectrograms import CLOSE, spectrogram


def test_resizing_the_grid_follows_the_authors_rule(tiny_model, tiny_folder, caplog):
    changes = {"max_length": 150, "num_mel_bins": 64, "time_stride": 5, "frequency_stride": 16}
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        model = ASTForAudioClassification.from_pretrained(tiny_folder, **changes)
    old, new = tiny_model.config.patch_grid(), model.config.patch_grid()
    assert new == (4, 27)
    assert f"refitted from {old[0]} x {old[1]} to 4 x 27" in caplog.text
    source = tiny_model.audio_spectrogram_transformer.embeddings.position_embeddings
    result = model.audio_spectrogram_transformer.embeddings.position_embeddings
    assert torch.equal(result[:, :2], source[:, :2])
    assert torch.equal(result[:, 2:], resize_position_grid(source[:, 2:], old, new))
    assert model(spectrogram(1, 150, 64)).logits.shape == (1, 5)
    for name, weight in model.state_dict().items():
        if "position" not in name:
            assert torch.equal(weight, tiny_model.state_dict()[name]), name


def test_a_resized_model_saves_and_runs_in_plain_transformers(tiny_folder, tmp_path):
    model = ASTForAudioClassification.from_pretrained(tiny_folder, max_length=60, time_stride=9)
    model.save_pretrained(tmp_path / "resized")
    theirs = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "resized")
    x = spectrogram(2, 60)
    torch.testing.assert_close(theirs(x).logits, model(x).logits, **CLOSE)


def test_other_loading_options_still_work_beside_a_new_grid(tiny_folder):
    model, info = ASTForAudioClassification.from_pretrained(
        tiny_folder, max_length=60, dtype=torch.bfloat16, output_loading_info=True
    )
    assert model.dtype == torch.bfloat16 and not info["missing_keys"]
    encoder = ASTModel.from_pretrained(tiny_folder, max_length=60)
    assert encoder.embeddings.position_embeddings.shape[1] == encoder.config.num_patches() + 2
    given = ASTForAudioClassification.from_pretrained(
        tiny_folder, config=ASTConfig(**{**TINY, "max_length": 60})
    )
    assert given.config.max_length == 60


def test_impossible_grids_are_refused_before_loading(tiny_folder):
    with pytest.raises(StrictDataclassError, match="time_stride is 0"):
        ASTForAudioClassification.from_pretrained(tiny_folder, time_stride=0)
    with pytest.raises(StrictDataclassError, match=r"patch_size is 16.*max_length=9"):
        ASTModel.from_pretrained(tiny_folder, max_length=9)
