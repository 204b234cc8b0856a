"""Against transformers' own AST for the network, against the specification for the rest."""

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_ast import ASTConfig, ASTForAudioClassification, ASTModel
from tests.conftest import TINY, randomise
from tests.spectrograms import CLOSE, mask_of, spectrogram


def theirs_like(model):
    """transformers' AST with the same weights."""
    config = {name: getattr(model.config, name) for name in TINY}
    other = transformers.ASTForAudioClassification(transformers.ASTConfig(**config))
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_parameters_are_those_of_transformers(tiny_model):
    ours = {name: p.shape for name, p in tiny_model.state_dict().items()}
    theirs = {name: p.shape for name, p in theirs_like(tiny_model).state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch", [1, 2])
def test_logits_and_states_equal_transformers(tiny_model, attention, batch):
    theirs = theirs_like(tiny_model)
    theirs.set_attn_implementation("eager")
    tiny_model.set_attn_implementation(attention)
    x = spectrogram(batch, TINY["max_length"])
    want_weights = attention == "eager"
    options = {"output_hidden_states": True, "output_attentions": want_weights}
    expected, result = theirs(x, **options), tiny_model(x, **options)
    torch.testing.assert_close(result.logits, expected.logits, **CLOSE)
    assert len(result.hidden_states) == TINY["num_hidden_layers"] + 1
    for ours, other in zip(result.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, other, **CLOSE)
    if want_weights:
        for ours, other in zip(result.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(ours, other, **CLOSE)


def test_encoder_outputs_equal_transformers(tiny_model):
    x = spectrogram(2, TINY["max_length"])
    expected = theirs_like(tiny_model).audio_spectrogram_transformer(x)
    result = tiny_model.audio_spectrogram_transformer(x)
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(result.pooler_output, expected.pooler_output, **CLOSE)
    as_tuple = tiny_model.audio_spectrogram_transformer(x, return_dict=False)
    assert torch.equal(as_tuple[0], result.last_hidden_state)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[97] * 3, [97, 60, 16], [150, 97, 20]])
def test_the_host_does_not_wait_for_a_gpu_when_the_mask_is_on_the_cpu(tiny_model, lengths):
    x, mask = spectrogram(len(lengths), max(lengths)), mask_of(lengths, max(lengths))
    expected = tiny_model(x, attention_mask=mask).logits
    tiny_model.cuda()
    x = x.cuda()
    with torch.inference_mode():
        tiny_model(x, attention_mask=mask)  # makes the handles of the libraries
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = tiny_model(x, attention_mask=mask).logits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, atol=1e-3, rtol=1e-3)


def test_base_size_has_the_papers_parameters():
    with torch.device("meta"):
        model = ASTModel(ASTConfig())
    assert model.embeddings.position_embeddings.shape == (1, 1214, 768)
    # 87 M of the paper: 86.6 M with the classifier of 527 labels.
    head = 2 * 768 + 768 * 527 + 527
    assert round((model.num_parameters() + head) / 1e6, 1) == 86.6


def test_patches_of_unequal_sides_work():
    config = ASTConfig(**{**TINY, "patch_size": (40, 2), "frequency_stride": 40, "time_stride": 2})
    model = randomise(ASTForAudioClassification(config))
    x = spectrogram(2, 97)
    states = model(x, output_hidden_states=True).hidden_states[0]
    assert states.shape[1] == 2 + 48
    # A patch of the whole spectrum over frames 2n and 2n + 1, by hand.
    kernel = model.audio_spectrogram_transformer.embeddings.patch_embeddings.projection
    position = model.audio_spectrogram_transformer.embeddings.position_embeddings
    for n in (0, 17, 47):
        patch = x[:, 2 * n : 2 * n + 2].mT.reshape(2, -1)
        expected = patch @ kernel.weight.reshape(36, -1).T + kernel.bias + position[0, 2 + n]
        torch.testing.assert_close(states[:, 2 + n], expected, **CLOSE)


# 16 frames make one column of the tiny grid, 97 fill it, 200 go beyond it.
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "lengths", [[97, 60, 33, 16], [200, 97, 150, 23], [16, 9, 1, 0], [120, 15, 97, 98]]
)
def test_a_clip_has_the_logits_it_has_alone_however_far_it_was_padded(
    tiny_model, attention, lengths
):
    tiny_model.set_attn_implementation(attention)
    longest = max(lengths)
    clean = spectrogram(4, longest)
    for extra in (0, 1, 64):
        x = torch.cat((clean, torch.full((4, extra, 40), torch.nan)), dim=1)
        mask = mask_of(lengths, longest + extra)
        x[mask == 0] = torch.nan  # the values of padding must not matter
        logits = tiny_model(x, attention_mask=mask).logits
        for clip, length in enumerate(lengths):
            frames = max(length, 16)
            alone = torch.full((1, frames, 40), tiny_model.config.padding_value)
            alone[0, :length] = clean[clip, :length]
            expected = tiny_model(alone).logits[0]
            torch.testing.assert_close(logits[clip], expected, **CLOSE)


def test_a_clip_shorter_than_a_patch_is_not_fully_masked(tiny_model):
    x = spectrogram(2, 16)
    logits = tiny_model(x, attention_mask=mask_of([4, 4], 16)).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_an_all_true_mask_changes_nothing_and_builds_no_mask(tiny_model, monkeypatch):
    x = spectrogram(2, 97)
    expected = tiny_model(x).logits
    encoder = tiny_model.audio_spectrogram_transformer
    seen = []
    original = encoder.layers[0].forward
    monkeypatch.setattr(
        encoder.layers[0],
        "forward",
        lambda x, mask=None, **kwargs: seen.append(mask) or original(x, mask, **kwargs),
    )
    assert torch.equal(tiny_model(x, attention_mask=torch.ones(2, 97)).logits, expected)
    # The extractor marks the last two frames of a second as padding; no patch depends on them.
    tiny_model(x, attention_mask=mask_of([93, 93], 97))
    assert seen == [None, None]


def test_the_mask_is_over_keys_only(tiny_model, monkeypatch):
    encoder = tiny_model.audio_spectrogram_transformer
    shapes = []
    original = encoder.layers[0].forward
    monkeypatch.setattr(
        encoder.layers[0],
        "forward",
        lambda x, mask=None, **kwargs: shapes.append(mask.shape) or original(x, mask, **kwargs),
    )
    tiny_model(spectrogram(2, 97), attention_mask=mask_of([97, 40], 97))
    tokens = tiny_model.config.num_patches() + 2
    assert shapes == [(2, 1, 1, tokens)]


def test_fewer_frames_use_the_first_columns(tiny_model):
    """A model whose table is cut by hand to the first columns is the judge."""
    _, columns = tiny_model.config.patch_grid(50)
    table = tiny_model.audio_spectrogram_transformer.embeddings.position_embeddings.data
    whole = table[:, 2:].unflatten(1, tiny_model.config.patch_grid())
    cut = torch.cat((table[:, :2], whole[:, :, :columns].flatten(1, 2)), dim=1)
    config = transformers.ASTConfig(**{**TINY, "max_length": 50})
    judge = transformers.ASTForAudioClassification(config)
    weights = tiny_model.state_dict()
    weights["audio_spectrogram_transformer.embeddings.position_embeddings"] = cut
    judge.load_state_dict(weights)
    x = spectrogram(2, 50)
    torch.testing.assert_close(tiny_model(x).logits, judge.eval()(x).logits, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_the_attention_can_be_set(tiny_model, attention):
    tiny_model.set_attn_implementation(attention)
    assert tiny_model.base_model.config._attn_implementation == attention


@pytest.mark.slow
def test_flash_and_flex_get_the_masks_they_want(tiny_model):
    assert tiny_model._supports_flash_attn and tiny_model._supports_flex_attn
    encoder = tiny_model.audio_spectrogram_transformer
    x, mask = encoder.embeddings(spectrogram(2, 97), mask_of([97, 40], 97).bool())
    encoder.config._attn_implementation = "flash_attention_2"
    assert torch.equal(encoder._key_mask(x, mask), mask)
    encoder.config._attn_implementation = "flex_attention"
    assert type(encoder._key_mask(x, mask)).__name__ == "BlockMask"


@pytest.mark.slow
def test_flex_attention_agrees(tiny_model):
    x, mask = spectrogram(2, 97), mask_of([97, 40], 97)
    expected = tiny_model(x, attention_mask=mask).logits
    config = ASTConfig(**{**TINY, "hidden_size": 64})
    model = randomise(ASTForAudioClassification(config))
    expected = model(x, attention_mask=mask).logits
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        logits = model(x, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model):
    x, labels = spectrogram(2, 97), torch.tensor([0, 3])
    tiny_model.train()
    tiny_model(x, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    tiny_model.gradient_checkpointing_enable()
    calls = []
    first = tiny_model.audio_spectrogram_transformer.layers[0].layernorm_before
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    tiny_model(x, labels=labels).loss.backward()
    hook.remove()
    assert len(calls) == 2  # forward, and once more in backward
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_as_one_graph(tiny_model, masked):
    torch._dynamo.reset()
    compiled = torch.compile(tiny_model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        for frames in (97, 61, 150):
            options = {"attention_mask": mask_of([frames, 30], frames)} if masked else {}
            x = spectrogram(2, frames)
            expected = tiny_model(x, **options).logits
            torch.testing.assert_close(compiled(x, **options).logits, expected, **CLOSE)


# Batches and frames: within the learned grid of 97, exactly it, beyond it.
SIZES = [(2, 97), (2, 61), (3, 150), (4, 98), (2, 40), (7, 200), (5, 71), (2, 97)]


def assert_two_graphs_are_enough(backend, training, masked):
    torch._dynamo.reset()
    changes = {"num_hidden_layers": 1, "patchout_frequency": 1, "patchout_time": 2}
    config = ASTConfig(**{**TINY, **changes}, problem_type="single_label_classification")
    model = randomise(ASTForAudioClassification(config)).train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.set_grad_enabled(training):
        for index, (batch, frames) in enumerate(SIZES):
            given = {"labels": torch.zeros(batch, dtype=torch.long)} if training else {}
            if masked:
                given["attention_mask"] = mask_of([frames] + [20] * (batch - 1), frames)
            # One is for inputs of exactly the learned grid, which takes its positions as they are.
            with torch._dynamo.config.patch(error_on_recompile=index > 1):
                out = compiled(spectrogram(batch, frames), **given)
            if training:
                out.loss.backward()
            else:
                expected = model(spectrogram(batch, frames), **given).logits
                torch.testing.assert_close(out.logits, expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_two_compiled_graphs_serve_all_lengths_and_batches(training, masked):
    """In training with patchout."""
    assert_two_graphs_are_enough("aot_eager", training, masked)


@pytest.mark.slow
def test_two_compiled_graphs_of_inductor_serve_all_lengths_and_batches():
    """Not in training: inductor 2.14 itself fails there on a batch of any size, for transformers'
    AST too ("cannot determine truth value of Relational")."""
    assert_two_graphs_are_enough("inductor", training=False, masked=True)


class Recorder(TorchDispatchMode):
    """The operators that run, and the elements of the largest tensor that one of them gives."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.add(function.name().removeprefix("aten::"))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_is_linear_in_length(tiny_model, gradient):
    """In a padded batch too: its mask is over keys, and the fused kernel takes it as it is."""
    frames = 12000
    x, mask = spectrogram(2, frames), mask_of([frames, 500], frames)
    with torch.set_grad_enabled(gradient), Recorder() as recorder:
        tiny_model(x, attention_mask=mask)
    tokens = tiny_model.config.num_patches(frames) + 2
    attention = {name for name in recorder.names if "scaled_dot_product" in name}
    assert attention == {"_scaled_dot_product_flash_attention_for_cpu"}
    # The patches are the largest, not tokens x tokens, of which there are 26 M.
    assert recorder.largest <= 2 * tokens * TINY["patch_size"] ** 2 < tokens**2 / 4


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_that_of_its_modules(tiny_model, training):
    """Dropout alone may be in training mode, to estimate uncertainty from several forwards."""
    found = []
    for model in (tiny_model, theirs_like(tiny_model)):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train(training).p = 0.3
        torch.manual_seed(0)
        # With all states, so that the last layer drops as many numbers.
        found.append(model(spectrogram(2, 97), output_hidden_states=True).logits)
    torch.testing.assert_close(*found, **CLOSE)
    still = tiny_model.eval()(spectrogram(2, 97)).logits
    assert torch.allclose(found[0], still, **CLOSE) == (not training)


def test_half_precision_runs_on_float32_features(tiny_model):
    x, mask = spectrogram(2, 97), mask_of([97, 40], 97)
    expected = tiny_model(x, attention_mask=mask).logits
    logits = tiny_model.bfloat16()(x, attention_mask=mask).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.2, rtol=0.1)


def test_the_patch_projection_can_be_frozen(tiny_model):
    """As transformers' run_audio_classification.py does by default."""
    tiny_model.freeze_feature_encoder()
    frozen = {name for name, p in tiny_model.named_parameters() if not p.requires_grad}
    stem = "audio_spectrogram_transformer.embeddings.patch_embeddings.projection"
    assert frozen == {f"{stem}.weight", f"{stem}.bias"}
    tiny_model.train()(spectrogram(2, 97), labels=torch.tensor([1, 2])).loss.backward()
    assert all((p.grad is None) == (n in frozen) for n, p in tiny_model.named_parameters())


def test_the_encoder_can_be_frozen(tiny_model):
    tiny_model.freeze_base_model()
    trained = {name for name, p in tiny_model.named_parameters() if p.requires_grad}
    assert trained == {f"classifier.{name}" for name, _ in tiny_model.classifier.named_parameters()}
    tiny_model.train()(spectrogram(2, 97), labels=torch.tensor([1, 2])).loss.backward()


def test_fresh_weights():
    torch.manual_seed(0)
    model = ASTForAudioClassification(ASTConfig(hidden_size=96, num_attention_heads=2))
    embeddings = model.audio_spectrogram_transformer.embeddings
    assert embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.02)
    assert not torch.equal(embeddings.cls_token, embeddings.distillation_token)
    assert torch.equal(model.classifier.dense.bias, torch.zeros(2))


def test_a_field_set_later_is_checked_too():
    config = ASTConfig(**TINY)
    config.time_stride = 0
    with pytest.raises(ValueError, match="time_stride is 0"):
        ASTModel(config)
