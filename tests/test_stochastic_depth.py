"""Stochastic depth: what is skipped is what was said; evaluations see nothing of it.

The steps are those of modeling_ast.ASTLayer; packed clips are compared in test_fast_layers.py.
"""

import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTConfig, ASTForAudioClassification
from modeling_ast import modeling_ast as network
from modeling_ast.stochastic_depth import drop_branches, drop_rates
from tests.conftest import TINY, randomise


def frames(count=6):
    return torch.randn(count, 97, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair():
    """The same weights without and with stochastic depth."""
    configs = [ASTConfig(**{**TINY, "drop_path_rate": rate}) for rate in (0.0, 0.6)]
    return [randomise(ASTForAudioClassification(config)) for config in configs]


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_rates_are_those_of_timm(depth):
    vit = timm.create_model("vit_tiny_patch16_224", depth=depth, drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert drop_rates(0.3, depth) == pytest.approx(rates)


def test_each_clip_keeps_or_loses_a_whole_branch():
    """As many as the rate says, within four standard deviations of 4,000 draws."""
    torch.manual_seed(0)
    x = torch.randn(4000, 3, 2)
    out = drop_branches(x, 0.25)
    kept = (out != 0).all((1, 2))
    assert torch.equal(out[~kept], torch.zeros_like(out[~kept]))
    torch.testing.assert_close(out[kept], x[kept] / 0.75)
    assert abs(kept.float().mean() - 0.75) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_packed_clips_are_kept_or_lost_like_padded_ones():
    x = torch.randn(5, 4, 2)
    lengths = [4, 1, 3, 2, 4]
    packed = torch.cat([clip[:length] for clip, length in zip(x, lengths)])[None]
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    torch.manual_seed(1)
    whole = drop_branches(x, 0.5)
    torch.manual_seed(1)
    out = drop_branches(packed, 0.5, ends)
    expected = torch.cat([clip[:length] for clip, length in zip(whole, lengths)])[None]
    assert torch.equal(out, expected)
    assert 0 < (out == 0).sum() < out.numel()


def test_an_evaluation_is_exactly_the_same(pair):
    with torch.no_grad():
        plain, deep = (model(frames()).logits for model in pair)
    assert torch.equal(plain, deep)


def test_none_in_training_draws_nothing(pair):
    state = torch.get_rng_state()
    pair[0].train()(frames())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mask", [None, torch.arange(97) < torch.tensor([97, 60, 9] * 2)[:, None]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_adds_the_branches_that_are_kept(pair, monkeypatch, mask, checkpointing):
    """Written out by hand, with the draws that were made: logits, and a gradient."""
    model, drawn = pair[1].train(), []

    def recorded(x, rate, ends=None):
        kept = drop_branches(torch.ones_like(x), rate, ends)
        drawn.append(kept[:, :1, :1].detach())
        return x * kept

    with monkeypatch.context() as patched:
        patched.setattr(network, "drop_branches", recorded)
        torch.manual_seed(0)
        expected_draws = model(frames(), attention_mask=mask).logits
    factors = iter(drawn)
    body = model.audio_spectrogram_transformer
    x, tokens = body.embeddings(frames(), mask)
    keys = None if tokens is None else tokens[:, None, None, :]
    for index, layer in enumerate(body.layers):
        for part in ("attention", "mlp"):
            factor = 1.0 if index == 0 else next(factors)
            if part == "attention":
                x = x + factor * layer.attention(layer.layernorm_before(x), keys)[0]
            else:
                x = x + factor * layer.mlp(layer.layernorm_after(x))
    plain = model.classifier(body.layernorm(x)[:, :2].mean(1))
    torch.testing.assert_close(expected_draws, plain)
    assert len(drawn) == 4 and {0.0} < {float(value) for value in torch.cat(drawn).flatten()}

    if checkpointing:
        model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    logits = model(frames(), attention_mask=mask).logits
    torch.testing.assert_close(logits, plain)
    weight = body.layers[1].mlp.fc1.weight
    (own,) = torch.autograd.grad(logits.sum(), weight)
    (wanted,) = torch.autograd.grad(plain.sum(), weight)
    torch.testing.assert_close(own, wanted)


def test_plain_transformers_loads_it(pair, tmp_path):
    pair[1].save_pretrained(tmp_path)
    theirs = transformers.models.audio_spectrogram_transformer.ASTForAudioClassification
    model = theirs.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(frames()).logits, pair[1](frames()).logits)
    load = ASTForAudioClassification.from_pretrained
    assert load(tmp_path).config.drop_path_rate == 0.6
    changed = load(tmp_path, drop_path_rate=0.0).train()
    assert [layer.drop_rate for layer in changed.audio_spectrogram_transformer.layers] == [0.0] * 3


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates(rate):
    with pytest.raises(StrictDataclassError, match=rf"drop_path_rate is {rate}.*in \[0, 1\)"):
        ASTConfig(drop_path_rate=rate)
