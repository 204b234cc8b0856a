"""8-bit integers against the float32 model of transformers with the same weights."""

import copy
import pickle

import numpy as np
import pytest
import torch
import transformers

from modeling_ast import (
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AudioTagger,
    int8_linear,
    quantize_int8,
)
from modeling_ast.int8_linear import Int8Linear
from modeling_ast.pretrained import load_model
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
        assert linear == isinstance(module, Int8Linear), name
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


def test_a_layer_is_the_formula(monkeypatch):
    """Weights: each output's largest is 127. The input: 8 bits from its least to its largest."""
    linear = torch.nn.Linear(70, 30)
    with torch.no_grad():
        linear.weight[3] = 0
    layer = Int8Linear.from_linear(linear)
    weight = linear.weight.detach().double().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / 127
    whole = np.round(weight / np.where(scale == 0, 1, scale))
    assert np.abs(layer.int8_weight.numpy() - whole).max() <= 1  # ties of float32
    x = torch.randn(50, 70)
    values = x.double().numpy()
    low, high = min(values.min(), 0), max(values.max(), 0)
    for vnni, most in ((True, 255), (False, 127)):
        monkeypatch.setattr(int8_linear, "has_vnni", lambda vnni=vnni: vnni)
        step = (high - low) / most
        zero = np.round(-low / step)
        whole_x = np.clip(np.round(values / step) + zero, 0, most) - zero
        expected = step * whole_x @ (whole * scale).T + linear.bias.detach().double().numpy()
        with torch.no_grad():
            result = Int8Linear.from_linear(linear)(x).double().numpy()
        # One of the 70 products may be rounded the other way.
        np.testing.assert_allclose(result, expected, atol=2 * step * np.abs(weight).max())


def test_eight_bits_of_input_are_nearer_than_seven(tiny_model, monkeypatch):
    expected = tiny_model(frames(4)).logits
    errors = []
    for vnni in (True, False):
        monkeypatch.setattr(int8_linear, "has_vnni", lambda vnni=vnni: vnni)
        with torch.no_grad():
            errors.append((quantize_int8(tiny_model)(frames(4)).logits - expected).square().mean())
    assert errors[0] < errors[1]


def test_it_is_saved_and_loaded(tiny_model, tmp_path):
    quantized = quantize_int8(tiny_model)
    with torch.no_grad():
        expected = quantized(frames(2)).logits
    quantized.save_pretrained(tmp_path / "int8")
    ASTFeatureExtractor.from_config(tiny_model.config).save_pretrained(tmp_path / "int8")
    tiny_model.save_pretrained(tmp_path / "float")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("int8", "float")]
    assert sizes[0] < 0.6 * sizes[1]  # a tiny model has many weights outside of linear layers
    for load in (load_model, ASTForAudioClassification.from_pretrained):
        loaded = load(tmp_path / "int8")
        with torch.no_grad():
            assert torch.equal(loaded.eval()(frames(2)).logits, expected)
    auto = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "int8")
    with torch.no_grad():
        assert torch.equal(auto(frames(2)).logits, expected)
    tagger = AudioTagger.from_pretrained(tmp_path / "int8", num_workers=0)
    assert next(iter(tagger([np.zeros(16000, np.float32)]))).error is None
    half = load_model(tmp_path / "int8", dtype="bfloat16")
    with torch.no_grad():
        assert (half(frames(2)).logits.float() - expected).abs().max() < 0.1 * expected.std()
    with pytest.raises(ValueError, match="8-bit integers, which cannot be trained"):
        load_model(tmp_path / "int8", fresh_head=True)
    # Plain transformers must not load the integers as weights.
    _, info = transformers.ASTForAudioClassification.from_pretrained(
        tmp_path / "int8", output_loading_info=True
    )
    assert len(info["missing_keys"]) == 3 * 6 + 1


def test_with_a_gradient_and_compiled_it_computes_in_floats(tiny_model):
    quantized = quantize_int8(tiny_model)
    values = frames(2).requires_grad_()
    plain = copy.deepcopy(tiny_model)
    for name, module in quantized.named_modules():
        if isinstance(module, Int8Linear):
            weight = module.int8_weight.float() * module.scale[:, None]
            plain.get_submodule(name).weight.data = weight
    result, expected = quantized(values).logits, plain(frames(2)).logits
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    result.sum().backward()
    assert values.grad.abs().max() > 0


def test_copies_and_moves_compute_the_same(tiny_model):
    quantized = quantize_int8(tiny_model)
    with torch.no_grad():
        expected = quantized(frames(2)).logits  # the kernel has its weights by now
        assert torch.equal(copy.deepcopy(quantized)(frames(2)).logits, expected)
        assert torch.equal(pickle.loads(pickle.dumps(quantized))(frames(2)).logits, expected)
        other = quantize_int8(tiny_model.__class__(tiny_model.config))
        other(frames(2))
        other.load_state_dict(quantized.state_dict())
        assert torch.equal(other(frames(2)).logits, expected)
