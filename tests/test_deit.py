"""deit.py, against the outputs of timm's and transformers' own image models."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.layers import resample_patch_embed
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTForImageClassification,
)

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import convert_deit as command
from modeling_ast.conversion import (
    ConversionError,
    convert_deit,
    deit,
    deit_config,
    deit_conversion,
    read_source,
    rename_deit,
)
from tests.made_up_checkpoints import (
    SAME_INPUT,
    TOLERANCE,
    make_authors,
    make_timm,
    make_transformers,
    picture,
    run,
    states_of_picture,
    states_of_sound,
)


def convert(weights, source_config=None, source_grid=None, channel_reduction="mean", **fields):
    """Converts as the command does."""
    renamed = rename_deit(weights, source_config)
    return deit_conversion(
        renamed,
        deit_config(renamed, source_config, **fields),
        source_config=source_config,
        source_grid=source_grid,
        channel_reduction=channel_reduction,
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_identity_at_the_size_of_pictures(reduction):
    """With stride 16, 224 mel bins and 224 frames the encoder is timm's DeiT."""
    judge = make_timm(img_size=224)
    size = {"num_mel_bins": 224, "max_length": 224, "frequency_stride": 16, "time_stride": 16}
    conversion = convert(judge.state_dict(), channel_reduction=reduction, **size)
    gray = picture(224, 224)
    # The mean of the kernels is a third of the sum, which equals a third of the image.
    want = states_of_picture(judge, gray / 3 if reduction == "mean" else gray)
    torch.testing.assert_close(states_of_sound(conversion.build_model(), gray), want, **TOLERANCE)


@pytest.mark.parametrize(
    ("cls", "layout"),
    [
        (DeiTForImageClassificationWithTeacher, "file"),
        (DeiTForImageClassificationWithTeacher, "modules"),
        (DeiTForImageClassification, "file"),
        (DeiTModel, "modules"),
        (DeiTModel, "file"),
    ],
)
def test_identity_with_transformers_deit(tmp_path, cls, layout):
    judge = make_transformers(cls)
    judge.save_pretrained(tmp_path)
    if layout == "modules":
        save_file(judge.state_dict(), tmp_path / "model.safetensors")
    names = load_file(tmp_path / "model.safetensors")
    assert any("encoder.layer.0." in name for name in names) == (layout == "file")
    source = read_source(str(tmp_path))
    conversion = convert(source.weights, source.config, channel_reduction="sum", **SAME_INPUT)
    got = states_of_sound(conversion.build_model(), picture())
    torch.testing.assert_close(got, states_of_picture(judge, picture()), **TOLERANCE)


@pytest.mark.parametrize("layout", ["timm", "file", "modules"])
def test_identity_without_distillation_token(tmp_path, monkeypatch, layout, caplog):
    """Only the copy of CLS is different: with a mask over it, the model is the ViT."""
    if layout == "timm":
        judge = make_timm("vit_tiny_patch16_224")
        weights, config = judge.state_dict(), {}
    else:
        judge = make_transformers(ViTForImageClassification)
        judge.save_pretrained(tmp_path)
        file = load_file(tmp_path / "model.safetensors")
        weights = file if layout == "file" else judge.state_dict()
        config = json.loads((tmp_path / "config.json").read_text())
    grid = {"source_grid": (4, 6)} if layout == "timm" else {}
    conversion = convert(weights, config, channel_reduction="sum", **SAME_INPUT, **grid)
    assert "no distillation token: it gets a copy of the CLS token" in caplog.text
    model = conversion.build_model()
    seen = torch.ones(2, 1, 1, 2 + 24, dtype=torch.bool)
    seen[..., 1] = False
    monkeypatch.setattr(model.base_model, "_key_mask", lambda x, mask: seen)
    got = states_of_sound(model, picture())
    want = states_of_picture(judge, picture())
    torch.testing.assert_close(got[:, [0, *range(2, 26)]], want, **TOLERANCE)
    torch.testing.assert_close(got[:, 1], want[:, 0], **TOLERANCE)


def test_the_copy_of_cls_is_seen_as_timm_would_see_it():
    weights, judge = make_timm("vit_tiny_patch16_224").state_dict(), make_timm()
    positions = weights["pos_embed"]
    judge.load_state_dict(
        weights
        | {
            "dist_token": weights["cls_token"],
            "pos_embed": torch.cat((positions[:, :1], positions[:, :1], positions[:, 1:]), 1),
        },
        strict=False,
    )
    conversion = convert(weights, source_grid=(4, 6), channel_reduction="sum", **SAME_INPUT)
    got = states_of_sound(conversion.build_model(), picture())
    torch.testing.assert_close(got, states_of_picture(judge, picture()), **TOLERANCE)


@pytest.mark.parametrize("form", ["pth", "pth, bare", "safetensors", "timm directory"])
def test_command_line_reads_each_form_of_timm(tmp_path, form):
    judge = make_timm()
    source, grid = tmp_path / "source.pth", ["--source-grid", 4, 6]
    if form == "pth":
        torch.save({"model": judge.state_dict()}, source)
    elif form == "pth, bare":
        torch.save(judge.state_dict(), source, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        source = tmp_path / "source.safetensors"
        save_file(judge.state_dict(), source)
    else:
        source = tmp_path / "source"
        timm.models.save_for_hf(judge, source, safe_serialization="both")
        # Versions of timm before about 1.0.30 do not save the size of the input.
        if "img_size" in (source / "config.json").read_text():
            grid = []
    target = tmp_path / "new" / "ast"
    size = ["--num-mel-bins", 64, "--max-length", 96, "--frequency-stride", 16, "--time-stride", 16]
    more = ["--channel-reduction", "sum", "--num-labels", 3]
    assert run(command, source, target, *size, *more, *grid) == 0
    files = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert {path.name for path in target.iterdir()} == files
    model = ASTForAudioClassification.from_pretrained(target)
    got = states_of_sound(model, picture())
    torch.testing.assert_close(got, states_of_picture(judge, picture()), **TOLERANCE)
    assert model.num_labels == 3
    extractor = ASTFeatureExtractor.from_pretrained(target)
    assert (extractor.num_mel_bins, extractor.max_length) == (64, 96)


def test_the_directory_runs_in_plain_transformers(tmp_path):
    torch.save(make_timm(img_size=224).state_dict(), tmp_path / "deit.pth")
    size = ["--max-length", 64, "--num-mel-bins", 32, "--num-labels", 3]
    assert run(command, tmp_path / "deit.pth", tmp_path / "ast", *size) == 0
    old_name = "audio_spectrogram_transformer.encoder.layer.0.attention.attention.query.weight"
    assert old_name in load_file(tmp_path / "ast" / "model.safetensors")
    theirs, info = transformers.ASTForAudioClassification.from_pretrained(
        tmp_path / "ast", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = ASTForAudioClassification.from_pretrained(tmp_path / "ast")
    frames = torch.linspace(-1, 1, 64 * 32).view(1, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames).logits, theirs(frames).logits, **TOLERANCE)
    assert ours.config.layer_norm_eps == 1e-6


def test_the_fresh_head_is_drawn_as_the_model_draws_it_and_always_the_same():
    weights = make_timm(img_size=224).state_dict()
    one, two = (convert(weights, labels=500).weights for _ in range(2))
    dense = one["classifier.dense.weight"]
    assert dense.shape == (500, 192) and torch.equal(dense, two["classifier.dense.weight"])
    assert dense.std().item() == pytest.approx(0.02, rel=0.02)
    fresh = ASTForAudioClassification(convert(weights, labels=500).config)
    for name in ("layernorm.weight", "layernorm.bias", "dense.bias"):
        assert torch.equal(one[f"classifier.{name}"], fresh.state_dict()[f"classifier.{name}"])


def strictly(config, weights):
    """A model that holds exactly these weights."""
    model = ASTForAudioClassification(config).eval()
    model.load_state_dict(weights, strict=True)
    return model


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dict_in_state_dict_out(prefix):
    """Loaded strictly into a plain model, the encoder and the logits are those of timm's DeiT."""
    judge = make_timm()
    foreign = {prefix + name: tensor for name, tensor in judge.state_dict().items()}
    config = deit_config(foreign, labels=5, **SAME_INPUT)
    weights = convert_deit(foreign, config, source_grid=(4, 6), channel_reduction="sum")
    model = strictly(config, weights)
    got = states_of_sound(model, picture())
    want = states_of_picture(judge, picture())
    torch.testing.assert_close(got, want, **TOLERANCE)
    logits = model(picture()[:, 0].mT).logits
    torch.testing.assert_close(logits, model.classifier(want[:, :2].mean(1)), **TOLERANCE)


def test_without_a_config_the_paper_s_is_made():
    weights = make_timm(img_size=224).state_dict()
    config = deit_config(weights)
    assert (config.num_labels, config.patch_grid()) == (527, (12, 101))
    default, given = convert_deit(weights), convert_deit(weights, config)
    assert default.keys() == given.keys() == strictly(config, default).state_dict().keys()
    assert all(torch.equal(given[name], tensor) for name, tensor in default.items())


def test_a_config_of_another_network_is_refused():
    weights = make_timm(img_size=224).state_dict()
    for other, message in (
        ({"num_hidden_layers": 3}, r"does not fit AST: missing audio_.*layers\.2\."),
        ({"num_hidden_layers": 1}, r"does not fit AST: unexpected audio_.*layers\.1\."),
        ({"hidden_size": 384, "num_attention_heads": 6}, "does not fit AST: of wrong shape"),
    ):
        config = ASTConfig(**{**deit_config(weights).to_dict(), **other})
        with pytest.raises(ConversionError, match=message):
            convert_deit(weights, config)


def test_renaming_is_done_once():
    weights = make_timm(img_size=224).state_dict()
    renamed = rename_deit(weights)
    assert rename_deit(renamed) is renamed
    assert renamed.dropped.keys() == {
        f"{head}.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")
    }
    assert deit_config(renamed).to_dict() == deit_config(weights).to_dict()
    one, two = convert_deit(renamed), convert_deit(weights)
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_half_precision_becomes_float32():
    weights = {name: tensor.half() for name, tensor in make_timm(img_size=224).state_dict().items()}
    conversion = convert(weights)
    assert {tensor.dtype for tensor in conversion.weights.values()} == {torch.float32}


def coordinates(side):
    """A table in which each position is its own (row, column); prefix tokens are negative."""
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    return torch.cat((torch.tensor([[-1.0, -1.0], [-2.0, -2.0]]), grid))[None]


# Computed by hand: the first row and column that the authors keep of 14 and of 24.
@pytest.mark.parametrize(
    ("side", "grid", "first"),
    [(14, (9, 9), (3, 3)), (14, (12, 14), (1, 0)), (24, (12, 24), (6, 0)), (14, (14, 13), (0, 1))],
)
def test_positions_that_shrink_are_cut_around_the_middle(side, grid, first):
    new = deit.fit_positions(coordinates(side), (side, side), grid)
    assert new[0, :2].tolist() == [[-1, -1], [-2, -2]]
    got = new[0, 2:].view(*grid, 2)
    for row in range(grid[0]):
        for column in range(grid[1]):
            assert got[row, column].tolist() == [first[0] + row, first[1] + column]


@pytest.mark.parametrize(("grid", "first_row"), [((12, 28), 1), ((28, 28), None), ((14, 28), 0)])
def test_positions_that_grow_are_interpolated(grid, first_row):
    new = deit.fit_positions(coordinates(14), (14, 14), grid)
    got = new[0, 2:].view(*grid, 2)
    # Each old position becomes two, a quarter of a step on either side; the edge repeats.
    halves = [min(max((new + 0.5) / 2 - 0.5, 0), 13) for new in range(28)]
    rows = halves if first_row is None else [first_row + row for row in range(grid[0])]
    for row in range(grid[0]):
        for column in range(28):
            want = [rows[row], halves[column]]
            assert got[row, column].tolist() == pytest.approx(want, abs=1e-5)


def test_the_grid_of_a_conversion_is_fitted_axis_by_axis():
    """Through `convert`: 14 x 14 -> 9 rows (cut at 3) x 28 columns (interpolated)."""
    weights = make_timm(img_size=224).state_dict()
    table = torch.zeros(1, 198, 192)
    table[..., :2] = coordinates(14)
    size = {"num_mel_bins": 96, "max_length": 16 + 27 * 10, "frequency_stride": 10}
    conversion = convert(weights | {"pos_embed": table}, **size)
    name = "audio_spectrogram_transformer.embeddings.position_embeddings"
    got = conversion.weights[name][0, 2:, :2].view(9, 28, 2)
    assert got[:, 0].tolist() == [[3 + row, 0] for row in range(9)]
    assert got[0, 26].tolist() == pytest.approx([3, 12.75])


@pytest.mark.parametrize("patch", [(16, 32), (24, 20), (8, 8), (32, 2), (12, 40)])
def test_the_resampled_kernel_is_timms(patch):
    kernel = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    got = deit.resample_kernel(kernel, patch)
    want = resample_patch_embed(kernel, list(patch), interpolation="bilinear", antialias=False)
    # timm computes the inverse in float32.
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_resized_picture_gives_the_same_embeddings():
    """The reason for the pseudo-inverse: it is exact if the patch grows."""
    kernel = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    patch = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    larger = torch.nn.functional.interpolate(patch, (24, 32), mode="bilinear")
    got = torch.einsum("bcij,dcij->bd", larger, deit.resample_kernel(kernel, (24, 32)))
    want = torch.einsum("bcij,dcij->bd", patch, kernel)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_identity_with_a_resampled_kernel():
    """For an image with doubled patches the encoder returns what timm's does for the small one."""
    judge, small = make_timm(), picture()
    patches = small.unfold(2, 16, 16).unfold(3, 16, 16).flatten(0, 3).unsqueeze(1)
    patches = torch.nn.functional.interpolate(patches, (32, 32), mode="bilinear")
    large = patches.view(2, 4, 6, 32, 32).transpose(2, 3).reshape(2, 1, 128, 192)
    size = {"num_mel_bins": 128, "max_length": 192, "frequency_stride": 32, "time_stride": 32}
    conversion = convert(
        judge.state_dict(),
        source_grid=(4, 6),
        channel_reduction="sum",
        patch_size=(32, 32),
        **size,
    )
    got = states_of_sound(conversion.build_model(), large)
    torch.testing.assert_close(got, states_of_picture(judge, small), **TOLERANCE)


def test_the_papers_tall_patches_on_the_command_line(tmp_path):
    torch.save(make_timm(img_size=224).state_dict(), tmp_path / "deit.pth")
    more = ["--patch-size", 128, 2, "--max-length", 100, "--num-labels", 2]
    assert run(command, tmp_path / "deit.pth", tmp_path / "ast", *more) == 0
    model = ASTForAudioClassification.from_pretrained(tmp_path / "ast")
    assert model.config.patch_shape == (128, 2)
    assert model.config.patch_grid() == (1, 50)


def test_small_patches_do_not_leave_gaps():
    weights = make_timm("vit_tiny_patch16_224", patch_size=8, img_size=64).state_dict()
    config = convert(weights).config
    assert (config.patch_shape, config.frequency_stride, config.time_stride) == ((8, 8), 8, 8)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("deit3_small_patch16_224", "LayerScale (blocks.0.ls1.gamma)"),
        ("vit_small_patch14_reg4_dinov2", "register tokens (reg_token)"),
        ("beit_base_patch16_224", "LayerScale (blocks.0.gamma_1)"),
        ("vit_relpos_small_patch16_224", "relative positions (blocks.0.attn.rel_pos"),
        ("vit_tiny_r_s16_p8_224", "a convolutional stem (patch_embed.backbone"),
        ("vit_base_patch16_clip_224", "a layer norm before the first layer (CLIP) (norm_pre"),
        ("vit_base_patch16_siglip_224", "pooled patches in place of a CLS token"),
        ("vit_small_patch16_rope_mixed_224", "rotary positions"),
    ],
)
def test_other_families_are_refused_by_name(name, part):
    with torch.device("meta"):
        weights = timm.create_model(name, num_classes=0).state_dict()
    with pytest.raises(ConversionError, match="which AST does not have") as error:
        convert(weights)
    assert part in str(error.value)


def test_models_without_positions_or_cls_are_refused():
    weights = make_timm().state_dict()
    without = {name: tensor for name, tensor in weights.items() if name != "pos_embed"}
    with pytest.raises(ConversionError, match="no learned positions"):
        convert(without)
    without = {name: tensor for name, tensor in weights.items() if name != "cls_token"}
    with pytest.raises(ConversionError, match="no CLS token but pools its patches"):
        convert(without)


def test_an_ast_is_no_source():
    with pytest.raises(ConversionError, match=r"AST of the authors.*modeling-ast convert-original"):
        convert(make_authors())
    with pytest.raises(ConversionError, match="an AST already; change its size"):
        convert({"x": torch.zeros(1)}, {"model_type": "audio-spectrogram-transformer"})


def test_a_missing_tensor_is_found_without_writing():
    weights = make_timm(img_size=224).state_dict()
    del weights["blocks.0.mlp.fc2.bias"]
    with pytest.raises(ConversionError, match=r"missing audio_.*\.layers\.0\.mlp\.fc2\.bias"):
        convert(weights)


def test_unknown_channel_reduction_is_refused():
    with pytest.raises(ConversionError, match="channel_reduction is 'max'; it must be mean or sum"):
        convert(make_timm().state_dict(), source_grid=(4, 6), channel_reduction="max")


def nan_weights():
    weights = make_timm(img_size=224).state_dict()
    weights["blocks.1.mlp.fc2.weight"][3, 5] = float("nan")
    return weights


@pytest.mark.parametrize(
    ("weights", "arguments", "message"),
    [
        (nan_weights, [], "layers.1.mlp.fc2.weight holds NaN or infinity in 1 of 147456 values"),
        ("missing", [], "missing audio_spectrogram_transformer.layers.1.attention.o_proj.bias"),
        ("resnet", [], "parameter names (conv1.weight, bn1.weight, bn1.bias and 119 more) have no"),
        ("deit3", [], "the model has LayerScale (blocks.0.ls1.gamma), which AST does not have"),
        ("good", ["--max-length", 10], "it must be at most max_length=10"),
        ("good", ["--time-stride", 0], "time_stride is 0, which is impossible"),
        ("good", ["--num-labels", 0], "num_labels is 0; it must be from 1 to 100000"),
        ("good", ["--num-attention-heads", 5], "must be a multiple of num_attention_heads=5"),
        ("good", ["--source-grid", 7, 7], "has 196 patches but a source grid of 7 x 7 has another"),
        (
            "oblong",
            [],
            "has 24 patches but no square grid has this number; give its rows and columns as",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path, capsys, weights, arguments, message
):
    made = {
        "good": lambda: make_timm(img_size=224).state_dict(),
        "oblong": lambda: make_timm().state_dict(),
        "deit3": lambda: timm.create_model("deit3_small_patch16_224", depth=1).state_dict(),
        "resnet": lambda: timm.create_model("resnet18").state_dict(),
        "missing": lambda: {
            name: tensor
            for name, tensor in make_timm(img_size=224).state_dict().items()
            if name != "blocks.1.attn.proj.bias"
        },
    }.get(weights, weights)()
    torch.save(made, tmp_path / "source.pth")
    assert run(command, tmp_path / "source.pth", tmp_path / "ast", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]
