"""The patch grid: which patches are padding, and fitting a learned position table to another grid.

Grids are (frequency, time) and always passed as two integers; patch n = gf * Gt + gt. Follows Gong
et al. 2021, section 2.2, and the authors' src/models/ast_models.py for the rules they state there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def column_mask(frame_mask: Tensor, patch_frames: int, time_stride: int) -> Tensor:
    """Which columns of the patch grid hold audio: those whose frames all do.

    A clip with fewer real frames than one patch keeps its first column: it must not go deaf.

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
    return positions.transpose(0, 1).flatten(1, 2)  # (B, Gf * width, D)


def draw_kept(is_padding: Tensor, dropped: int) -> Tensor:
    """Draws which rows, or which columns, of the patch grid each clip keeps; all sets alike.

    Args:
        is_padding: (B, G), true for what holds no audio: it is dropped first, so that a short clip
            of a batch does not go deaf.
        dropped: How many of the G go; one is kept in any case.
    Returns:
        (B, G - dropped), ascending indices.
    Source: Koutini et al. 2022 (PaSST), structured patchout; they draw once for a whole batch.
    """
    kept = max(1, is_padding.shape[1] - dropped)
    order = torch.rand(is_padding.shape, device=is_padding.device) + is_padding
    return order.argsort(dim=1)[:, :kept].sort(dim=1).values


def resize_position_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Fits a learned position table to another patch grid.

    Axis by axis, time first: one that shrinks is cut around its middle, one that grows is
    interpolated bilinearly.

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
        # Not (source - target) // 2: the authors halve each first, so 14 -> 9 starts at 3.
        return image.narrow(axis, source // 2 - target // 2, target)
    size = list(image.shape[2:])
    size[axis - 2] = target
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


__all__ = ["column_mask", "draw_kept", "resize_position_grid", "time_positions"]
