"""Rows of a data set -> a batch for the model: decode, crop or cut, mix, features, labels.

`AudioCollator` is a Trainer's data_collator and runs in the DataLoader's workers. Its random draws
depend only on its seed, the epoch and the clips of the batch, not on the worker or on earlier
batches, so that a resumed run draws the same. `EpochCallback(collator)` sets its epoch.

With `features=False` the workers stop at the waveforms, and `add_features` does the rest in the
main process, on the device of the batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from copy import copy
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from ..clip_parts import equal_parts
from ..feature_extraction_ast import ASTFeatureExtractor
from .augmentation import Augmentation, change_speed, mixup
from .clips import BadClips, ClipReader, column_of, read_or_list
from .random_lengths import draw_masked, shortened

CROPS = ("start", "random", "parts")


class Rows(Protocol):
    """A data set whose rows are read by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class LabelEncoder:
    """A row's labels -> a class index, or a vector with a 1 for each label.

    Args:
        label2id: Name -> class index. A class may have several names, such as AudioSet's MID and
            display name.
        multi_label: Whether a clip may have any number of labels; else it has exactly one.
        num_labels: Number of classes C; by default one more than the highest index of `label2id`.
        shares: Whether a single label, too, becomes a vector, with the share of each class. Mixup
            and label smoothing need such vectors, and the cross entropy accepts them.
    """

    def __init__(
        self,
        label2id: Mapping[str, int],
        multi_label: bool,
        num_labels: int | None = None,
        shares: bool = False,
    ):
        if not label2id:
            raise ValueError("label2id is empty; give the class index of each label")
        self.label2id = {name: int(index) for name, index in label2id.items()}
        self.multi_label = multi_label
        self.num_labels = num_labels or 1 + max(self.label2id.values())
        self.shares = shares

    def __call__(self, labels: Any) -> Tensor:
        """Encodes the labels of one row.

        Args:
            labels: A name or a class index, or a list of them.
        Returns:
            (C,), float32, zeros and ones, if `multi_label` or `shares`; else (), int64.
        Raises:
            ValueError: A label is unknown, or the clip has not exactly one where it must.
        """
        indices = [self._index(label) for label in _as_list(labels)]
        if not self.multi_label and len(indices) != 1:
            raise ValueError(
                f"a clip has the labels {labels!r}; it must have exactly one, unless "
                f"multi_label=True"
            )
        if not (self.multi_label or self.shares):
            return torch.tensor(indices[0])  # ()
        vector = torch.zeros(self.num_labels)
        vector[indices] = 1.0
        return vector  # (C,)

    def _index(self, label: Any) -> int:
        if isinstance(label, str):
            if label not in self.label2id:
                known = ", ".join(list(self.label2id)[:5])
                raise ValueError(
                    f"label {label!r} is not among the {len(self.label2id)} of label2id ({known}, "
                    f"...); add it there or filter its clips out"
                )
            return self.label2id[label]
        is_number = isinstance(label, Real)  # numpy's numbers, too
        if not is_number or label % 1 or not 0 <= label < self.num_labels:
            raise ValueError(
                f"label {label!r} is not a class index; it must be a whole number from 0 to "
                f"{self.num_labels - 1}"
            )
        return int(label)


def _as_list(labels: Any) -> list[Any]:
    if hasattr(labels, "tolist"):
        labels = labels.tolist()
    return (
        list(labels) if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
    )


class AudioCollator:
    """Rows -> `input_values`, `labels` and, with padding "longest", `attention_mask`.

    A clip longer than `extractor.max_length` frames is cropped to this length, or cut into parts
    that are not longer; the extractor pads a shorter clip. Train with
    `TrainingArguments(remove_unused_columns=False)`.

    Args:
        extractor: Computes the features; its `padding` decides whether all batches have the same
            length.
        encode_labels: Encodes `label_column`; without it batches have no labels.
        label_column: Column of names, MIDs or class indices.
        reader: Decodes rows; by default the column "audio", at the extractor's rate.
        crop: What is kept of a long clip: its "start", a "random" part (for training), or all of
            it in "parts" (for evaluation with `ASTTrainer`). Parts have equal lengths and are rows
            of the batch; the trainer averages their scores, as all tools of this package do.
        bad_clips: List of the clips that cannot be decoded; other clips of the batch replace them.
            Without it, such a clip is an error. See `clips.py` for evaluations.
        augmentation: For training; mixup needs labels that are vectors.
        min_length: For training on short clips too: each clip is cut, after a mixup, to a random
            length of this many frames or more, and padded to `extractor.max_length` frames, with or
            without a mask that hides the padding, see `random_lengths.py`. None: clips stay whole.
        partners: Data set to draw mixup partners from, uniformly. The authors take the whole
            training set, which decodes a second clip for each mixed one; the default is the batch
            itself.
        features: Whether the workers compute `input_values`. If not, call `add_features`, which
            then also applies the part of `augmentation` that changes features.
        seed: Seed of all random draws.
    """

    def __init__(
        self,
        extractor: ASTFeatureExtractor,
        encode_labels: LabelEncoder | None = None,
        *,
        label_column: str = "labels",
        reader: ClipReader | None = None,
        crop: str = "start",
        bad_clips: BadClips | None = None,
        augmentation: Augmentation | None = None,
        min_length: int | None = None,
        partners: Rows | None = None,
        features: bool = True,
        seed: int = 0,
    ):
        if crop not in CROPS:
            raise ValueError(f"crop is {crop!r}; it must be one of {CROPS}")
        if crop == "parts" and augmentation is not None:
            raise ValueError('crop="parts" is for evaluations; give it without an augmentation')
        if crop == "parts" and min_length is not None:
            raise ValueError('crop="parts" is for evaluations; give it without min_length')
        if min_length is not None:
            _check_min_length(min_length, extractor)
        reader = reader or ClipReader.for_extractor(extractor)
        if reader.sampling_rate != extractor.sampling_rate:
            raise ValueError(
                f"the reader gives audio at {reader.sampling_rate} Hz but the extractor wants "
                f"{extractor.sampling_rate} Hz; build ClipReader with that rate"
            )
        mixup_rate = 0.0 if augmentation is None else augmentation.mixup_rate
        encoder = encode_labels
        if mixup_rate > 0 and not (encoder and (encoder.multi_label or encoder.shares)):
            raise ValueError(
                f"mixup_rate is {mixup_rate} but labels are class indices; give "
                f"LabelEncoder(..., shares=True), or multi_label=True and the multi-label loss, or "
                f"mixup_rate=0"
            )
        self.extractor = extractor
        self.encode_labels = encode_labels
        self.label_column = label_column
        self.reader = reader
        self.crop = crop
        self.bad_clips = bad_clips
        # One good clip of an earlier batch, for a batch in which all clips are bad.
        self.earlier: list[tuple[Mapping[str, Any], Tensor]] = []
        self.augmentation = augmentation
        self.min_length = min_length
        self.partners = partners
        self.features = features
        self.seed = seed
        # In shared memory, so that persistent workers see the new epoch, too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch (from 0) that the random draws depend on, in all workers."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collates a batch.

        Returns:
            `input_values` (B, T, F), `labels` (B,) or (B, C), and with padding "longest" or
            `min_length` also `attention_mask` (B, T).
            With features=False there are `waveforms` (B, S), padded with zeros, and `num_samples`
            (B,) instead of `input_values` and the mask, and with `min_length` also `is_masked`
            (B,).
            B is the number of `rows`. With crop="parts" B is the number of parts, in the order of
            the clips, each with the labels of its clip, and `num_parts` (rows,) comes first.
        Raises:
            ValueError: A clip cannot be decoded and `bad_clips` is None, all clips so far are bad,
                or a label is unknown.
            TooManyBadClips: See `BadClips`.
            KeyError: A column is missing.
        """
        generator = self._generator(rows)
        rows, waveforms = self._read(rows)
        batch: dict[str, Tensor] = {}
        labels = None if self.encode_labels is None else self._labels(rows)
        if self.crop == "parts":
            parts = [equal_parts(len(x), self.extractor.max_samples) for x in waveforms]
            # First, because Trainer takes the number of clips from the first tensor of the batch.
            batch["num_parts"] = torch.tensor([len(cuts) for cuts in parts])  # (rows,)
            waveforms = [x[i:j] for x, cuts in zip(waveforms, parts) for i, j in cuts]
            labels = None if labels is None else labels.repeat_interleave(batch["num_parts"], 0)
        else:
            waveforms = [self._cropped(waveform, generator) for waveform in waveforms]
        if self.augmentation is not None:
            waveforms, labels = self._augmented(self.augmentation, waveforms, labels, generator)
        if self.min_length is not None:
            size = (self.min_length, self.extractor.hop_samples)
            waveforms = [shortened(waveform, *size, generator) for waveform in waveforms]
            batch["is_masked"] = draw_masked(len(waveforms), generator)  # (B,)
        if labels is not None:
            batch["labels"] = labels
        batch["waveforms"] = pad_sequence(waveforms, batch_first=True)  # (B, S)
        batch["num_samples"] = torch.tensor([len(waveform) for waveform in waveforms])
        if not self.features:
            return batch
        return add_features(batch, self.extractor, self.augmentation, generator)

    def _generator(self, rows: Sequence[Mapping[str, Any]]) -> Generator:
        names = "\n".join([f"{self.seed}/{self._epoch}", *map(self.reader.name, rows)])
        digest = hashlib.blake2b(names.encode(), digest_size=8).digest()
        return Generator().manual_seed(int.from_bytes(digest, "little", signed=True))

    def _read(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], list[Tensor]]:
        """Rows and their waveforms, each bad clip replaced by a good one of the batch.

        A batch without a good clip, such as a last batch of one clip, gets one of an earlier batch.
        """
        read = [(row, read_or_list(row, self.reader, self.bad_clips)) for row in rows]
        good = [(row, waveform) for row, waveform in read if waveform is not None]
        good = good or self.earlier
        self.earlier = good[-1:]
        if not good:
            # Without a list, read_or_list raises at the first bad clip.
            assert self.bad_clips is not None
            raise ValueError(
                f"none of the first {len(rows)} clips can be decoded (listed in "
                f"{self.bad_clips.file}); remove bad clips first with drop_bad_clips, or use "
                f"larger batches"
            )
        taken = [
            (row, waveform) if waveform is not None else good[i % len(good)]
            for i, (row, waveform) in enumerate(read)
        ]
        return [row for row, _ in taken], [waveform for _, waveform in taken]

    def _cropped(self, waveform: Tensor, generator: Generator) -> Tensor:
        """The waveform at a drawn speed, cut to at most the samples of `max_length` frames."""
        length = self.extractor.max_samples
        speed = 1.0 if self.augmentation is None else self.augmentation.speed(generator)
        if len(waveform) < speed * self.extractor.window_samples:
            speed = 1.0  # it would become too short for a frame
        # A long recording is cropped first, so that the rest of it need not be resampled.
        needed = math.ceil(speed * length)
        beyond = len(waveform) - needed
        if beyond > 0:
            drawn = torch.randint(beyond + 1, (), generator=generator)
            start = int(drawn) if self.crop == "random" else 0
            waveform = waveform[start : start + needed]
        return change_speed(waveform, speed)[:length]

    def _labels(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        assert self.encode_labels is not None  # checked by the callers
        labels = [self.encode_labels(column_of(row, self.label_column)) for row in rows]
        return torch.stack(labels)  # (B,) or (B, C)

    def _augmented(
        self,
        augmentation: Augmentation,
        waveforms: list[Tensor],
        labels: Tensor | None,
        generator: Generator,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Applies mixup, the other augmentations of waveforms, and label smoothing."""
        if augmentation.mixup_rate > 0:
            assert labels is not None  # checked at construction
            shares = augmentation.shares(len(waveforms), generator)  # (B,)
            others, other_labels = self._partners(waveforms, labels, shares, generator)
            waveforms, labels = mixup(waveforms, labels, others, other_labels, shares)
        if labels is not None:
            assert self.encode_labels is not None  # it made the labels
            labels = augmentation.labels(labels, exclusive=not self.encode_labels.multi_label)
        return augmentation.waveforms(waveforms, generator), labels

    def _partners(
        self, waveforms: list[Tensor], labels: Tensor, shares: Tensor, generator: Generator
    ) -> tuple[list[Tensor], Tensor]:
        """A partner for each clip, and its labels; where the share is 1, it is not used."""
        count = len(waveforms)
        if self.partners is None:
            drawn = torch.randint(count, (count,), generator=generator)
            return [waveforms[i] for i in drawn], labels[drawn]
        numbers = torch.randint(len(self.partners), (count,), generator=generator).tolist()
        others, other_labels = list(waveforms), labels.clone()
        for i in (shares < 1).nonzero().flatten().tolist():
            row = self.partners[numbers[i]]
            waveform = read_or_list(row, self.reader, self.bad_clips)
            # A partner that cannot be decoded is listed, and the clip is mixed with itself.
            if waveform is not None:
                others[i] = self._cropped(waveform, generator)
                other_labels[i] = self._labels([row])[0]
        return others, other_labels


def add_features(
    batch: Mapping[str, Tensor],
    extractor: ASTFeatureExtractor,
    augmentation: Augmentation | None = None,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Waveforms of a batch -> `input_values`, on the device of the batch.

    Args:
        batch: With `waveforms` (B, S) and `num_samples` (B,), see `AudioCollator(features=False)`.
            If it has `is_masked` (B,), all clips are padded to `extractor.max_length` frames, and
            the mask hides the padding of the clips that are marked there.
        augmentation: Its masks, noise and roll are applied; None in an evaluation.
        generator: Draws the random numbers; by default torch's global generator, which Trainer
            restores when a run is resumed.
    Returns:
        The batch with `input_values` (B, T, F) instead of waveforms and, if the extractor gives
        one, `attention_mask` (B, T).
    """
    batch = dict(batch)
    is_masked = batch.pop("is_masked", None)
    if is_masked is not None:
        extractor = copy(extractor)
        extractor.padding, extractor.return_attention_mask = "max_length", True
    batch |= extractor.extract_padded(batch.pop("waveforms"), batch.pop("num_samples"))
    mask = batch.get("attention_mask")  # (B, T)
    if augmentation is not None:
        # Masked values are those of a padded frame: a log-mel of 0, normalised like the rest.
        masked = extractor.padded_frame[0].item()
        num_frames = None if mask is None else mask.sum(1)  # (B,)
        batch["input_values"] = augmentation.features(
            batch["input_values"], masked, generator, num_frames
        )
    if mask is not None and is_masked is not None:
        batch["attention_mask"] = mask | ~is_masked.unsqueeze(1)
    return batch


def _check_min_length(min_length: int, extractor: ASTFeatureExtractor) -> None:
    """Refuses lengths that no clip can be cut to."""
    least, most = extractor.min_length, extractor.max_length
    if not least <= min_length <= most:
        raise ValueError(
            f"min_length is {min_length} frames; give at least {least}, one patch of the model, "
            f"and at most its max_length, {most}"
        )


__all__ = ["AudioCollator", "LabelEncoder", "add_features"]
