"""The patch grid: which patches are padding or left out, and the learned position of each.

Grids are (frequency, time) and always passed as two integers; patch n = gf * Gt + gt. Follows Gong
et al. 2021, section 2.2, and the authors' src/models/ast_models.py for the rules they state there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from transformers.utils.import_utils import is_tracing

from .devices import sent

# The CLS and the distillation token, in front of the patches.
NUM_PREFIX_TOKENS = 2


def hides_nothing(mask: Tensor) -> bool:
    """Whether a mask is true everywhere. While a graph is traced the answer is False, because the
    graph must not depend on the values."""
    return not is_tracing(mask) and bool(mask.all())


def as_frame_mask(attention_mask: Tensor | None, num_frames: int) -> Tensor | None:
    """Which frames are audio.

    Args:
        attention_mask: (B, any number of frames up to `num_frames`), true or 1 for audio.
        num_frames: T; frames beyond the mask count as padding.
    Returns:
        (B, T), boolean, on the mask's device, or None if it hides nothing.
    """
    if attention_mask is None:
        return None
    missing = num_frames - attention_mask.shape[1]
    mask = F.pad(attention_mask.bool(), (0, missing), value=False)
    return None if hides_nothing(mask) else mask


def flatten_grid(patches: Tensor) -> Tensor:
    """(B, D, Gf, Gt) -> (B, D, N): patch n = gf * Gt + gt."""
    if torch.compiler.is_exporting():
        # The same result as flatten, which torch.export cannot prove to be right for every Gt.
        return torch.cat(patches.unbind(2), dim=2)
    return patches.flatten(2)


def column_mask(frame_mask: Tensor, patch_frames: int, time_stride: int) -> Tensor:
    """Which columns of the patch grid hold audio: those in which all frames are audio.

    A clip with fewer real frames than one patch keeps its first column, so that a very short clip
    is not fully masked.

    Args:
        frame_mask: (B, T), true where a frame is audio.
        patch_frames: Frames that one patch spans.
        time_stride: Frames from one column to the next.
    Returns:
        (B, Gt), boolean.
    """
    columns = frame_mask.unfold(1, patch_frames, time_stride).all(-1)  # (B, Gt)
    first = torch.arange(columns.shape[1], device=columns.device) == 0
    return columns | (first & ~columns.any(1, keepdim=True))


def token_mask(columns: Tensor, rows: int) -> Tensor:
    """The mask of all tokens: (B, Gt) -> (B, Gf * Gt + 2). The prefix tokens are never hidden."""
    # Each row of the grid has the same columns.
    return F.pad(columns.repeat(1, rows), (NUM_PREFIX_TOKENS, 0), value=True)


def token_positions(
    table: Tensor, grid: tuple[int, int], width: int, columns: Tensor | None
) -> Tensor:
    """Positions of the prefix tokens and patches of a batch.

    Args:
        table: (1, Gf * Gt + 2, D), learned for `grid`.
        grid: (Gf, Gt) of `table`.
        width: Columns of the batch.
        columns: (B, width), true where a column is audio, or None if all are.
    Returns:
        (1 or B, Gf * width + 2, D), in the dtype of `table`.
    """
    if columns is None and _is_known_to_be(width, grid[1]):
        return table
    if columns is None:
        own = torch.full((1,), width, device=table.device)
    else:
        columns = sent(columns, table.device)
        index = torch.arange(1, width + 1, device=columns.device)
        own = (columns * index).amax(1)  # (B,): each clip's last column
    prefix, table = table.split((NUM_PREFIX_TOKENS, grid[0] * grid[1]), dim=1)
    positions = time_positions(table, grid, own, width)  # (1 or B, Gf * width, D)
    return torch.cat((prefix.expand(positions.shape[0], -1, -1), positions), dim=1)


def _is_known_to_be(size: int, number: int) -> bool:
    """Whether the two are equal. While a graph for any size is traced the answer is False, so that
    the graph stays valid for any size."""
    return not isinstance(size, Tensor) and statically_known_true(size == number)


def time_positions(table: Tensor, grid: tuple[int, int], columns: Tensor, width: int) -> Tensor:
    """Positions for clips of any length, read from a table learned for `grid`.

    A clip with at most Gt columns takes the table's first ones; a longer clip takes the table
    interpolated linearly in time to its own number of columns (align_corners=False).

    Args:
        table: (1, Gf * Gt, D), without the prefix tokens.
        grid: (Gf, Gt) of `table`.
        columns: (B,), each clip's number of columns.
        width: Columns of the batch; those beyond a clip's own are padding and hold any value.
    Returns:
        (B, Gf * width, D), in the dtype of `table`.
    """
    rows, learned = grid
    scale = (learned / columns.clamp(min=learned)).unsqueeze(1)  # (B, 1)
    source = (torch.arange(width, device=table.device) + 0.5) * scale - 0.5  # (B, width)
    source = source.clamp(0, learned - 1)
    low = source.floor().long()
    high = (low + 1).clamp(max=learned - 1)
    weight = (source - low).unsqueeze(-1).to(table.dtype)  # (B, width, 1)
    table = table.view(rows, learned, -1)  # (Gf, Gt, D)
    positions = torch.lerp(table[:, low], table[:, high], weight)  # (Gf, B, width, D)
    # flatten is not used: torch.export cannot prove that it is right for every width.
    return torch.cat(positions.unbind(0), dim=1)  # (B, Gf * width, D)


def draw_kept(is_padding: Tensor, dropped: int) -> Tensor:
    """Draws which rows, or which columns, of the patch grid each clip keeps, uniformly.

    Args:
        is_padding: (B, G), true for rows or columns without audio. These are dropped first, so that
            a very short clip of a batch is not fully masked.
        dropped: How many of the G are dropped; one is kept in any case.
    Returns:
        (B, G - dropped), ascending indices.
    """
    kept = max(1, is_padding.shape[1] - dropped)
    order = torch.rand(is_padding.shape, device=is_padding.device) + is_padding
    return order.argsort(dim=1)[:, :kept].sort(dim=1).values


def drop_patches(
    tokens: Tensor, columns: Tensor | None, grid: tuple[int, int], dropped: tuple[int, int]
) -> tuple[Tensor, Tensor | None, int]:
    """Patchout: drops whole rows and columns of each clip's grid, drawn anew at each call.

    Args:
        tokens: (B, Gf * Gt + 2, D), with the prefix tokens, which are all kept.
        columns: (B, Gt), true where a column is audio, or None if all are.
        grid: (Gf, Gt).
        dropped: How many rows and columns are dropped.
    Returns:
        The kept tokens (B, N + 2, D), the mask of the kept columns or None if it hides nothing,
        and the number of rows kept.
    Source: Koutini et al. 2022 (PaSST), structured patchout; they draw once for a whole batch.
    """
    rows, width = grid
    prefix, patches = tokens.split((NUM_PREFIX_TOKENS, rows * width), dim=1)
    is_padding = patches.new_zeros((patches.shape[0], width), dtype=torch.bool)  # (B, Gt)
    if columns is not None:
        columns = sent(columns, patches.device)
        is_padding = ~columns
    kept_columns = draw_kept(is_padding, dropped[1])
    no_padding = patches.new_zeros((patches.shape[0], rows), dtype=torch.bool)  # (B, Gf)
    kept_rows = draw_kept(no_padding, dropped[0])
    index = (kept_rows.unsqueeze(2) * width + kept_columns.unsqueeze(1)).flatten(1)  # (B, N)
    # take_along_dim is not used: it compares sizes, which ties a compiled graph to one length.
    patches = patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[2]))
    if columns is not None:
        columns = columns.gather(1, kept_columns)
        columns = None if hides_nothing(columns) else columns
    return torch.cat((prefix, patches), dim=1), columns, kept_rows.shape[1]


def resize_position_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Fits a learned position table to another patch grid.

    One axis is fitted after the other, time first: an axis that shrinks is cut around its middle,
    one that grows is interpolated bilinearly.

    Args:
        table: (1, old[0] * old[1], D), without the prefix tokens.
        old, new: (Gf, Gt), in patches.
    Returns:
        (1, new[0] * new[1], D), in the dtype of `table`.
    Raises:
        ValueError: `table` does not hold old[0] * old[1] positions, or a grid has an empty axis.
    Source: Gong et al. 2021, section 2.2; the cut's start is that of the authors' code.
    """
    if table.ndim != 3 or table.shape[:2] != (1, old[0] * old[1]):
        raise ValueError(
            f"the position table has shape {tuple(table.shape)} but a grid of {old[0]} x {old[1]} "
            f"patches needs (1, {old[0] * old[1]}, width); pass the grid that it was learned for, "
            f"without the prefix tokens"
        )
    if min(new) < 1:
        raise ValueError(f"the new grid is {new[0]} x {new[1]}; both must be at least 1")
    # Half precision is interpolated in float32 and rounded once.
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    image = wide.unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, Gf, Gt)
    for axis in (3, 2):
        image = _fit_axis(image, axis, new[axis - 2])
    return image.flatten(2).mT.to(table.dtype)  # (1, N, D)


def _fit_axis(image: Tensor, axis: int, target: int) -> Tensor:
    source = image.shape[axis]
    if target <= source:
        # Not (source - target) // 2: the authors halve both numbers first, so 14 -> 9 starts at 3.
        return image.narrow(axis, source // 2 - target // 2, target)
    size = list(image.shape[2:])
    size[axis - 2] = target
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


__all__ = [
    "NUM_PREFIX_TOKENS",
    "as_frame_mask",
    "column_mask",
    "draw_kept",
    "drop_patches",
    "flatten_grid",
    "hides_nothing",
    "resize_position_grid",
    "time_positions",
    "token_mask",
    "token_positions",
]
