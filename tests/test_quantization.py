"""8-bit integers against the float32 model of transformers with the same weights."""

import numpy as np
import pytest
import torch
import transformers

from modeling_ast import ASTFeatureExtractor, AudioTagger, quantize_int8
from tests.conftest import TINY


def frames(count, length=97):
    return torch.randn(count, length, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[e for e in torch.backends.quantized.supported_engines if e != "none"])
def engine(request, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", request.param)


def test_logits_are_near_those_of_the_float_model(tiny_model, engine):
    theirs = transformers.ASTForAudioClassification(transformers.ASTConfig(**TINY)).eval()
    theirs.load_state_dict(tiny_model.state_dict())
    expected = theirs(frames(4)).logits
    quantized = quantize_int8(tiny_model)
    with torch.no_grad():
        logits = quantized(frames(4)).logits
    # 7 bits for inputs and 8 for weights, three layers deep.
    assert (logits - expected).abs().max() < 0.1 * expected.std()
    assert not torch.equal(logits, expected)


def test_each_linear_layer_is_quantized_and_the_model_itself_stays(tiny_model):
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    quantized = quantize_int8(tiny_model)
    kinds = {name: type(module) for name, module in tiny_model.named_modules()}
    for name, module in quantized.named_modules():
        linear = kinds.get(name) is torch.nn.Linear
        assert linear == isinstance(module, torch.ao.nn.quantized.dynamic.Linear), name
    assert tiny_model.state_dict().keys() == before.keys()
    for name, weight in tiny_model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_masks_and_hidden_states_work(tiny_model):
    mask = torch.arange(97) < torch.tensor([[97], [40]])
    with torch.no_grad():
        expected = tiny_model(frames(2), attention_mask=mask, output_hidden_states=True)
        result = quantize_int8(tiny_model)(
            frames(2), attention_mask=mask, output_hidden_states=True
        )
    assert len(result.hidden_states) == TINY["num_hidden_layers"] + 1
    assert (result.logits - expected.logits).abs().max() < 0.1 * expected.logits.std()


def test_the_tagger_takes_it(tiny_model, clip):
    extractor = ASTFeatureExtractor.from_config(tiny_model.config)
    given = {"extractor": extractor, "num_workers": 0, "top_k": 5}
    expected = next(iter(AudioTagger(tiny_model, **given)([clip])))
    tags = next(iter(AudioTagger(quantize_int8(tiny_model), **given)([clip])))
    assert tags.labels.keys() == expected.labels.keys()
    for name, score in expected.labels.items():
        np.testing.assert_allclose(tags.labels[name], score, atol=0.05)


def test_what_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"torch.float32 on meta but .* call model.float\(\)"):
        quantize_int8(tiny_model.__class__(tiny_model.config).to("meta"))
    with pytest.raises(ValueError, match="no linear layer in float32; it is quantized already"):
        quantize_int8(quantize_int8(tiny_model))
    with pytest.raises(ValueError, match=r"the model is in torch\.bfloat16 on cpu but 8-bit"):
        quantize_int8(tiny_model.bfloat16())
