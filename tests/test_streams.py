"""TrainingStream: each epoch has every clip once, in a different order."""

import datasets
import pytest
from torch.utils.data import DataLoader
from transformers.trainer_utils import has_length

from modeling_ast.training import TrainingStream


@pytest.fixture
def rows():
    """Forty rows in four shards, as two workers would share them."""
    return datasets.Dataset.from_dict({"n": list(range(40))}).to_iterable_dataset(num_shards=4)


def read(stream, epoch=0, workers=0):
    stream.set_epoch(epoch)
    loader = DataLoader(stream, 5, num_workers=workers, collate_fn=lambda rows: rows)
    return [row["n"] for batch in loader for row in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_clip_once_in_an_order_of_its_own(rows, workers):
    stream = TrainingStream(rows, 40, shuffle_buffer=10, seed=3)
    first, second = read(stream, 0, workers), read(stream, 1, workers)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second and first != sorted(first)
    assert read(TrainingStream(rows, 40, shuffle_buffer=10, seed=3), 1, workers) == second
    assert read(TrainingStream(rows, 40, shuffle_buffer=10, seed=4), 1, workers) != second


def test_a_buffer_of_one_keeps_the_order(rows):
    assert read(TrainingStream(rows, shuffle_buffer=1)) == list(range(40))


def test_its_length_is_what_was_given(rows):
    assert has_length(DataLoader(TrainingStream(rows, 40), 5))
    assert len(DataLoader(TrainingStream(rows, 40), 6)) == 7
    assert not has_length(TrainingStream(rows))
    with pytest.raises(TypeError, match="clips in this stream is unknown; give num_clips"):
        len(TrainingStream(rows))


@pytest.mark.parametrize("changes", [{"num_clips": 0}, {"shuffle_buffer": 0}])
def test_impossible_numbers(rows, changes):
    with pytest.raises(ValueError, match=rf"{next(iter(changes))} is 0; it must be at least 1"):
        TrainingStream(rows, **changes)
