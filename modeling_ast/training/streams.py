"""A stream of clips as a training set: shuffled anew in each epoch, with a length if it is known.

Trainer could also take a `datasets.IterableDataset` itself. But without a length there are no
epochs, and so no schedule or average by epochs. With several processes, accelerate would give each
of them some shards, and the run would wait for ever when one process ends before the others. Here
all processes read the same order, and accelerate gives each of them its own batches: no clip is
used twice and all processes end together. The price is that each process reads the whole stream,
but decodes only its own clips.
"""

from __future__ import annotations

from collections.abc import Iterator

import datasets
from torch.utils.data import IterableDataset


class TrainingStream(IterableDataset):
    """Rows of a `datasets` stream, for Trainer.

    With several processes give TrainingArguments(accelerator_config={"dispatch_batches": False}),
    because one process cannot send batches of different lengths to the others.

    Args:
        stream: Rows with undecoded audio, see `undecoded`.
        num_clips: Number of clips in an epoch; None if it is unknown: then train by `max_steps`.
        shuffle_buffer: Number of rows in memory, from which the next one is drawn; 1 keeps the
            order.
        seed: Decides the order, together with the epoch.
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
        """Sets the epoch (from 0) whose order the next iteration gives."""
        self._stream.set_epoch(epoch)


__all__ = ["TrainingStream"]
