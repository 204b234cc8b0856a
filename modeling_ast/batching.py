"""Waiting parts -> batches of parts of nearly the same length, the oldest first.

The window of waiting parts has a bounded size. Each batch takes the oldest part and those nearest
to it in length, so that there is little padding and the oldest result comes next.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from .clip_parts import Piece

# The first batch is taken when a quarter of the window is filled; then the window grows with each
# batch. It grows slowly, because a GPU would have to wait for the clips that fill it.
FIRST_WINDOW, WINDOW_GROWTH = 1 / 4, 1 / 32
# Fixed cost of a batch as a share of a full one; a clip that needs more padding than this goes into
# another batch.
BATCH_COST = 1 / 32


class Window:
    """The pieces that wait, enough for a few batches.

    Args:
        batch_frames: Frames of a batch, padding included; a longer piece is a batch of its own.
        most_batches: Size of the window, in batches.
    """

    def __init__(self, batch_frames: int, most_batches: int):
        self.batch_frames = batch_frames
        self.most_batches = most_batches
        self.wanted_batches = FIRST_WINDOW * most_batches
        self.pieces: dict[int, Piece] = {}  # by the number of arrival, oldest first
        self.by_length: list[tuple[int, int]] = []  # (frames, number), sorted
        self.arrived = 0
        self.frames = 0

    @property
    def is_full(self) -> bool:
        """Whether a batch should be taken before a piece is added."""
        return self.frames >= self.wanted_batches * self.batch_frames

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        self.pieces[self.arrived] = piece
        insort(self.by_length, (piece.frames, self.arrived))
        self.arrived += 1
        self.frames += piece.frames

    def take(self) -> list[Piece]:
        """Removes and returns the oldest piece, and those nearest to it in length."""
        oldest = next(iter(self.pieces))
        first = bisect_left(self.by_length, (self.pieces[oldest].frames, oldest))
        last = first
        while (wider := self._widened(first, last)) is not None:
            first, last = wider
        numbers = sorted(number for _, number in self.by_length[first : last + 1])
        del self.by_length[first : last + 1]
        batch = [self.pieces.pop(number) for number in numbers]
        self.frames -= sum(piece.frames for piece in batch)
        grown = self.wanted_batches + WINDOW_GROWTH * self.most_batches
        self.wanted_batches = min(self.most_batches, grown)
        return batch

    def _widened(self, first: int, last: int) -> tuple[int, int] | None:
        """The range of `by_length` with the nearer of its two neighbours, if the batch stays small
        enough and needs little padding; else None."""
        lengths, count = self.by_length, last - first + 1
        shortest, longest = lengths[first][0], lengths[last][0]
        shorter = lengths[first - 1][0] if first > 0 else None
        longer = lengths[last + 1][0] if last + 1 < len(lengths) else None
        if shorter is None and longer is None:
            return None
        if longer is None or (shorter is not None and shortest - shorter <= longer - longest):
            assert shorter is not None  # one of the two is there
            padding, longer, wider = longest - shorter, longest, (first - 1, last)
        else:
            padding, wider = count * (longer - longest), (first, last + 1)
        fits = longer * (count + 1) <= self.batch_frames
        return wider if fits and padding <= self.batch_frames * BATCH_COST else None


__all__ = ["Window"]
