"""Faster ways to compute the layers; tests show that each equals the plain one in modeling_ast.py.

- Patch projection: the convolution as one matrix product.
- Prefix only: the last layer computes only the two tokens that a classifier reads, which saves 7 %
  of all work.
- Padding-free batches on a GPU: the tokens of all clips in one sequence, attended with
  variable-length attention. With a key mask, attention would take 1.8 times as long as cuDNN's, and
  0.1 s more for each new pair of batch size and length; many files have many such pairs.
- Blocks on a CPU: a few clips and then a few tokens at a time, which stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import logging
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing

from .devices import sent
from .position import NUM_PREFIX_TOKENS

logger = logging.get_logger(__name__)

# Tokens of a block. The widest tensors of a layer then have 8 MB (base size, float32). Larger ones
# do not fit into the cache, and malloc returns them to the system after each use, which costs
# 10,000 page faults for each clip and layer: a tenth of the time.
CPU_BLOCK_TOKENS = 640


class ASTPatchProjection(nn.Conv2d):
    """The convolution as one matrix product; cuDNN's takes 7 % of a forward pass of base size."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, F, T) -> (B, D, Gf, Gt)."""
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            # Other runtimes compute convolutions fast, and their graph accepts any length.
            return super().forward(image)
        (height, width), (down, right) = self.kernel_size, self.stride
        # Mel bins come last, as in memory, so that patches are copied in runs, not one by one.
        patches = image[:, 0].mT.unfold(1, width, right).unfold(2, height, down)
        patches = patches.transpose(1, 2).flatten(3)  # (B, Gf, Gt, width * height)
        x = F.linear(patches, self.weight.mT.flatten(1), self.bias)  # (B, Gf, Gt, D)
        return x.permute(0, 3, 1, 2)


def chosen_tokens(x: Tensor, queries: slice | Tensor | None) -> Tensor:
    """The tokens `queries`; None stands for all: (B, N + 2, D) -> (B, Q, D)."""
    # Skip the no-op indexing: small batches are limited by Python overhead.
    return x if queries is None else x[:, queries]


def may_encode_prefix(
    x: Tensor, token_mask: Tensor | None, config: PreTrainedConfig, asked: dict
) -> bool:
    """Whether `encode_prefix` computes everything that the call requests, with this attention.

    Args:
        x: (B, N + 2, D).
        token_mask: (B, N + 2) or None.
        asked: Keywords of the model's call, such as `output_hidden_states`.
    """
    for name in ("output_hidden_states", "output_attentions"):
        if asked.get(name) or getattr(config, name):
            return False
    if config._attn_implementation in ("eager", "sdpa"):
        return True
    # Flash kernels accept fewer queries than keys, but their masks need as many queries as keys: a
    # batch with padding must be packed. Masks of other kinds of attention, such as flex, need that
    # too.
    return is_flash_attention_requested(config) and (token_mask is None or may_pack(x, config))


def encode_prefix(
    layers: Iterable[nn.Module],
    x: Tensor,
    token_mask: Tensor | None,
    config: PreTrainedConfig,
    **kwargs,
) -> Tensor:
    """The prefix tokens after the last layer, which computes no other tokens.

    Args:
        layers: At least one; they take x, a key mask, `queries` and keywords of the attention.
        x: (B, N + 2, D).
        token_mask: (B, N + 2), true where a token is not padding, or None.
        config: Names the attention in use; see `may_encode_prefix`.
        kwargs: Passed to all layers.
    Returns:
        (B, 2, D).
    """
    if token_mask is not None and may_pack(x, config):
        return _encode_packed(layers, x, token_mask, **kwargs)
    mask = None if token_mask is None else key_mask(token_mask, x.device)
    *others, last = layers
    for layer in others:
        x = layer(x, mask, **kwargs)  # (B, N + 2, D)
    return last(x, mask, queries=slice(NUM_PREFIX_TOKENS), **kwargs)


def key_mask(token_mask: Tensor, device: torch.device) -> Tensor:
    """(B, N + 2) -> (B, 1, 1, N + 2) on `device`, for eager attention and sdpa.

    transformers' own masks would be (N + 2) x (N + 2) for each clip.
    """
    return sent(token_mask, device)[:, None, None, :]


def _encode_packed(layers: Iterable[nn.Module], x: Tensor, token_mask: Tensor, **kwargs) -> Tensor:
    """`encode_prefix` without padding: the S tokens of all clips in one sequence.

    A mask on the CPU is read on the CPU, so that the host does not wait for a GPU.
    """
    clips, _, width = x.shape
    counts = token_mask.sum(1)  # (B,)
    longest = int(counts.max())
    starts = F.pad(counts.cumsum(0), (1, 0)).int()  # (B + 1,): of each clip, and the last end
    tokens = token_mask.flatten().nonzero().squeeze(1)  # (S,), among the B * (N + 2)
    starts, tokens = sent(starts, x.device), sent(tokens, x.device)
    x = x.flatten(0, 1)[tokens].unsqueeze(0)  # (1, S, D)
    keys = {"cu_seq_lens_k": starts, "max_length_k": longest}
    *others, last = layers
    for layer in others:
        x = layer(x, cu_seq_lens_q=starts, max_length_q=longest, **keys, **kwargs)
    size = NUM_PREFIX_TOKENS
    prefix = starts[:-1].unsqueeze(1) + torch.arange(size, device=x.device)  # (B, 2), among the S
    ends = torch.arange(0, size * clips + 1, size, dtype=torch.int32, device=x.device)  # (B + 1,)
    prefix_only = {"queries": prefix.flatten(), "cu_seq_lens_q": ends, "max_length_q": size}
    x = last(x, **prefix_only, **keys, **kwargs)  # (1, 2B, D)
    return x.view(clips, size, width)


def may_pack(x: Tensor, config: PreTrainedConfig) -> bool:
    """Whether the attention in use accepts packed clips (`cu_seq_lens_q` and the like)."""
    if is_tracing(x):
        return False
    if config._attn_implementation == "sdpa":
        return _has_flash_kernel(x, x.shape[-1] // config.num_attention_heads)
    return is_flash_attention_requested(config)


def _has_flash_kernel(x: Tensor, head_dim: int) -> bool:
    return (
        x.is_cuda
        and torch.version.hip is None
        and head_dim % 8 == 0
        and head_dim <= 256
        and x.dtype in (torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """Attention by torch's fused kernels, of padded clips and of packed ones.

    transformers' function of that name is not used: its last reshape ties an exported graph to one
    number of frames.

    Args:
        query: (B, H, Q, Dh); of packed clips (1, H, Q, Dh).
        key, value: (B, H, N + 2, Dh); of packed clips (1, H, S, Dh).
        attention_mask: (B, 1, 1, N + 2), true where a key may be seen, or None.
        cu_seq_lens_q, cu_seq_lens_k: (B + 1,), int32: where the queries and the keys of each
            packed clip begin, and the end of the last. The names are transformers'.
        max_length_q, max_length_k: Most queries and most keys of a clip.
    Returns:
        (B, Q, H, Dh), and no weights.
    """
    if kwargs.get("output_attentions"):
        logger.warning_once(
            'sdpa gives no attentions; load the model with attn_implementation="eager"'
        )
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        x = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return x.transpose(1, 2), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (Q or S, H, Dh)
    # torch.nn.attention.varlen is not used: from torch 2.14 on it may choose cuDNN.
    attend = torch.ops.aten._flash_attention_forward
    ends = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    # False, False: the attention is not causal, and no weights are returned.
    x = attend(q, k, v, *ends, dropout, False, False, scale=scaling)[0]  # (Q, H, Dh)
    return x.unsqueeze(0), None


def may_use_blocks(x: Tensor, config: PreTrainedConfig, training: bool) -> bool:
    """Whether `in_blocks` may compute a layer: on a CPU, if no gradient is needed."""
    # Only sdpa: eager must return all attention weights at once; flex and flash masks have no
    # batch axis to split.
    if x.device.type != "cpu" or config._attn_implementation != "sdpa":
        return False
    return not (training or torch.is_grad_enabled() or is_tracing(x))


def in_blocks(
    attended: Callable[..., Tensor],
    fed_forward: Callable[[Tensor], Tensor],
    x: Tensor,
    attention_mask: Tensor | None,
    queries: slice | Tensor | None,
    **kwargs,
) -> Tensor:
    """A layer in blocks of clips, then of tokens; the last block of each may be smaller.

    Args:
        attended: x, mask, `queries` and `kwargs` -> what attention adds to the `queries` of x.
        fed_forward: x -> what the feed-forward half adds to it.
        x: (B, N + 2, D).
        attention_mask: (B, 1, 1, N + 2) or None.
        queries: Which Q of the tokens to compute, None for all.
    Returns:
        (B, Q, D).
    """
    clips = max(1, CPU_BLOCK_TOKENS // x.shape[1])
    masks = repeat(None) if attention_mask is None else attention_mask.split(clips)
    wanted = chosen_tokens(x, queries)
    out = x.new_empty(wanted.shape)  # (B, Q, D)
    for block, mask, old, new in zip(x.split(clips), masks, wanted.split(clips), out.split(clips)):
        torch.add(old, attended(block, mask, queries, **kwargs), out=new)
    for block in out.flatten(0, 1).split(CPU_BLOCK_TOKENS):
        block += fed_forward(block)  # (tokens, D)
    return out


__all__ = [
    "CPU_BLOCK_TOKENS",
    "ASTPatchProjection",
    "chosen_tokens",
    "encode_prefix",
    "in_blocks",
    "key_mask",
    "may_encode_prefix",
    "may_pack",
    "may_use_blocks",
    "sdpa_attention",
]
