"""Image and sound models with random weights, saved as by other packages."""

import timm
import torch
from transformers import DeiTConfig, ViTConfig

# An image of 64 x 96 has 4 x 6 patches, so that a swapped axis makes tests fail.
PICTURE = (64, 96)
SAME_INPUT = {"num_mel_bins": 64, "max_length": 96, "frequency_stride": 16, "time_stride": 16}
# Both sides compute in float32, but in different orders.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def randomise(model):
    """Adds noise to every parameter: fresh models have zero biases and equal layer norms."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def make_timm(name="deit_tiny_distilled_patch16_224", **changes):
    fields = {"img_size": PICTURE, "depth": 2, "num_classes": 5, **changes}
    return randomise(timm.create_model(name, **fields))


def make_transformers(cls, **changes):
    config = ViTConfig if "ViT" in cls.__name__ else DeiTConfig
    # The epsilon that the weights were trained with; with transformers' default of 1e-12 the
    # judge itself is another model than timm's.
    fields = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    fields |= {"intermediate_size": 768, "image_size": PICTURE, "layer_norm_eps": 1e-6}
    return randomise(cls(config(**{**fields, **changes})))


def make_authors(patches=24, labels=3, width=192, depth=2, prefix="module."):
    """A state dict with the names and shapes of the authors' ASTModel on a tiny DeiT."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape, std=0.1, mean=0.0):
        return torch.randn(shape, generator=generator) * std + mean

    weights = {
        "v.cls_token": draw(1, 1, width),
        "v.dist_token": draw(1, 1, width),
        "v.pos_embed": draw(1, patches + 2, width),
        "v.patch_embed.proj.weight": draw(width, 1, 16, 16),
        "v.patch_embed.proj.bias": draw(width),
    }
    for layer in range(depth):
        block = f"v.blocks.{layer}."
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            weights[f"{block}{name}.weight"] = draw(rows, columns)
            weights[f"{block}{name}.bias"] = draw(rows)
        for name in ("norm1", "norm2"):
            weights[f"{block}{name}.weight"] = draw(width, mean=1.0)
            weights[f"{block}{name}.bias"] = draw(width)
    weights |= {"v.norm.weight": draw(width, mean=1.0), "v.norm.bias": draw(width)}
    for name in ("v.head", "v.head_dist"):
        weights |= {f"{name}.weight": draw(1000, width), f"{name}.bias": draw(1000)}
    weights |= {"mlp_head.0.weight": draw(width, mean=1.0), "mlp_head.0.bias": draw(width)}
    weights |= {"mlp_head.1.weight": draw(labels, width), "mlp_head.1.bias": draw(labels)}
    return {prefix + name: tensor for name, tensor in weights.items()}


def picture(height=64, width=96):
    return torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def states_of_picture(model, gray):
    """The output of a timm or transformers model for a grey image, in three equal channels."""
    rgb = gray.expand(-1, 3, -1, -1)
    if isinstance(model, timm.models.VisionTransformer):
        return model.forward_features(rgb)
    return model.base_model(rgb).last_hidden_state


@torch.no_grad()
def states_of_sound(model, gray):
    """The same image as a spectrogram: height is frequency, width is time."""
    return model.base_model(gray[:, 0].mT).last_hidden_state


def run(command, *arguments):
    """Runs a command with the arguments as strings, and returns its exit status."""
    return command.main([*map(str, arguments)])
