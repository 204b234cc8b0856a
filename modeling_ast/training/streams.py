"""A stream of clips as a training set: shuffled anew in each epoch, with a length if it is known.

`datasets.IterableDataset` could be given to Trainer itself. But without a length there are no
epochs, and so no schedule or average by epochs; and where several processes train, accelerate would
deal its shards out, of which some end before others, so that the run would wait for ever. This one
gives all processes the same order, of which accelerate gives each its own batches: no clip is seen
twice and all end together, for the price that each process reads the whole stream (only its own
clips are decoded).
"""

from __future__ import annotations

from collections.abc import Iterator

import datasets
from torch.utils.data import IterableDataset


class TrainingStream(IterableDataset):
    """Rows of a `datasets` stream, for Trainer.

    With several processes give TrainingArguments(accelerator_config={"dispatch_batches": False}):
    batches of different length cannot be dealt out by one of them.

    Args:
        stream: Rows with undecoded audio, see `undecoded`.
        num_clips: Of an epoch; None if it is not known: then train by `max_steps`.
        shuffle_buffer: Rows held, of which each next one is drawn; 1 keeps the order.
        seed: Of the order, together with the epoch.
    Raises:
        ValueError: A number is less than 1.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        num_clips: int | None = None,
        shuffle_buffer: int = 1000,
        seed: int = 0,
    ):
        for name, value in (("num_clips", num_clips), ("shuffle_buffer", shuffle_buffer)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.num_clips = num_clips
        self._stream = stream
        if shuffle_buffer > 1:
            self._stream = stream.shuffle(seed=seed, buffer_size=shuffle_buffer)

    def __len__(self) -> int:
        if self.num_clips is None:
            raise TypeError("the number of clips in this stream is unknown; give num_clips")
        return self.num_clips

    def __iter__(self) -> Iterator[dict]:
        return iter(self._stream)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch (from 0) whose order the next iteration gives."""
        self._stream.set_epoch(epoch)


__all__ = ["TrainingStream"]
