"""Rows of a data set -> a batch for the model: decode, crop or cut, mix, features, labels.

`AudioCollator` is a Trainer's data_collator and runs in the DataLoader's workers. What it draws
depends on its seed, the epoch and the clips of the batch: neither on the worker nor on what came
before, so that a resumed run draws the same. `EpochCallback(collator)` tells it the epoch.

With `features=False` workers stop at the waveforms, and `add_features` does the rest in the main
process, on the device that the batch is on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from ..clip_parts import equal_parts
from ..feature_extraction_ast import ASTFeatureExtractor
from .augmentation import Augmentation, mixup
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
        multi_label: Whether a clip has any number of labels; else it has exactly one.
        num_labels: Classes C; by default one more than the highest index of `label2id`.
        shares: Whether the one label, too, is a vector: how much of each class a clip is. A mixup
            and label smoothing need it, and the cross entropy takes it.
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
        is_number = isinstance(label, Real)  # numpy's are, too
        if not is_number or label % 1 or not 0 <= label < self.num_labels:
            raise ValueError(
                f"label {label!r} is no class index; it must be a whole number from 0 to "
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

    A clip longer than `extractor.max_length` frames is cropped to them, or cut into parts of at
    most so many; the extractor pads a shorter one. Train with
    `TrainingArguments(remove_unused_columns=False)`.

    Args:
        extractor: Makes the features; its `padding` decides whether batches have one length.
        encode_labels: For `label_column`; without it batches have no labels.
        label_column: Holds names, MIDs or class indices.
        reader: Decodes rows; by default the column "audio", at the extractor's rate.
        crop: What is kept of a long clip: its "start", a "random" part (for training), or all of
            it, in "parts" (for evaluations by `ASTTrainer`): equal ones, a row of the batch each,
            whose scores the trainer averages, as every tool does.
        bad_clips: Where clips that cannot be decoded are listed, and replaced by others of their
            batch; without it, such a clip is an error. See `clips.py` for evaluations.
        augmentation: For training; mixup needs labels that are vectors.
        min_length: For training on short clips too: each clip is cut, after a mixup, to a random
            length of this many frames or more, and padded to `extractor.max_length` frames, with or
            without a mask that hides the padding, see `random_lengths.py`; None: clips stay whole.
        partners: Data set to draw mixup partners from, uniformly. The authors take the whole
            training set, which decodes a second clip for each mixed one; the default is the batch
            itself.
        features: Whether workers compute `input_values`; else see `add_features`, which then does
            the part of `augmentation` that follows.
        seed: Of all that is drawn.
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
        self.earlier: list[tuple[Mapping[str, Any], Tensor]] = []  # a good clip of the last batch
        self.augmentation = augmentation
        self.min_length = min_length
        self.partners = partners
        self.features = features
        self.seed = seed
        # Workers read it where the main process writes it, even those that live on.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch (from 0) that is drawn for, in all workers."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collates a batch.

        Returns:
            `input_values` (B, T, F), `labels` (B,) or (B, C), and with padding "longest" or
            `min_length` `attention_mask` (B, T);
            with features=False `waveforms` (B, S), padded with zeros, and `num_samples` (B,)
            instead of `input_values`, and with `min_length` `is_masked` (B,). B is always the
            number of `rows`; with crop="parts" B is the number of parts, a clip's one after the
            other, each with the clip's labels, and `num_parts` (rows,) comes first.
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
            # First: Trainer takes the length of the first tensor for the number of clips.
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

        A batch without a good one, such as a last batch of one clip, takes that of an earlier one.
        """
        read = [(row, read_or_list(row, self.reader, self.bad_clips)) for row in rows]
        good = [(row, waveform) for row, waveform in read if waveform is not None]
        good = good or self.earlier
        self.earlier = good[-1:]
        if not good:
            # Without a list the first bad clip has raised.
            assert self.bad_clips is not None
            raise ValueError(
                f"none of the {len(rows)} first clips can be decoded; take them out first with "
                f"drop_bad_clips, or use larger batches; they are listed in {self.bad_clips.file}"
            )
        taken = [
            (row, waveform) if waveform is not None else good[i % len(good)]
            for i, (row, waveform) in enumerate(read)
        ]
        return [row for row, _ in taken], [waveform for _, waveform in taken]

    def _cropped(self, waveform: Tensor, generator: Generator) -> Tensor:
        """At most the samples that `max_length` frames see."""
        length = self.extractor.max_samples
        beyond = len(waveform) - length
        if beyond <= 0:
            return waveform
        drawn = torch.randint(beyond + 1, (), generator=generator)
        start = int(drawn) if self.crop == "random" else 0
        return waveform[start : start + length]

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
        """Mixup, then what else is done to waveforms, and label smoothing."""
        if augmentation.mixup_rate > 0:
            assert labels is not None  # checked at construction
            shares = augmentation.shares(len(waveforms), generator)  # (B,)
            others, other_labels = self._partners(waveforms, labels, shares, generator)
            waveforms, labels = mixup(waveforms, labels, others, other_labels, shares)
        if labels is not None:
            assert self.encode_labels is not None  # it made them
            labels = augmentation.labels(labels, exclusive=not self.encode_labels.multi_label)
        return augmentation.waveforms(waveforms, generator), labels

    def _partners(
        self, waveforms: list[Tensor], labels: Tensor, shares: Tensor, generator: Generator
    ) -> tuple[list[Tensor], Tensor]:
        """A clip to mix into each, and its labels; clips that stay alone have themselves."""
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
        batch: With `waveforms` (B, S) and `num_samples` (B,), see `AudioCollator(features=False)`;
            with `is_masked` (B,) all clips are padded to `extractor.max_length` frames, and the
            mask hides the padding of these.
        augmentation: Its masks, noise and roll are applied; None in an evaluation.
        generator: Draws them; by default torch's global one, which Trainer restores on a resume.
    Returns:
        The batch with `input_values` (B, T, F) instead and, where the extractor gives one,
        `attention_mask` (B, T).
    """
    batch = dict(batch)
    is_masked = batch.pop("is_masked", None)
    if is_masked is not None:
        extractor = copy(extractor)
        extractor.padding, extractor.return_attention_mask = "max_length", True
    batch |= extractor.extract_padded(batch.pop("waveforms"), batch.pop("num_samples"))
    mask = batch.get("attention_mask")  # (B, T)
    if augmentation is not None:
        # A mask writes what a padded frame holds: a log-mel of 0, normalised like the rest.
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
