"""Foreign parameter names -> ours, as data, and the pure steps that apply them.

Every step takes a state dict and returns a new one; no step opens a file. "Our" names are those of
`modeling_ast.ASTModel` and of transformers 5. In the tables `#` stands for the number of a layer
and a trailing `*` for anything (mostly weight or bias).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]

# Names of the parameters that a conversion changes.
CLS = "embeddings.cls_token"
DISTILLATION = "embeddings.distillation_token"
KERNEL = "embeddings.patch_embeddings.projection.weight"
POSITIONS = "embeddings.position_embeddings"
ENCODER = "audio_spectrogram_transformer."


class ConversionError(ValueError):
    """A mistake in a checkpoint or an argument; the message says what to do about it."""


class Renamed(NamedTuple):
    """A foreign model under our names, with qkv split; no values have changed."""

    weights: Weights  # the encoder's names have no prefix
    dropped: Weights  # image heads, which are left out, under their old names


# facebookresearch/deit and timm; the authors' AST holds one of these under "v.".
TIMM = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    "blocks.#.norm1.*": "layers.#.layernorm_before.*",
    "blocks.#.attn.qkv.*": "layers.#.attention.qkv.*",
    "blocks.#.attn.proj.*": "layers.#.attention.o_proj.*",
    "blocks.#.norm2.*": "layers.#.layernorm_after.*",
    "blocks.#.mlp.fc1.*": "layers.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*": "layers.#.mlp.fc2.*",
    "norm.*": "layernorm.*",
}
# transformers 4, and the files that every version of transformers saves.
TRANSFORMERS_FILE = {
    "embeddings.cls_token": "embeddings.cls_token",
    "embeddings.distillation_token": "embeddings.distillation_token",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.*": "embeddings.patch_embeddings.projection.*",
    "encoder.layer.#.layernorm_before.*": "layers.#.layernorm_before.*",
    "encoder.layer.#.attention.attention.query.*": "layers.#.attention.q_proj.*",
    "encoder.layer.#.attention.attention.key.*": "layers.#.attention.k_proj.*",
    "encoder.layer.#.attention.attention.value.*": "layers.#.attention.v_proj.*",
    "encoder.layer.#.attention.output.dense.*": "layers.#.attention.o_proj.*",
    "encoder.layer.#.layernorm_after.*": "layers.#.layernorm_after.*",
    "encoder.layer.#.intermediate.dense.*": "layers.#.mlp.fc1.*",
    "encoder.layer.#.output.dense.*": "layers.#.mlp.fc2.*",
    "layernorm.*": "layernorm.*",
}
# transformers 5: torch.save(model.state_dict(), ...).
TRANSFORMERS_MODULE = {
    "embeddings.*": "embeddings.*",
    "layers.#.layernorm_before.*": "layers.#.layernorm_before.*",
    "layers.#.attention.q_proj.*": "layers.#.attention.q_proj.*",
    "layers.#.attention.k_proj.*": "layers.#.attention.k_proj.*",
    "layers.#.attention.v_proj.*": "layers.#.attention.v_proj.*",
    "layers.#.attention.o_proj.*": "layers.#.attention.o_proj.*",
    "layers.#.layernorm_after.*": "layers.#.layernorm_after.*",
    "layers.#.mlp.fc1.*": "layers.#.mlp.fc1.*",
    "layers.#.mlp.fc2.*": "layers.#.mlp.fc2.*",
    "layernorm.*": "layernorm.*",
}
LAYOUTS = (TIMM, TRANSFORMERS_FILE, TRANSFORMERS_MODULE)
# Heads for sounds are converted, too.
AUTHORS_HEAD = {"mlp_head.0.*": "classifier.layernorm.*", "mlp_head.1.*": "classifier.dense.*"}
AST_HEAD = {"classifier.layernorm.*": "classifier.layernorm.*"}
AST_HEAD["classifier.dense.*"] = "classifier.dense.*"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Prefixes of all names, from DataParallel and torch.compile.
WRAPPERS = ("module.", "_orig_mod.")
# Prefixes of the encoder's names in classes with a head.
BACKBONES = ("deit.", "vit.", "v.", ENCODER)
# Image heads, which are left out because they are of no use for sounds.
PICTURE_HEADS = (
    "head.*",
    "head_dist.*",
    "pre_logits.*",
    "classifier.*",
    "cls_classifier.*",
    "distillation_classifier.*",
    "pooler.*",
    "decoder*",
    "mask_token",
    "embeddings.mask_token",
)
# Pattern in a parameter's name -> a part that AST's encoder does not have.
REFUSED = {
    r"\bls[12]\.|\bgamma(_[12])?$|layer_?scale|\blambda_?[12]$": "LayerScale",
    r"reg_token|register_token|storage_token": "register tokens",
    r"rel_pos|relative_position": "relative positions",
    r"rope|freqs|rotary": "rotary positions",
    r"patch_embed(dings)?\.(backbone|conv|stem|proj\.\d)|\bstem\.": "a convolutional stem",
    r"norm_pre|pre_layrnorm|ln_pre": "a layer norm before the first layer (CLIP)",
    r"fc_norm|attn_pool": "pooled patches in place of a CLS token (fc_norm, attn_pool)",
    r"\b[qk]_norm|query_norm|key_norm": "normalised queries and keys",
    r"mlp\.(w12|w3|fc1_g|norm)|weights_in|gate_proj": "gated MLPs (SwiGLU)",
    r"\battns\.\d|\bffns\.\d": "parallel attention blocks",
}


def unwrap(checkpoint: Any) -> Weights:
    """The state dict inside a checkpoint, without the wrappers' prefixes.

    It may be the checkpoint itself, or its entry "model" or "state_dict".

    Raises:
        ConversionError: The checkpoint holds no state dict.
    """
    for key in ("model", "state_dict"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    tensors = isinstance(checkpoint, Mapping) and checkpoint
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in checkpoint.values()):
        raise ConversionError(
            f"it holds {_describe(checkpoint)} but must hold a state dict (names -> tensors), "
            f'directly or under "model"; save one with torch.save(model.state_dict(), path)'
        )
    weights = {str(name): tensor for name, tensor in checkpoint.items()}
    for prefix in WRAPPERS * 2:  # in either order
        weights = strip_prefix(weights, prefix)
    return weights


def strip_prefix(weights: Weights, prefix: str) -> Weights:
    """Removes `prefix` from all names if all have it; otherwise changes nothing."""
    if not all(name.startswith(prefix) for name in weights):
        return weights
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def refuse_other_families(weights: Mapping[str, Tensor]) -> None:
    """Refuses, by name, all but plain pre-norm ViTs with a CLS token and learned positions.

    Raises:
        ConversionError: A parameter belongs to a part that AST does not have.
    """
    found = [
        f"{part} ({name})"
        for pattern, part in REFUSED.items()
        if (name := next(filter(re.compile(pattern).search, weights), None))
    ]
    if found:
        raise ConversionError(
            f"the model has {', '.join(found)}, which AST does not have; choose a plain DeiT or ViT"
        )


def rename(weights: Mapping[str, Tensor], head: Mapping[str, str] | None = None) -> Renamed:
    """Foreign names -> ours, by the table of the layout that fits most names; qkv is split.

    Args:
        weights: As `unwrap` returns them.
        head: The table of the head, if it is converted; by default it is dropped.
    Raises:
        ConversionError: The layout or a name is unknown, or two names become the same.
    """
    tables = [_compile(table) for table in LAYOUTS]
    bare = [_without(BACKBONES, name) for name in weights]
    matches = [sum(_apply(rules, name) is not None for name in bare) for rules in tables]
    if max(matches, default=0) == 0:
        raise ConversionError(
            f"its parameter names ({_some(weights)}) have no known layout; give a DeiT or ViT of "
            f"timm, facebookresearch or transformers"
        )
    rules = _compile(head or {}) + tables[matches.index(max(matches))]
    pictures = _compile(dict.fromkeys(PICTURE_HEADS, ""))
    ours, dropped = {}, {}
    for name, tensor in weights.items():
        inside = _without(BACKBONES, name)
        if new_name := _apply(rules, inside):
            if new_name in ours:
                raise ConversionError(
                    f"two parameters, one of them {name}, would become {new_name} of AST; the "
                    f"checkpoint mixes two layouts, so save it again from its model"
                )
            ours[new_name] = tensor
        elif _apply(pictures, inside) is not None:
            dropped[name] = tensor
        else:
            raise ConversionError(
                f"the model has the parameter {name}, which AST does not have; choose a plain DeiT "
                f"or ViT"
            )
    return Renamed(split_qkv(ours), dropped)


def split_qkv(weights: Weights) -> Weights:
    """layers.#.attention.qkv (3D, ...) -> q_proj, k_proj, v_proj, each (D, ...)."""
    split = {}
    for name, tensor in weights.items():
        if ".attention.qkv." not in name:
            split[name] = tensor
            continue
        for letter, part in zip("qkv", tensor.chunk(3)):
            # A copy, because safetensors refuses tensors that share memory.
            split[name.replace(".qkv.", f".{letter}_proj.")] = part.clone()
    return split


def prefix_encoder(weights: Mapping[str, Tensor]) -> Weights:
    """Our names inside ASTModel -> those inside ASTForAudioClassification."""
    return {
        name if name.startswith("classifier.") else ENCODER + name: tensor
        for name, tensor in weights.items()
    }


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuses weights from a diverged training or a damaged copy, and quantised weights.

    Raises:
        ConversionError: A tensor has no floating-point type, or holds NaN or infinity.
    """
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATS:
            raise ConversionError(
                f"{name} holds {tensor.dtype} values but must hold floating-point numbers of 16 "
                f"bits or more; convert the model before it is quantised"
            )
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ConversionError(
                f"{name} holds NaN or infinity in {bad} of {tensor.numel()} values; the checkpoint "
                f"is broken, so use another one"
            )


def load_exactly(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Makes `weights` the parameters of `model`, without copying them.

    Raises:
        ConversionError: A parameter is missing, unknown, or of another shape.
    """
    if difference := compare_shapes(weights, model.state_dict()):
        raise ConversionError(f"the checkpoint does not fit AST: {difference}")
    model.load_state_dict(weights, strict=False, assign=True)


def compare_shapes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """A text on what is missing, unexpected or of wrong shape in `given`; empty if all fits."""
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    wrong = [
        f"{name} is {tuple(given[name].shape)} but must be {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name].shape != wanted[name].shape
    ]
    problems = [f"missing {_some(missing)}"] * bool(missing)
    problems += [f"unexpected {_some(unexpected)}"] * bool(unexpected)
    problems += [f"of wrong shape: {_some(wrong)}"] * bool(wrong)
    return "; ".join(problems)


def _compile(table: Mapping[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(_pattern(theirs), _template(ours)) for theirs, ours in table.items()]


def _pattern(theirs: str) -> re.Pattern:
    return re.compile(re.escape(theirs).replace(r"\#", r"(\d+)").replace(r"\*", "(.*)"))


def _template(ours: str) -> str:
    """`ours` for re.Match.expand: the first # or * becomes the first group, and so on."""
    number = itertools.count(1)
    return re.sub(r"[#*]", lambda _: rf"\g<{next(number)}>", ours)


def _apply(rules: list[tuple[re.Pattern, str]], name: str) -> str | None:
    matches = ((pattern.fullmatch(name), template) for pattern, template in rules)
    return next((match.expand(template) for match, template in matches if match), None)


def _without(prefixes: Iterable[str], name: str) -> str:
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _describe(checkpoint: Any) -> str:
    if isinstance(checkpoint, Mapping):
        return f"a dict with {_some(map(str, checkpoint)) or 'nothing in it'}"
    return f"a {type(checkpoint).__name__}"


__all__ = [
    "AST_HEAD",
    "AUTHORS_HEAD",
    "CLS",
    "DISTILLATION",
    "KERNEL",
    "POSITIONS",
    "ConversionError",
    "Renamed",
    "Weights",
    "check_finite",
    "compare_shapes",
    "load_exactly",
    "prefix_encoder",
    "refuse_other_families",
    "rename",
    "split_qkv",
    "strip_prefix",
    "unwrap",
]
