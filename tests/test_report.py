"""report.py: the table on made-up shapes, and the picture's arithmetic against torch's."""

import sys

import pytest
import torch
import torch.nn.functional as F

from modeling_ast.conversion.key_maps import ConversionError
from modeling_ast.conversion.report import (
    PatchPart,
    describe,
    draw,
    format_table,
    similarity_maps,
    tile_filters,
)


def test_the_table_says_what_happened_to_each_tensor():
    before = {"kernel": torch.zeros(4, 3, 2, 2), "layers.0.w": torch.zeros(2, 3)}
    before |= {"layers.1.w": torch.zeros(2, 3), "layers.2.w": torch.zeros(2, 5)}
    after = {**before, "kernel": torch.zeros(4, 1, 2, 2), "head": torch.zeros(7)}
    table = format_table(describe(before, after, {"old_head": torch.zeros(9, 4)}))
    assert table.splitlines() == [
        "         tensors  name        before         after",
        "carried  2        layers.#.w  2 x 3          2 x 3",
        "carried  1        layers.#.w  2 x 5          2 x 5",
        "resized  1        kernel      4 x 3 x 2 x 2  4 x 1 x 2 x 2",
        "fresh    1        head        -              7",
        "dropped  1        old_head    9 x 4          -",
        "3 carried, 1 resized, 1 fresh, 1 dropped",
    ]
    assert "averaged" in format_table(describe(before, before, {}, same="averaged"))


def make_part(channels=1, rows=3, columns=5, filters=16):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(filters, channels, 4, 6, generator=generator)
    return PatchPart(
        kernel, torch.randn(1, 2 + rows * columns, 8, generator=generator), (rows, columns)
    )


def test_similarity_maps_are_cosines():
    part = make_part()
    table = part.positions[0, 2:].view(3, 5, 8)
    points = []
    for similarity, point in similarity_maps(part):
        want = F.cosine_similarity(table, table[point], dim=-1)
        torch.testing.assert_close(similarity, want)
        points.append(point)
    assert points == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_tiled_row_by_row(channels):
    kernel = make_part(channels).kernel
    image = tile_filters(kernel)
    assert image.shape == ((4 * 6, 4 * 8, 3) if channels == 3 else (4 * 6, 4 * 8))
    tile = image[6 + 1 : 6 + 5, 16 + 1 : 16 + 7]  # second row, third column: filter 6
    want = (kernel[6] - kernel[6].min()) / (kernel[6].max() - kernel[6].min())
    torch.testing.assert_close(tile, want.permute(1, 2, 0) if channels == 3 else want[0])


def test_the_picture(tmp_path):
    draw(make_part(3), make_part(1, 2, 9), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_cannot_be_made(tmp_path, monkeypatch):
    with pytest.raises(ConversionError, match=r"cannot write the picture .*No such file"):
        draw(make_part(), make_part(), tmp_path / "none" / "x.png")
    with pytest.raises(ConversionError, match=r"cannot write the picture .*xyz"):
        draw(make_part(), make_part(), tmp_path / "x.xyz")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConversionError, match=r"needs matplotlib, .*: pip install matplotlib"):
        draw(make_part(), make_part(), tmp_path / "x.png")
