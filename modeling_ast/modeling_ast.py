"""input_values -> logits: the Audio Spectrogram Transformer.

Follows Gong, Chung, Glass, Interspeech 2021, section 2.1. Parameter names are those of the AST of
transformers 5, so that checkpoints are exchanged with it both ways.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import AttentionInterface
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checks import are_shares, checked_input, checked_labels
from .configuration_ast import ASTConfig
from .devices import sent
from .fast_layers import (
    ASTPatchProjection,
    chosen_tokens,
    encode_prefix,
    in_blocks,
    key_mask,
    may_encode_prefix,
    may_use_blocks,
    sdpa_attention,
)
from .int8_linear import use_int8
from .loading import LoadableModel, register_key_layout
from .position import (
    NUM_PREFIX_TOKENS,
    as_frame_mask,
    column_mask,
    drop_patches,
    flatten_grid,
    hides_nothing,
    token_mask,
    token_positions,
)
from .stochastic_depth import drop_branches, drop_rates

# transformers' functions, except for sdpa: ours also accepts padding-free batches. The name of the
# variable is transformers': set_attn_implementation looks for it in this file.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa_attention


class ASTPatchEmbeddings(nn.Module):
    """Cuts a spectrogram into overlapping patches and projects each to the model's width."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        strides = (config.frequency_stride, config.time_stride)
        self.projection = ASTPatchProjection(1, config.hidden_size, config.patch_shape, strides)

    def forward(self, frames: Tensor) -> Tensor:
        image = frames.unsqueeze(1).transpose(2, 3)  # (B, 1, F, T)
        patches = self.projection(image)  # (B, D, Gf, Gt)
        return flatten_grid(patches).transpose(1, 2)  # (B, N, D)


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

        The mask is returned on its own device, or None if it hides nothing. With patchout, N is
        smaller while training.
        """
        config = self.config
        grid = config.patch_grid(frames.shape[1])
        frames, columns = self._masked(frames, frame_mask)  # (B, T, F), (B, Gt) or None
        dtype = self.patch_embeddings.projection.weight.dtype
        patches = self.patch_embeddings(frames.to(dtype))  # (B, N, D)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)  # (B, 1, D)
        distillation = self.distillation_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat((cls, distillation, patches), dim=1)  # (B, N + 2, D)
        tokens += token_positions(self.position_embeddings, config.patch_grid(), grid[1], columns)
        rows = grid[0]
        if self.training and (config.patchout_frequency or config.patchout_time):
            dropped = (config.patchout_frequency, config.patchout_time)
            tokens, columns, rows = drop_patches(tokens, columns, grid, dropped)
        mask = None if columns is None else token_mask(columns, rows)  # (B, N + 2)
        return self.dropout(tokens), mask

    def _masked(self, frames: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames in which padding has the padding value, and the mask of columns with audio."""
        if frame_mask is None:
            return frames, None
        _, patch_frames = self.config.patch_shape
        columns = column_mask(frame_mask, patch_frames, self.config.time_stride)  # (B, Gt)
        is_padding = ~sent(frame_mask, frames.device).unsqueeze(-1)  # (B, T, 1)
        frames = frames.masked_fill(is_padding, self.config.padding_value)
        return frames, None if hides_nothing(columns) else columns


class ASTAttention(nn.Module):
    """Multi-head self-attention, computed by any implementation that transformers knows."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.config = config
        # Copied from the config: attribute access on PreTrainedConfig is slow in the inner loop.
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        queries: slice | Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N + 2, D) -> (B, Q, D) of the `queries`, all tokens by default; weights or None."""
        heads = (x.shape[0], -1, self.num_heads, self.head_dim)
        q = self.q_proj(chosen_tokens(x, queries)).view(heads).transpose(1, 2)  # (B, H, Q, Dh)
        k = self.k_proj(x).view(heads).transpose(1, 2)  # (B, H, N + 2, Dh)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.attention_dropout if self.training else 0.0
        x, weights = attend(
            self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )  # (B, Q, H, Dh)
        return self.o_proj(x.flatten(2)), weights  # (B, Q, D)


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
    """Attention in plain steps; the only implementation here that returns its weights.

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
    """One pre-norm encoder layer, as in ViT and DeiT.

    Args:
        drop_rate: Rate of stochastic depth, see `drop_rates`.
    """

    def __init__(self, config: ASTConfig, drop_rate: float = 0.0):
        super().__init__()
        self.drop_rate = drop_rate
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ASTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ASTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        queries: slice | Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """(B, N + 2, D) -> (B, Q, D) of the tokens `queries`, all by default."""
        if may_use_blocks(x, self.attention.config, self.training):
            parts = (self._attended, self._fed_forward)
            return in_blocks(*parts, x, attention_mask, queries, **kwargs)
        # Packed clips come with the start of each clip.
        ends = kwargs.get("cu_seq_lens_q")
        attended = self._attended(x, attention_mask, queries, **kwargs)
        x = chosen_tokens(x, queries) + self._kept(attended, ends)
        return x + self._kept(self._fed_forward(x), ends)

    def _kept(self, x: Tensor, ends: Tensor | None) -> Tensor:
        return drop_branches(x, self.drop_rate, ends) if self.training and self.drop_rate else x

    def _attended(
        self, x: Tensor, attention_mask: Tensor | None, queries: slice | Tensor | None, **kwargs
    ) -> Tensor:
        x, _ = self.attention(self.layernorm_before(x), attention_mask, queries, **kwargs)
        return self._dropped(x)

    def _fed_forward(self, x: Tensor) -> Tensor:
        return self._dropped(self.mlp(self.layernorm_after(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        # Skip the no-op dropout call: small batches are limited by Python overhead.
        return self.dropout(x) if self.dropout.training else x


class ASTPreTrainedModel(LoadableModel):
    """Settings of these models that transformers needs, and the initialisation of fresh weights."""

    config_class = ASTConfig
    config: ASTConfig
    base_model_prefix = "audio_spectrogram_transformer"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    # transformers declares these two without ClassVar.
    _no_split_modules: ClassVar = ["ASTEmbeddings", "ASTLayer"]  # type: ignore[misc]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar = {  # type: ignore[misc]
        "hidden_states": ASTLayer,
        "attentions": ASTAttention,
    }
    _input_embed_layer = "patch_embeddings"

    def __init__(self, config: ASTConfig, *args, **kwargs):
        # A field that was set after the config's construction has not been checked yet.
        config.validate_architecture()
        super().__init__(config, *args, **kwargs)

    def post_init(self):
        """As in transformers; with `int8_linear` the linear layers are replaced first."""
        if self.config.int8_linear:
            use_int8(self)
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ASTEmbeddings):
            # transformers begins with zeros, so that the two prefix tokens stay equal for ever.
            for parameter in (
                module.cls_token,
                module.distillation_token,
                module.position_embeddings,
            ):
                init.trunc_normal_(parameter, std=self.config.initializer_range)


class ASTModel(ASTPreTrainedModel):
    """The encoder: spectrogram frames -> token states, and the mean of the two prefix tokens."""

    def __init__(self, config: ASTConfig):
        super().__init__(config)
        self.embeddings = ASTEmbeddings(config)
        rates = drop_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([ASTLayer(config, rate) for rate in rates])
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
                beyond a shorter mask count as padding. A clip's outputs at the prefix tokens do not
                depend on how far it was padded. A mask on the CPU is read on the CPU, so that the
                host does not wait for a GPU to know what the mask hides.
            prefix_only: Whether the last layer may compute the prefix tokens alone, from which
                `pooler_output` is made; this saves 7 % of the work at the base size.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` (B, N + 2, D), prefix tokens first, and `pooler_output` (B, D).
            With `prefix_only`, `last_hidden_state` is (B, 2, D) if neither hidden states nor
            attentions are requested.

        Raises:
            ValueError: The shapes do not fit the config.
        """
        frames = checked_input(input_values, attention_mask, self.config.num_mel_bins)
        frame_mask = as_frame_mask(attention_mask, frames.shape[1])  # (B, T) or None
        x, mask = self.embeddings(frames, frame_mask)  # (B, N + 2, D), (B, N + 2) or None
        if prefix_only and may_encode_prefix(x, mask, self.config, kwargs):
            x = encode_prefix(self.layers, x, mask, self.config, **kwargs)  # (B, 2, D)
        else:
            mask = self._key_mask(x, mask)
            for layer in self.layers:
                x = layer(x, mask, **kwargs)  # (B, N + 2, D)
        x = self.layernorm(x)
        pooled = x[:, :NUM_PREFIX_TOKENS].mean(1)  # (B, D)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    def _key_mask(self, x: Tensor, token_mask: Tensor | None):
        """The mask in the form that the attention implementation needs."""
        if token_mask is None:
            return None
        if self.config._attn_implementation in ("eager", "sdpa"):
            return key_mask(token_mask, x.device)  # (B, 1, 1, N + 2)
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=x, attention_mask=sent(token_mask, x.device)
        )


class ASTMLPHead(nn.Module):
    """Layer norm and the linear layer to the labels."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        labels = config.num_labels or 0
        self.dense = nn.Linear(config.hidden_size, labels) if labels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.layernorm(x))  # (B, C)


class ASTForAudioClassification(ASTPreTrainedModel):
    """AST with a linear head on the pooled output, for one label, several labels or regression.

    Its last layer computes only the two prefix tokens, because the classifier reads no others;
    forward hooks on the last layer therefore see two tokens. With `output_hidden_states` or
    `output_attentions` it computes all tokens.
    """

    # BCE does not divide by the number of items that Trainer passes; Trainer then scales the
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
                numbers. `config.problem_type` says which: "single_label_classification" (indices,
                or shares that sum to 1), "multi_label_classification", "regression". If it is not
                set, it is derived from the labels and written into the config.

        Returns:
            `loss` (with labels) and `logits` (B, C).

        Raises:
            ValueError: A shape does not fit the config, or that of the labels its `problem_type`.
        """
        outputs = self.audio_spectrogram_transformer(
            input_values, attention_mask=attention_mask, prefix_only=True, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)  # (B, C)
        loss = None
        if labels is not None:
            labels = checked_labels(labels, logits, self.config)
            if are_shares(labels, logits, self.config.problem_type):
                # transformers' loss takes class indices only.
                loss = F.cross_entropy(logits, labels.to(logits.device))
            else:
                loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def freeze_feature_encoder(self) -> None:
        """Freezes the patch projection, which makes features from the spectrogram.

        transformers' run_audio_classification.py calls this by default.
        """
        self.audio_spectrogram_transformer.embeddings.patch_embeddings.requires_grad_(False)

    def freeze_base_model(self) -> None:
        """Freezes the encoder, so that only the classifier is trained."""
        self.audio_spectrogram_transformer.requires_grad_(False)


register_key_layout(ASTModel.__name__)

__all__ = ["ASTForAudioClassification", "ASTModel", "ASTPreTrainedModel"]
