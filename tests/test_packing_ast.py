"""Packed batches against padded ones, whose exactness test_modeling_ast.py shows.

The kernel is a GPU's. Without one, plain attention of each clip by itself stands in for it.
"""

import pytest
import torch
import torch.nn.functional as F

import modeling_ast.modeling_ast
from modeling_ast import ASTConfig, ASTForAudioClassification
from modeling_ast.packing_ast import Packing, may_pack
from tests.conftest import TINY, randomise

LENGTHS = ([97, 60, 16], [150, 97, 20, 97], [33, 97], [40, 23])


def batch(lengths, bins=TINY["num_mel_bins"]):
    frames = max(lengths)
    x = torch.randn(len(lengths), frames, bins, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(frames) < torch.tensor(lengths).unsqueeze(1)
    # Whatever is not the clip must not matter.
    return x.masked_fill(~mask.unsqueeze(-1), torch.nan), mask


def plain_attention(query, key, value, query_starts, key_starts, most_queries, most_keys, scale):
    assert query_starts.dtype == key_starts.dtype == torch.int32
    assert most_queries == query_starts.diff().max() and most_keys == key_starts.diff().max()
    parts = []
    for clip in range(len(key_starts) - 1):
        q = query[query_starts[clip] : query_starts[clip + 1]].transpose(0, 1)  # (H, Q, Dh)
        k, v = (
            x[key_starts[clip] : key_starts[clip + 1]].transpose(0, 1) for x in (key, value)
        )  # (H, tokens, Dh)
        parts.append(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def packed_model(tiny_model, monkeypatch):
    """Packs on a CPU, and counts how often."""
    packed = []
    monkeypatch.setattr(modeling_ast.packing_ast, "flash_attention", plain_attention)
    monkeypatch.setattr(modeling_ast.modeling_ast.ASTLayer, "_may_work_in_pieces", lambda *_: False)
    monkeypatch.setattr(
        modeling_ast.modeling_ast, "may_pack", lambda x, head_dim: packed.append(x.shape) or True
    )
    tiny_model.packed = packed
    return tiny_model


@pytest.mark.parametrize("lengths", LENGTHS)
def test_logits_are_those_of_the_padded_batch(packed_model, lengths):
    x, mask = batch(lengths)
    with torch.inference_mode():
        packed = packed_model(x, attention_mask=mask)
        assert len(packed_model.packed) == 1
        padded = packed_model(x, attention_mask=mask, output_hidden_states=True)
        assert len(packed_model.packed) == 1  # the states are wanted whole
    torch.testing.assert_close(packed.logits, padded.logits, atol=1e-5, rtol=1e-5)


def test_no_padding_passes_through_the_layers(packed_model):
    lengths = [97, 60, 16]
    seen = []
    for layer in packed_model.base_model.layers:
        layer.register_forward_hook(lambda *args: seen.append(args[2].shape))
    x, mask = batch(lengths)
    with torch.inference_mode():
        encoded = packed_model.base_model(x, attention_mask=mask, prefix_only=True)
    tokens = sum(packed_model.config.num_patches(length) + 2 for length in lengths)
    width = packed_model.config.hidden_size
    assert seen == [(1, tokens, width)] * (len(seen) - 1) + [(1, 6, width)]
    assert encoded.last_hidden_state.shape == (3, 2, width)


def test_nothing_is_packed_where_nothing_is_hidden_or_all_is_wanted(packed_model):
    x, mask = batch([97, 97])
    packed_model(x, attention_mask=mask)
    x, mask = batch([97, 40])
    packed_model.base_model(x, attention_mask=mask)
    packed_model.set_attn_implementation("eager")
    packed_model(x, attention_mask=mask)
    assert not packed_model.packed


def test_a_packing_knows_where_tokens_lie():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 0, 0]]).bool()
    packing = Packing.of(mask, torch.device("cpu"))
    x = torch.arange(12.0).view(3, 4, 1)
    assert packing.pack(x).flatten().tolist() == [0, 1, 2, 4, 5, 7, 8, 9]
    assert packing.starts.tolist() == [0, 3, 6, 8] and packing.longest == 3
    assert packing.first(packing.pack(x), 2).flatten().tolist() == [0, 1, 4, 5, 8, 9]


def test_a_cpu_has_no_kernel_for_it():
    assert not may_pack(torch.zeros(1, dtype=torch.bfloat16), 64)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_kernel_gives_the_logits_of_float32(dtype, lengths, where, monkeypatch):
    config = ASTConfig(**{**TINY, "hidden_size": 64, "num_attention_heads": 2, "num_labels": 5})
    model = randomise(ASTForAudioClassification(config), std=0.1)
    x, mask = batch(lengths)
    with torch.inference_mode():
        expected = model(x, attention_mask=mask).logits
        model.to("cuda", dtype)
        calls = []
        kernel = modeling_ast.packing_ast.flash_attention
        monkeypatch.setattr(
            modeling_ast.packing_ast,
            "flash_attention",
            lambda *args: calls.append(1) or kernel(*args),
        )
        result = model(x.cuda(), attention_mask=mask.to(where)).logits.float().cpu()
    assert len(calls) == config.num_hidden_layers
    # Half precision keeps 3 (bfloat16: 2) digits of each of a few dozen values.
    scale = expected.abs().max().item()
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(result, expected, atol=tolerance * scale, rtol=0)


@pytest.mark.gpu
def test_nobody_waits_for_a_gpu_that_packs():
    config = ASTConfig(**{**TINY, "hidden_size": 64, "num_attention_heads": 2, "num_labels": 5})
    model = ASTForAudioClassification(config).to("cuda", torch.bfloat16).eval()
    x, mask = batch([97, 60, 16])
    x = x.nan_to_num().cuda()
    with torch.inference_mode():
        model(x, attention_mask=mask)  # makes the handles of the libraries
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x, attention_mask=mask)
        finally:
            torch.cuda.set_sync_debug_mode("default")
