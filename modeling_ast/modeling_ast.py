"""input_values -> logits: the Audio Spectrogram Transformer.

Follows Gong, Chung, Glass, Interspeech 2021, section 2.1. Parameter names are those of the AST of
transformers 5, so that checkpoints are exchanged with it both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import repeat
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .configuration_ast import ASTConfig
from .packing_ast import Packing, may_pack
from .position_ast import column_mask, draw_kept, resize_position_grid, time_positions
from .transfer_ast import sent

logger = logging.get_logger(__name__)

NUM_PREFIX_TOKENS = 2
# Tokens that a layer takes at a time where no gradient is wanted, on a CPU: its widest tensors then
# have 8 MB (base size, float32). Larger ones fall out of the cache, and malloc hands them back to
# the system after each use: 10,000 page faults for each clip and layer, a tenth of the time.
CPU_PIECE_TOKENS = 640
# What from_pretrained may change: the grid then differs and its position table is refitted.
GRID_FIELDS = ("max_length", "num_mel_bins", "frequency_stride", "time_stride")
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


class ASTPatchProjection(nn.Conv2d):
    """The convolution as one matrix product: cuDNN's takes 7 % of the base size's forward."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, F, T) -> (B, D, Gf, Gt)."""
        (height, width), (down, right) = self.kernel_size, self.stride
        # Mel bins last, as they lie in memory: a patch is copied in runs and not number by number.
        patches = image[:, 0].mT.unfold(1, width, right).unfold(2, height, down)
        patches = patches.transpose(1, 2).flatten(3)  # (B, Gf, Gt, width * height)
        x = F.linear(patches, self.weight.mT.flatten(1), self.bias)  # (B, Gf, Gt, D)
        return x.permute(0, 3, 1, 2)


class ASTPatchEmbeddings(nn.Module):
    """Cuts a spectrogram into overlapping patches and projects each to the model's width."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        strides = (config.frequency_stride, config.time_stride)
        self.projection = ASTPatchProjection(1, config.hidden_size, config.patch_shape, strides)

    def forward(self, frames: Tensor) -> Tensor:
        image = frames.unsqueeze(1).mT  # (B, 1, F, T)
        patches = self.projection(image)  # (B, D, Gf, Gt)
        return patches.flatten(2).mT  # (B, N, D)


class ASTEmbeddings(nn.Module):
    """Patches, the two prefix tokens of DeiT in front of them, and a learned position for each."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = ASTPatchEmbeddings(config)
        num_positions = config.num_patches() + NUM_PREFIX_TOKENS
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, frames: Tensor, frame_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, F) and a mask (B, T) -> tokens (B, N + 2, D) and their mask (B, N + 2).

        The mask comes back on its own device, or None if it hides nothing. With patchout, N is
        smaller while training.
        """
        rows, width = self.config.patch_grid(frames.shape[1])
        columns = None
        if frame_mask is not None:
            columns = column_mask(frame_mask, self.config.patch_shape[1], self.config.time_stride)
            columns = None if _hides_nothing(columns) else columns
            is_padding = ~sent(frame_mask, frames.device).unsqueeze(-1)  # (B, T, 1)
            frames = frames.masked_fill(is_padding, self.config.padding_value)
        weight = self.patch_embeddings.projection.weight
        prefix = [x.expand(len(frames), -1, -1) for x in (self.cls_token, self.distillation_token)]
        # (B, N, D), and with the prefix (B, N + 2, D)
        tokens = torch.cat((*prefix, self.patch_embeddings(frames.to(weight.dtype))), dim=1)
        tokens += self._positions(width, columns)
        if self.training and (self.config.patchout_frequency or self.config.patchout_time):
            tokens, columns, rows = self._patchout(tokens, columns, (rows, width))
        if columns is not None:
            # Each row of the grid has the same columns: (B, Gt) -> (B, N) -> (B, N + 2)
            columns = F.pad(columns.repeat(1, rows), (NUM_PREFIX_TOKENS, 0), value=True)
        return self.dropout(tokens), columns

    def _patchout(
        self, tokens: Tensor, columns: Tensor | None, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None, int]:
        """Drops whole rows and columns of each clip's grid: tokens, column mask, rows left."""
        prefix, patches = tokens.split((NUM_PREFIX_TOKENS, grid[0] * grid[1]), dim=1)
        audible = patches.new_ones((len(patches), grid[1]), dtype=torch.bool)  # (B, Gt)
        columns = None if columns is None else sent(columns, patches.device)
        kept = draw_kept(~(audible if columns is None else columns), self.config.patchout_time)
        is_padding = patches.new_zeros((len(patches), grid[0]), dtype=torch.bool)  # (B, Gf)
        kept_rows = draw_kept(is_padding, self.config.patchout_frequency)
        index = (kept_rows.unsqueeze(2) * grid[1] + kept.unsqueeze(1)).flatten(1)  # (B, N)
        # Not take_along_dim, which compares sizes: compiled, it would be so for one length only.
        index = index.unsqueeze(-1).expand(-1, -1, patches.shape[2])  # (B, N, D)
        patches = patches.gather(1, index)
        columns = None if columns is None else columns.gather(1, kept)
        columns = None if columns is None or _hides_nothing(columns) else columns
        return torch.cat((prefix, patches), dim=1), columns, kept_rows.shape[1]

    def _positions(self, width: int, columns: Tensor | None) -> Tensor:
        """Positions (1 or B, Gf * width + 2, D), read from the learned table."""
        grid, table = self.config.patch_grid(), self.position_embeddings
        if columns is None and width == grid[1]:
            return table
        if columns is None:
            own = torch.full((1,), width, device=table.device)
        else:
            columns = sent(columns, table.device)
            index = torch.arange(1, width + 1, device=columns.device)
            own = (columns * index).amax(1)  # (B,): each clip's last column
        prefix, table = table.split((NUM_PREFIX_TOKENS, grid[0] * grid[1]), dim=1)
        positions = time_positions(table, grid, own, width)  # (1 or B, Gf * width, D)
        return torch.cat((prefix.expand(len(positions), -1, -1), positions), dim=1)


class ASTAttention(nn.Module):
    """Multi-head self-attention, computed by any implementation that transformers knows."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.config = config
        # A config is slow to ask.
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        # sdpa asks for it, and a module takes long to say that it has none.
        self.num_key_value_groups = 1
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | Packing | None = None,
        num_queries: int | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N + 2, D) -> the same of the first `num_queries` tokens (Q; all by default)."""
        heads = (x.shape[0], -1, self.num_heads, self.head_dim)
        q = self.q_proj(first_tokens(x, attention_mask, num_queries)).view(heads)  # (B, Q, H, Dh)
        k = self.k_proj(x).view(heads)  # (B, N + 2, H, Dh)
        v = self.v_proj(x).view(heads)
        if isinstance(attention_mask, Packing):
            x, weights = attention_mask.attend(q, k, v, num_queries, self.scaling), None
        else:
            attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention
            )
            q = q.transpose(1, 2)  # (B, H, Q, Dh)
            k = k.transpose(1, 2)  # (B, H, N + 2, Dh)
            v = v.transpose(1, 2)
            dropout = self.attention_dropout if self.training else 0.0
            x, weights = attend(
                self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )  # (B, Q, H, Dh)
        x = x.flatten(2)  # (B, Q, D)
        return self.o_proj(x), weights


def first_tokens(x: Tensor, mask: Tensor | Packing | None, count: int | None) -> Tensor:
    """Each clip's first `count` tokens (all for None): (B, N + 2, D) -> (B, Q, D)."""
    if count is None:
        return x
    return mask.first(x, count) if isinstance(mask, Packing) else x[:, :count]


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention in plain steps, the one implementation that returns its weights.

    Args:
        query: (B, H, Q, Dh).
        key, value: (B, H, N + 2, Dh).
        attention_mask: (B, 1, 1, N + 2), true where a key may be seen, or None.
    Returns:
        (B, Q, H, Dh) and the weights (B, H, Q, N + 2).
    """
    scores = query @ key.mT * scaling  # (B, H, Q, N + 2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class ASTMLP(nn.Module):
    """The feed-forward half of a layer."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class ASTLayer(GradientCheckpointingLayer):
    """One pre-norm encoder layer, as in ViT and DeiT."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ASTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ASTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | Packing | None = None,
        num_queries: int | None = None,
        **kwargs,
    ) -> Tensor:
        """(B, N + 2, D) -> (B, Q, D): all tokens, or the first `num_queries`."""
        if self._may_work_in_pieces(x):
            return self._in_pieces(x, attention_mask, num_queries, **kwargs)
        attended, _ = self.attention(
            self.layernorm_before(x), attention_mask, num_queries, **kwargs
        )
        x = first_tokens(x, attention_mask, num_queries) + self._dropped(attended)
        return x + self._dropped(self.mlp(self.layernorm_after(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        # A small batch waits for the host, and a module that does nothing still takes its time.
        return self.dropout(x) if self.dropout.training else x

    def _may_work_in_pieces(self, x: Tensor) -> bool:
        # Other implementations return weights, which are wanted whole, or take masks of no batch.
        wanted = x.device.type == "cpu" and self.attention.config._attn_implementation == "sdpa"
        return wanted and not (self.training or torch.is_grad_enabled() or is_tracing(x))

    def _in_pieces(
        self, x: Tensor, attention_mask: Tensor | None, num_queries: int | None, **kwargs
    ) -> Tensor:
        """The same, a few clips and then a few tokens at a time, each added in place."""
        clips = max(1, CPU_PIECE_TOKENS // x.shape[1])
        masks = repeat(None) if attention_mask is None else attention_mask.split(clips)
        wanted = x[:, :num_queries]
        out = x.new_empty(wanted.shape)  # (B, Q, D)
        for piece, mask, old, new in zip(
            x.split(clips), masks, wanted.split(clips), out.split(clips)
        ):
            attended, _ = self.attention(self.layernorm_before(piece), mask, num_queries, **kwargs)
            torch.add(old, self._dropped(attended), out=new)
        for piece in out.flatten(0, 1).split(CPU_PIECE_TOKENS):
            piece += self._dropped(self.mlp(self.layernorm_after(piece)))  # (tokens, D)
        return out


class ASTPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, shared by the models of this file."""

    config_class = ASTConfig
    config: ASTConfig
    base_model_prefix = "audio_spectrogram_transformer"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ASTEmbeddings", "ASTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar[dict[str, type[nn.Module]]] = {
        "hidden_states": ASTLayer,
        "attentions": ASTAttention,
    }
    _input_embed_layer = "patch_embeddings"

    def __init__(self, config: ASTConfig, *args, **kwargs):
        # A field set after the config's construction has not met the others yet.
        config.validate_architecture()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ASTEmbeddings):
            # Not zeros, as in transformers: the two prefix tokens would stay equal for ever.
            for parameter in (
                module.cls_token,
                module.distillation_token,
                module.position_embeddings,
            ):
                init.trunc_normal_(parameter, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs
    ) -> ASTPreTrainedModel:
        """As in transformers, and `max_length`, `num_mel_bins`, `frequency_stride` and
        `time_stride` may differ from the checkpoint's: its position grid is refitted.

        Source: Gong et al. 2021, section 2.2 ("cut and bilinear interpolate").
        """
        load = super().from_pretrained
        stored = _stored_config(pretrained_model_name_or_path, kwargs)
        wanted = _wanted_grid(stored, config, kwargs)
        if wanted is None:
            return load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            for name in GRID_FIELDS:
                setattr(config, name, getattr(stored, name))
        kwargs = {name: value for name, value in kwargs.items() if name not in GRID_FIELDS}
        loaded = load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.resize_grid(**wanted)
        return loaded

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As in torch, and also in the key layout of saved files.

        Trainer resumes, and loads its best model, by handing over a file's content as it is
        (transformers issue 43701): otherwise no layer would be restored, with a mere warning.
        """
        own = self.state_dict().keys()
        transforms = get_model_conversion_mapping(self)
        renamed = {}
        for name, tensor in state_dict.items():
            new_name = name
            if name not in own:
                for transform in transforms:
                    new_name, _ = transform.rename_source_key(new_name)
            renamed[new_name] = tensor
        return super().load_state_dict(renamed, strict=strict, assign=assign)

    @torch.no_grad()
    def resize_grid(
        self,
        max_length: int | None = None,
        num_mel_bins: int | None = None,
        frequency_stride: int | None = None,
        time_stride: int | None = None,
    ) -> None:
        """Changes the input size or the strides in place and refits the position table.

        Args:
            max_length: Frames the position table is for.
            num_mel_bins: Mel bins of the input; build the matching extractor with
                `ASTFeatureExtractor.from_config(model.config)`.
            frequency_stride, time_stride: From one patch to the next, in mel bins and frames.

        Raises:
            StrictDataclassError: The values describe no possible grid.

        Source: Gong et al. 2021, section 2.2; see `resize_position_grid`.
        """
        given = (max_length, num_mel_bins, frequency_stride, time_stride)
        changes = {name: value for name, value in zip(GRID_FIELDS, given) if value is not None}
        new_config = ASTConfig.from_dict({**self.config.to_dict(), **changes})
        old, new = self.config.patch_grid(), new_config.patch_grid()
        for name, value in changes.items():
            setattr(self.config, name, value)
        embeddings = next(m for m in self.modules() if isinstance(m, ASTEmbeddings))
        strides = (self.config.frequency_stride, self.config.time_stride)
        embeddings.patch_embeddings.projection.stride = strides
        if new == old:
            return
        table = embeddings.position_embeddings
        prefix, patches = table[:, :NUM_PREFIX_TOKENS], table[:, NUM_PREFIX_TOKENS:]
        table.data = torch.cat((prefix, resize_position_grid(patches, old, new)), dim=1)
        logger.warning(
            f"the position grid was refitted from {old[0]} x {old[1]} to {new[0]} x {new[1]} "
            f"patches (frequency x time) for {changes}; fine-tune before you trust the scores"
        )


def _stored_config(name_or_path, kwargs: dict) -> ASTConfig | None:
    """The checkpoint's own config, or None where there is none (its absence is reported later)."""
    if name_or_path is None:
        return None
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    try:
        return ASTConfig.from_pretrained(name_or_path, **hub)
    except OSError:
        return None


def _wanted_grid(stored: ASTConfig | None, config, kwargs: dict) -> dict[str, int] | None:
    """The grid fields asked for, if they differ from the checkpoint's."""
    if stored is None:
        return None
    if isinstance(config, PreTrainedConfig):
        wanted = {name: getattr(config, name) for name in GRID_FIELDS}
    elif config is None:
        wanted = {name: kwargs[name] for name in GRID_FIELDS if name in kwargs}
    else:
        return None
    # Refuses impossible values now, before any weight is read.
    ASTConfig.from_dict({**stored.to_dict(), **wanted})
    differs = any(getattr(stored, name) != value for name, value in wanted.items())
    return wanted if differs else None


class ASTModel(ASTPreTrainedModel):
    """The encoder: spectrogram frames -> token states, and the mean of the two prefix tokens."""

    def __init__(self, config: ASTConfig):
        super().__init__(config)
        self.embeddings = ASTEmbeddings(config)
        self.layers = nn.ModuleList([ASTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> ASTPatchEmbeddings:
        return self.embeddings.patch_embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        prefix_only: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encodes spectrograms of any length from one patch up.

        Args:
            input_values: (B, T, F), from `ASTFeatureExtractor`.
            attention_mask: (B, T), true or 1 where a frame is audio, padding on the right. Frames
                beyond a shorter mask count as padding. A clip's outputs at the prefix tokens are
                those it has alone, however far it was padded. A mask on the CPU is read there, and
                the host does not wait for a GPU to know what it hides.
            prefix_only: The last layer may compute the prefix tokens alone, of which
                `pooler_output` is made: 7 % less work at the base size.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` (B, N + 2, D), prefix tokens first, and `pooler_output` (B, D).
            With `prefix_only`, (B, 2, D) if neither states nor attentions are asked for.

        Raises:
            ValueError: The shapes do not fit the config.
        """
        self._check_shapes(input_values, attention_mask)
        frame_mask = self._frame_mask(input_values, attention_mask)
        x, token_mask = self.embeddings(input_values, frame_mask)  # (B, N + 2, D)
        prefix_only &= self._attends_with_key_mask() and not self._are_states_wanted(kwargs)
        if prefix_only and token_mask is not None and self._may_pack(x):
            mask = Packing.of(token_mask, x.device)
            x = mask.pack(x)  # (1, S, D)
        else:
            mask = self._key_mask(x, token_mask)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, mask, **kwargs)
        x = last(x, mask, num_queries=NUM_PREFIX_TOKENS if prefix_only else None, **kwargs)
        if isinstance(mask, Packing):
            x = x.view(len(input_values), NUM_PREFIX_TOKENS, -1)  # (1, 2B, D) -> (B, 2, D)
        x = self.layernorm(x)
        pooled = x[:, :NUM_PREFIX_TOKENS].mean(1)  # (B, D)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    def _check_shapes(self, input_values: Tensor | None, attention_mask: Tensor | None) -> None:
        if input_values is None:
            raise ValueError("input_values is None; pass what ASTFeatureExtractor returns")
        bins = self.config.num_mel_bins
        if input_values.ndim != 3 or input_values.shape[2] != bins:
            raise ValueError(
                f"input_values has shape {tuple(input_values.shape)} but must be (clips, frames, "
                f"{bins} mel bins); ASTFeatureExtractor.from_config(model.config) makes these"
            )
        if attention_mask is None:
            return
        fits = attention_mask.ndim == 2 and len(attention_mask) == len(input_values)
        if not fits or attention_mask.shape[1] > input_values.shape[1]:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)} but must be (clips, "
                f"frames), here {tuple(input_values.shape[:2])}; pass the extractor's mask"
            )

    def _frame_mask(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """The mask as booleans (B, T), where it lies, or None if it hides nothing."""
        if attention_mask is None:
            return None
        missing = input_values.shape[1] - attention_mask.shape[1]
        mask = F.pad(attention_mask.bool(), (0, missing), value=False)
        return None if _hides_nothing(mask) else mask

    def _key_mask(self, x: Tensor, token_mask: Tensor | None):
        """The mask in the form that the attention implementation wants."""
        if token_mask is None:
            return None
        if self._attends_with_key_mask():
            # A mask over keys is enough: transformers' own would be N x N for each clip.
            return sent(token_mask, x.device)[:, None, None, :]  # (B, 1, 1, N + 2)
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=x, attention_mask=sent(token_mask, x.device)
        )

    def _may_pack(self, x: Tensor) -> bool:
        heads = self.config.num_attention_heads
        is_fused = self.config._attn_implementation == "sdpa"
        if not is_fused or self.training or is_tracing(x):
            return False
        return may_pack(x, x.shape[2] // heads)

    def _attends_with_key_mask(self) -> bool:
        return self.config._attn_implementation in ("eager", "sdpa")

    def _are_states_wanted(self, kwargs: dict) -> bool:
        names = ("output_hidden_states", "output_attentions")
        return any(kwargs.get(name) or getattr(self.config, name) for name in names)


def _hides_nothing(mask: Tensor) -> bool:
    """Whether all is true. A traced graph must not depend on it and keeps the mask."""
    return not is_tracing(mask) and bool(mask.all())


class ASTMLPHead(nn.Module):
    """Layer norm and the linear layer to the labels."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        has_labels = config.num_labels > 0
        self.dense = (
            nn.Linear(config.hidden_size, config.num_labels) if has_labels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.layernorm(x))  # (B, C)


class ASTForAudioClassification(ASTPreTrainedModel):
    """AST with a linear head on the pooled output, for one label, several labels or regression.

    Its last layer computes the two prefix tokens alone, for nobody reads the others: a hook there
    sees two. Ask for `output_hidden_states` or `output_attentions`, and it computes all.
    """

    # BCE does not divide by the number of items that Trainer hands over; Trainer then scales the
    # loss by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: ASTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.audio_spectrogram_transformer = ASTModel(config)
        self.classifier = ASTMLPHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classifies spectrograms; see `ASTModel.forward` for `input_values` and the mask.

        Args:
            labels: (B,) class indices, (B, C) zeros and ones (or shares, after mixup), or (B,)
                numbers; `config.problem_type` says which: "single_label_classification",
                "multi_label_classification", "regression". Unset, it is taken from the labels
                and written into the config.

        Returns:
            `loss` (with labels) and `logits` (B, C).
        """
        outputs = self.audio_spectrogram_transformer(
            input_values, attention_mask=attention_mask, prefix_only=True, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)  # (B, C)
        loss = None
        if labels is not None:
            loss = self.loss_function(self._typed(labels, logits), logits, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _typed(self, labels: Tensor, logits: Tensor) -> Tensor:
        """`labels` in the type that the loss of its kind takes: multi-hot integers as floats."""
        one_for_each_class = self.num_labels > 1 and labels.shape == logits.shape
        if self.config.problem_type is None and one_for_each_class:
            self.config.problem_type = "multi_label_classification"
        if self.config.problem_type in ("multi_label_classification", "regression"):
            return labels.to(logits.dtype)
        return labels


# Files on the Hub have the key layout of transformers 4. Registering transformers' own mapping for
# our class makes loading translate it and saving write it; here and not in the package's
# __init__.py, because this file also runs alone, as code that travels with a checkpoint.
register_checkpoint_conversion_mapping(
    ASTModel.__name__, get_checkpoint_conversion_mapping(ASTModel.__name__), overwrite=True
)

__all__ = ["ASTForAudioClassification", "ASTModel", "ASTPreTrainedModel"]
