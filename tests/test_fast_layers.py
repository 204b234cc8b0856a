"""Each fast way against the plain one, whose exactness test_modeling_ast.py shows.

The kernel for packed clips is a GPU's. Without one, plain attention of each clip by itself stands
in for it; flash-attn, which need not be installed, has such a stand-in too.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from modeling_ast import ASTConfig, ASTForAudioClassification, fast_layers
from modeling_ast.modeling_ast import (
    ALL_ATTENTION_FUNCTIONS,
    ASTLayer,
    ASTPatchEmbeddings,
    eager_attention,
)
from tests.conftest import TINY, randomise
from tests.spectrograms import CLOSE, mask_of, spectrogram

# Half precision keeps 3 (bfloat16: 2) digits of values of size 1.
TOLERANCE = {
    torch.float64: {"atol": 1e-12, "rtol": 1e-12},
    torch.float32: CLOSE,
    torch.bfloat16: {"atol": 0.03, "rtol": 0.03},
}
TOKENS = 38
LENGTHS = ([97, 60, 16], [150, 97, 20, 97], [33, 97], [40, 23])


# The patch projection: its plain way is torch's convolution.


@pytest.mark.parametrize("patch", [(16, 16), (128, 2), (8, 24)])
def test_patches_are_those_of_a_convolution(patch):
    """Its gradients too, and it still is one, for tools that wrap or export it."""
    config = ASTConfig(patch_size=patch, frequency_stride=7, time_stride=10, hidden_size=24)
    projection = ASTPatchEmbeddings(config).projection
    assert isinstance(projection, torch.nn.Conv2d)
    randomise(projection)
    image = spectrogram(2, 64, bins=128).unsqueeze(1).mT.requires_grad_()
    forwards = (type(projection).forward, torch.nn.Conv2d.forward)
    results = [forward(projection, image) for forward in forwards]
    weights = torch.randn(results[0].shape)
    wanted = [image, *projection.parameters()]
    gradients = [torch.autograd.grad((out * weights).sum(), wanted) for out in results]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-5)
    for ours, other in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-3, rtol=1e-5)


# Blocks on a CPU.


def strided(x, kind):
    """The same numbers, in other places of the memory."""
    if kind == "contiguous":
        return x
    if kind == "transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = x.new_zeros(x.shape[0], 2 * x.shape[1], x.shape[2] + 3)
    wide[:, ::2, 3:] = x
    return wide[:, ::2, 3:]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("stride", ["contiguous", "transposed", "gaps"])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_equal_the_plain_layer(dtype, stride, masked, monkeypatch):
    """Over sizes of batch and block, and over the queries asked for."""
    layer = randomise(ASTLayer(ASTConfig(**TINY, attn_implementation="sdpa"))).to(dtype)
    for clips, block in itertools.product((1, 2, 5), (1, 40, 64, 76, 1000)):
        monkeypatch.setattr(fast_layers, "CPU_BLOCK_TOKENS", block)
        x = spectrogram(clips, TOKENS, TINY["hidden_size"]).to(dtype)
        lengths = torch.arange(clips) * 7 + 3
        mask = torch.arange(TOKENS) < lengths.view(-1, 1, 1, 1) if masked else None
        for queries in (None, slice(2), torch.tensor([4, 0, 9])):
            plain = layer(x, mask, queries)  # wants gradients
            with torch.no_grad():
                fast = layer(strided(x, stride), mask, queries)
            torch.testing.assert_close(fast, plain, **TOLERANCE[dtype])


@pytest.mark.parametrize("block", [1, 40, 64, 1000])
@pytest.mark.parametrize("lengths", [[97] * 5, [97, 60, 33, 16, 97], [150]])
def test_blocks_change_no_state_of_the_model(tiny_model, monkeypatch, block, lengths):
    x = spectrogram(len(lengths), max(lengths))
    given = {"attention_mask": mask_of(lengths, max(lengths)), "output_hidden_states": True}
    plain = tiny_model(x, **given)
    monkeypatch.setattr(fast_layers, "CPU_BLOCK_TOKENS", block)
    with torch.no_grad():
        fast = tiny_model(x, **given)
    torch.testing.assert_close(fast.logits, plain.logits, **CLOSE)
    for ours, other in zip(fast.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(ours, other, **CLOSE)


def test_blocks_are_of_bounded_size(tiny_model, monkeypatch):
    monkeypatch.setattr(fast_layers, "CPU_BLOCK_TOKENS", 80)
    layer = tiny_model.audio_spectrogram_transformer.layers[0]
    sizes = {"attention": [], "mlp": []}
    for name, taken in sizes.items():
        getattr(layer, name).register_forward_pre_hook(
            lambda module, args, taken=taken: taken.append(tuple(args[0].shape[:-1]))
        )
    with torch.no_grad():
        tiny_model(spectrogram(5, 97))
    assert sizes == {
        "attention": [(2, TOKENS), (2, TOKENS), (1, TOKENS)],
        "mlp": [(80,), (80,), (30,)],
    }


def test_attention_weights_are_recorded_whole(tiny_model, monkeypatch):
    monkeypatch.setattr(fast_layers, "CPU_BLOCK_TOKENS", 40)
    tiny_model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = tiny_model(spectrogram(3, 97), output_attentions=True).attentions
    shape = (3, TINY["num_attention_heads"], TOKENS, TOKENS)
    assert [tuple(one.shape) for one in weights] == [shape] * TINY["num_hidden_layers"]


def test_sdpa_says_that_it_gives_no_attentions(tiny_model, caplog, monkeypatch):
    said = []
    monkeypatch.setattr(fast_layers.logger, "warning_once", said.append)
    assert tiny_model(spectrogram(1, 97), output_attentions=True).attentions == ()
    assert set(said) == {
        'sdpa gives no attentions; load the model with attn_implementation="eager"'
    }


# The prefix alone.


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [[97] * 3, [97, 60, 16], [150, 97, 20]])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_last_layer_computes_what_the_classifier_reads(
    tiny_model, attention, lengths, gradient
):
    tiny_model.set_attn_implementation(attention)
    x = spectrogram(len(lengths), max(lengths))
    given = {"attention_mask": mask_of(lengths, max(lengths))}
    seen = []
    tiny_model.base_model.layers[-1].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.set_grad_enabled(gradient):
        short, whole = tiny_model(x, **given), tiny_model(x, **given, output_hidden_states=True)
        encoded = tiny_model.base_model(x, **given, prefix_only=True)
        all_encoded = tiny_model.base_model(x, **given)
    tokens = tiny_model.config.num_patches(max(lengths)) + 2
    assert [states.shape[1] for states in seen] == [2, tokens, 2, tokens]
    torch.testing.assert_close(short.logits, whole.logits, **CLOSE)
    torch.testing.assert_close(
        encoded.last_hidden_state, all_encoded.last_hidden_state[:, :2], **CLOSE
    )
    if gradient:
        pairs = [
            torch.autograd.grad(out.logits.square().sum(), list(tiny_model.parameters()))
            for out in (short, whole)
        ]
        for ours, other in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, other, **CLOSE)


def test_other_attention_takes_all_tokens_in_the_last_layer(tiny_model, monkeypatch):
    """Its mask may be made for as many queries as keys."""
    seen = []

    def attend(module, query, key, value, attention_mask, **kwargs):
        seen.append((query.shape[2], key.shape[2]))
        return eager_attention(module, query, key, value, attention_mask, kwargs["scaling"])

    x = spectrogram(1, 97)
    expected = tiny_model(x).logits
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "other", attend)
    monkeypatch.setattr(tiny_model.config, "_attn_implementation_internal", "other")
    torch.testing.assert_close(tiny_model(x).logits, expected, **CLOSE)
    assert seen == [(TOKENS, TOKENS)] * tiny_model.config.num_hidden_layers


# Packed clips.


def padded_batch(lengths):
    """A spectrogram and a mask; what is not a clip's must not matter."""
    mask = mask_of(lengths, max(lengths)).bool()
    x = spectrogram(len(lengths), max(lengths))
    return x.masked_fill(~mask.unsqueeze(-1), torch.nan), mask


def attend_packed(query, key, value, query_starts, key_starts, most_queries, most_keys, scale):
    """(Q, H, Dh): attention within each clip, in a loop."""
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


def kernel_stand_in(q, k, v, *options, scale):
    """For torch.ops.aten._flash_attention_forward."""
    *ends, dropout, is_causal, return_debug_mask = options
    assert dropout == 0.0 and not is_causal and not return_debug_mask
    return attend_packed(q, k, v, *ends, scale), None


@pytest.fixture
def packed_model(tiny_model, monkeypatch):
    """Packs on a CPU, and counts how often."""
    packed = []
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", kernel_stand_in)
    monkeypatch.setattr(fast_layers, "may_pack", lambda x, config: packed.append(x.shape) or True)
    tiny_model.packed = packed
    return tiny_model


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("stride", ["contiguous", "transposed", "gaps"])
def test_packed_logits_are_those_of_the_padded_batch(packed_model, lengths, stride):
    x, mask = padded_batch(lengths)
    with torch.inference_mode():
        packed = packed_model(strided(x, stride), attention_mask=mask)
        assert len(packed_model.packed) == 1
        padded = packed_model(x, attention_mask=mask, output_hidden_states=True)
        assert len(packed_model.packed) == 1  # all states are wanted
    torch.testing.assert_close(packed.logits, padded.logits, **CLOSE)


def test_packed_clips_skip_the_branches_that_padded_ones_skip(packed_model):
    """Stochastic depth, with the same draws."""
    x, mask = padded_batch([97, 60, 16, 40, 80])
    packed_model.train()
    for layer in packed_model.base_model.layers:
        layer.drop_rate = 0.5
    logits = []
    for options in ({}, {"output_hidden_states": True}):
        torch.manual_seed(0)
        logits.append(packed_model(x, attention_mask=mask, **options).logits)
    assert len(packed_model.packed) == 1
    torch.testing.assert_close(*logits, **CLOSE)
    packed_model.eval()
    with torch.no_grad():
        assert not torch.allclose(packed_model(x, attention_mask=mask).logits, logits[0], rtol=0.1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_packed_prefix_is_that_of_the_padded_batch(packed_model, dtype):
    x, mask = padded_batch([97, 60, 16])
    encoder = packed_model.to(dtype).base_model
    with torch.inference_mode():
        packed = encoder(x, attention_mask=mask, prefix_only=True).last_hidden_state
        padded = encoder(x, attention_mask=mask).last_hidden_state
    assert packed.dtype == dtype
    torch.testing.assert_close(packed, padded[:, :2], **TOLERANCE[dtype])


def test_no_padding_passes_through_the_layers(packed_model):
    lengths = [97, 60, 16]
    seen = []
    for layer in packed_model.base_model.layers:
        layer.register_forward_hook(lambda *args: seen.append(args[2].shape))
    x, mask = padded_batch(lengths)
    with torch.inference_mode():
        encoded = packed_model.base_model(x, attention_mask=mask, prefix_only=True)
    tokens = sum(packed_model.config.num_patches(length) + 2 for length in lengths)
    width = packed_model.config.hidden_size
    assert seen == [(1, tokens, width)] * (len(seen) - 1) + [(1, 6, width)]
    assert encoded.last_hidden_state.shape == (3, 2, width)


def test_nothing_is_packed_where_nothing_is_hidden_or_all_is_wanted(packed_model):
    x, mask = padded_batch([97, 97])
    packed_model(x, attention_mask=mask)
    x, mask = padded_batch([97, 40])
    packed_model.base_model(x, attention_mask=mask)
    assert not packed_model.packed


def test_attention_knows_where_packed_clips_lie(packed_model, monkeypatch):
    """By transformers' keywords, with a tensor or nothing as the mask."""
    seen = []

    def record(module, query, key, value, attention_mask, **kwargs):
        ends = [kwargs[f"cu_seq_lens_{one}"].tolist() for one in "qk"]
        seen.append((attention_mask, *ends, kwargs["max_length_q"], kwargs["max_length_k"]))
        return fast_layers.sdpa_attention(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
    x, mask = padded_batch([97, 60, 16])
    with torch.inference_mode():
        packed_model(x, attention_mask=mask)
    sizes = [packed_model.config.num_patches(length) + 2 for length in (97, 60, 16)]
    starts = [0, *itertools.accumulate(sizes)]
    *others, last = seen
    assert others == [(None, starts, starts, TOKENS, TOKENS)] * len(others)
    assert last == (None, [0, 2, 4, 6], starts, 2, TOKENS)


def test_a_cpu_has_no_kernel_for_packed_clips(tiny_config):
    tiny_config._attn_implementation = "sdpa"
    assert not fast_layers.may_pack(torch.zeros(1, 2, 36, dtype=torch.bfloat16), tiny_config)
    tiny_config._attn_implementation = "eager"
    assert not fast_layers.may_pack(torch.zeros(1, 2, 36), tiny_config)


def flash_stand_in(seen):
    """For transformers' flash_attention_2, which takes packed clips and (B, N + 2) masks."""

    def attend(module, query, key, value, attention_mask, scaling, dropout, **kwargs):
        seen.append((tuple(query.shape), attention_mask is None, "cu_seq_lens_q" in kwargs))
        if "cu_seq_lens_q" in kwargs:
            ends = [kwargs[f"cu_seq_lens_{one}"] for one in "qk"]
            ends += [kwargs[f"max_length_{one}"] for one in "qk"]
            q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
            return attend_packed(q, k, v, *ends, scaling).unsqueeze(0), None
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
        return x.transpose(1, 2), None

    return attend


@pytest.mark.parametrize("lengths", [*LENGTHS, [97, 97]])
@pytest.mark.parametrize("training", [False, True])
def test_flash_attention_2_packs_too(tiny_model, lengths, training, monkeypatch):
    """In training as well: its kernel has gradients."""
    x, mask = padded_batch(lengths)
    labels = torch.zeros(len(lengths), dtype=torch.long)
    tiny_model.train(training)
    found, seen = [], []
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_stand_in(seen))
    for attention in ("sdpa", "flash_attention_2"):
        monkeypatch.setattr(tiny_model.config, "_attn_implementation_internal", attention)
        out = tiny_model(x, attention_mask=mask, labels=labels)
        found.append([out.logits, *torch.autograd.grad(out.loss, list(tiny_model.parameters()))])
    for ours, other in zip(*found, strict=True):
        torch.testing.assert_close(ours, other, **CLOSE)
    clips, hides = len(lengths), len(set(lengths)) > 1
    heads, head_dim = TINY["num_attention_heads"], TINY["hidden_size"] // 4
    assert all(without_mask and packed == hides for _, without_mask, packed in seen)
    assert seen[-1][0] == (
        (1, heads, 2 * clips, head_dim) if hides else (clips, heads, 2, head_dim)
    )


def test_flash_attention_2_gets_its_mask_where_all_states_are_wanted(tiny_model, monkeypatch):
    x, mask = padded_batch([97, 40])
    expected = tiny_model.base_model(x, attention_mask=mask).last_hidden_state
    seen = []
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_stand_in(seen))
    monkeypatch.setattr(tiny_model.config, "_attn_implementation_internal", "flash_attention_2")
    states = tiny_model.base_model(x, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states[0], expected[0], **CLOSE)
    torch.testing.assert_close(states[1, :2], expected[1, :2], **CLOSE)
    assert not any(without_mask or packed for _, without_mask, packed in seen)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_kernel_gives_the_logits_of_float32(dtype, lengths, where, monkeypatch):
    config = ASTConfig(**{**TINY, "hidden_size": 64, "num_attention_heads": 2, "num_labels": 5})
    model = randomise(ASTForAudioClassification(config), std=0.1)
    x, mask = padded_batch(lengths)
    with torch.inference_mode():
        expected = model(x, attention_mask=mask).logits
        model.to("cuda", dtype)
        calls = []
        kernel = torch.ops.aten._flash_attention_forward
        monkeypatch.setattr(
            torch.ops.aten,
            "_flash_attention_forward",
            lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs),
        )
        result = model(x.cuda(), attention_mask=mask.to(where)).logits.float().cpu()
    assert len(calls) == config.num_hidden_layers
    # Half precision keeps 3 (bfloat16: 2) digits of each of a few dozen values.
    scale = expected.abs().max().item()
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(result, expected, atol=tolerance * scale, rtol=0)


@pytest.mark.gpu
def test_packing_does_not_wait_for_a_gpu():
    config = ASTConfig(**{**TINY, "hidden_size": 64, "num_attention_heads": 2, "num_labels": 5})
    model = ASTForAudioClassification(config).to("cuda", torch.bfloat16).eval()
    x, mask = padded_batch([97, 60, 16])
    x = x.nan_to_num().cuda()
    with torch.inference_mode():
        model(x, attention_mask=mask)  # makes the handles of the libraries
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x, attention_mask=mask)
        finally:
            torch.cuda.set_sync_debug_mode("default")
