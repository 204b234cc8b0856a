"""Every position is its own coordinates, so that a swapped axis or an off-by-one shows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_ast.position import (
    as_frame_mask,
    column_mask,
    flatten_grid,
    hides_nothing,
    resize_position_grid,
    time_positions,
    token_mask,
    token_positions,
)


def coordinates(rows: int, columns: int) -> torch.Tensor:
    """(1, rows * columns, 2): each position holds (row, column)."""
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(grid, -1).reshape(1, -1, 2).float()


def test_same_grid_is_untouched():
    table = coordinates(3, 7)
    assert torch.equal(resize_position_grid(table, (3, 7), (3, 7)), table)


@pytest.mark.parametrize(
    ("source", "target", "start"), [(14, 9, 3), (24, 12, 6), (101, 49, 26), (14, 12, 1), (5, 2, 1)]
)
def test_a_cut_starts_where_the_authors_start(source, target, start):
    assert start == int(source / 2) - int(target / 2)
    fitted = resize_position_grid(coordinates(4, source), (4, source), (4, target))
    columns = fitted.reshape(4, target, 2)[..., 1]
    assert torch.equal(columns, torch.arange(start, start + target).float().expand(4, -1))
    fitted = resize_position_grid(coordinates(source, 4), (source, 4), (target, 4))
    rows = fitted.reshape(target, 4, 2)[..., 0]
    assert torch.equal(rows, torch.arange(start, start + target).float()[:, None].expand(-1, 4))


def authors_rule(table, old, new):
    """The rule of the authors' code, one axis at a time, in the order time, frequency."""
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    (f_old, t_old), (f_new, t_new) = old, new
    if t_new <= t_old:
        start = int(t_old / 2) - int(t_new / 2)
        image = image[:, :, :, start : start + t_new]
    else:
        image = F.interpolate(image, size=(f_old, t_new), mode="bilinear")
    if f_new <= f_old:
        start = int(f_old / 2) - int(f_new / 2)
        image = image[:, :, start : start + f_new, :]
    else:
        image = F.interpolate(image, size=(f_new, t_new), mode="bilinear")
    return image.flatten(2).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 20)] * 4))
def test_any_grid_follows_the_authors_rule(sizes):
    old, new = sizes[:2], sizes[2:]
    table = torch.randn(1, old[0] * old[1], 3, generator=torch.Generator().manual_seed(sum(sizes)))
    torch.testing.assert_close(
        resize_position_grid(table, old, new), authors_rule(table, old, new), atol=0, rtol=0
    )


def test_half_precision_is_interpolated_in_float32():
    table = torch.randn(1, 12, 8)
    fitted = resize_position_grid(table.bfloat16(), (3, 4), (5, 9))
    assert fitted.dtype == torch.bfloat16
    expected = resize_position_grid(table.bfloat16().float(), (3, 4), (5, 9)).bfloat16()
    assert torch.equal(fitted, expected)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 12, 2\) but a grid of 3 x 5 .* \(1, 15, "):
        resize_position_grid(coordinates(3, 4), (3, 5), (2, 2))
    with pytest.raises(ValueError, match="new grid is 0 x 2"):
        resize_position_grid(coordinates(3, 4), (3, 4), (0, 2))


def test_shorter_clips_take_the_first_columns():
    table = coordinates(3, 7)
    own = time_positions(table, (3, 7), torch.tensor([4]), 4).reshape(3, 4, 2)
    assert torch.equal(own, table.reshape(3, 7, 2)[:, :4])


def test_longer_clips_interpolate_in_time_as_torch_does():
    table = torch.randn(1, 3 * 7, 5)
    image = table.reshape(1, 3, 7, 5).permute(0, 3, 1, 2)
    for columns in (8, 13, 40):
        expected = F.interpolate(image, size=(3, columns), mode="bilinear").flatten(2).mT
        own = time_positions(table, (3, 7), torch.tensor([columns]), columns)
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-5)


def test_each_clip_of_a_batch_has_the_positions_it_has_alone():
    table = torch.randn(1, 3 * 7, 5)
    columns = torch.tensor([2, 7, 12, 20])
    batch = time_positions(table, (3, 7), columns, 20).reshape(4, 3, 20, 5)
    for clip, count in enumerate(columns.tolist()):
        alone = time_positions(table, (3, 7), columns[clip : clip + 1], count)
        assert torch.equal(batch[clip, :, :count], alone.reshape(3, count, 5))


@pytest.mark.parametrize(
    ("frames", "columns"),
    [(0, 1), (1, 1), (15, 1), (16, 1), (22, 1), (23, 2), (29, 2), (30, 3), (40, 4)],
)
def test_a_column_is_audio_when_all_its_frames_are(frames, columns):
    mask = (torch.arange(40) < frames).unsqueeze(0)
    expected = torch.arange(4) < columns
    assert torch.equal(column_mask(mask, patch_frames=16, time_stride=7)[0], expected)


def test_frames_beyond_the_mask_are_padding():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert as_frame_mask(mask, 5).tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]
    assert as_frame_mask(torch.ones(2, 5), 5) is None and as_frame_mask(None, 5) is None
    assert not hides_nothing(mask) and hides_nothing(mask[:1])


def test_tokens_are_hidden_by_their_column():
    columns = torch.tensor([[True, True, False], [True, False, False]])
    expected = [[True, True] + 2 * row for row in columns.tolist()]
    assert token_mask(columns, rows=2).tolist() == expected


def test_patches_are_numbered_row_by_row():
    patches = torch.arange(12.0).view(1, 2, 2, 3)  # (B, D, Gf, Gt)
    assert flatten_grid(patches).tolist() == [[list(range(6)), list(range(6, 12))]]


@pytest.mark.parametrize("width", [4, 7, 9])
def test_tokens_have_the_positions_of_their_patches(width):
    """The prefix tokens' own in front; all columns, or each clip's."""
    prefix = torch.tensor([[[-1.0, -1.0], [-2.0, -2.0]]])
    patches = coordinates(3, 7)
    table = torch.cat((prefix, patches), dim=1)
    positions = token_positions(table, (3, 7), width, None)
    assert torch.equal(positions[:, :2], prefix)
    expected = time_positions(patches, (3, 7), torch.tensor([width]), width)
    assert torch.equal(positions[:, 2:], expected)
    columns = torch.arange(width) < torch.tensor([[width], [2]])
    positions = token_positions(table, (3, 7), width, columns)
    assert torch.equal(positions[:, :2], prefix.expand(2, -1, -1))
    expected = time_positions(patches, (3, 7), torch.tensor([width, 2]), width)
    assert torch.equal(positions[:, 2:], expected)
