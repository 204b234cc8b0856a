"""The arguments of a run -> its model, its extractor and a Trainer with all its parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import Label
from ..loading import quiet_loading
from ..modeling_ast import ASTForAudioClassification
from ..pretrained import load_config, load_extractor
from ..pretrained import load_model as load_pretrained
from .arguments import Arguments, ModelArguments
from .augmentation import Augmentation
from .averaging import AverageWeightsCallback
from .batches import AudioCollator, LabelEncoder
from .classes import Clips, label_column
from .clips import BadClips, ClipReader, drop_bad_clips
from .optimizer import EpochDecay, layered_adamw, published_adam
from .results import Judge
from .sampling import BalancedSampler, balanced_weights
from .streams import TrainingStream
from .trainer import ASTTrainer, output_folder

if TYPE_CHECKING:
    from .adapted_model import AdaptedAST

# Fields of ModelArguments that are passed to from_pretrained unchanged.
CONFIG_FIELDS = (
    "max_length",
    "drop_path_rate",
    "frequency_stride",
    "time_stride",
    "patchout_frequency",
    "patchout_time",
)
BAD_LIST = "bad_clips.txt"


def load_model(
    arguments: ModelArguments, classes: Sequence[Label], exclusive: bool = False
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """The model with a head for `classes`, and its extractor.

    Args:
        arguments: They name the checkpoint and the changes to its config.
        classes: In the order of their indices; if their number is new, the head is fresh.
        exclusive: Whether the loss is the cross entropy of exactly one label per clip.
    Raises:
        OSError, ValueError: The checkpoint cannot be read, or does not fit the arguments.
    """
    names = [name for _, name in classes]
    given = {name: getattr(arguments, name) for name in CONFIG_FIELDS}
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": f"{'single' if exclusive else 'multi'}_label_classification",
    }
    if arguments.from_scratch:
        if arguments.patch_size:
            size = arguments.patch_size
            changes["patch_size"] = size[0] if len(size) == 1 else tuple(size)
        model = ASTForAudioClassification(load_config(arguments.source, **changes))
    else:
        # A fine-tuning expects a new head and fitted positions, so warnings would only distract.
        with quiet_loading():
            model = load_pretrained(arguments.source, fresh_head=True, **changes)
    stored = load_extractor(arguments.source)
    for name in ("mean", "std", "do_normalize"):
        # A checkpoint of transformers has these only in the file of its extractor.
        setattr(model.config, name, getattr(stored, name))
    for name in ("mean", "std"):
        if getattr(arguments, name) is not None:
            setattr(model.config, name, getattr(arguments, name))
    padding = arguments.padding or stored.padding
    return model, ASTFeatureExtractor.from_config(model.config, padding=padding)


def start_line(arguments: ModelArguments, model: ASTForAudioClassification) -> str:
    """A sentence that says what the run starts from, and which parts of the model are new."""
    config, stored = model.config, load_config(arguments.source)
    size = f"{model.num_parameters() / 1e6:.1f} million weights"
    if arguments.from_scratch:
        return f"starts from random weights, {size}, in the architecture of {arguments.source}"
    new = []
    if list(stored.id2label.values()) != list(config.id2label.values()):
        new.append(f"a new head for {config.num_labels} labels")
    if stored.patch_grid() != config.patch_grid():
        (rows, columns), (old_rows, old_columns) = config.patch_grid(), stored.patch_grid()
        old = f"{old_rows} x {old_columns}"
        new.append(f"positions fitted from {old} to {rows} x {columns} patches")
    return f"starts from {arguments.source}, {size}" + "".join(f"; {part}" for part in new)


def build_trainer(
    model: ASTForAudioClassification | AdaptedAST,
    extractor: ASTFeatureExtractor,
    classes: Sequence[Label],
    splits: tuple[Clips, Dataset],
    arguments: Arguments,
    compute_metrics: Judge,
    validation: Dataset | None = None,
) -> ASTTrainer:
    """A Trainer whose workers decode, crop and mix the clips.

    Workers also extract features and augment them, unless the training device does.

    Args:
        model, extractor: From `load_model`; the model may also come from `train_a_part`.
        classes: From `read_classes`.
        splits: The clips to train on and those held out, from `load_data`.
        arguments: The arguments of the run.
        compute_metrics: Computes the metrics of the held-out clips.
        validation: Clips set aside from the training set, to choose between weights.
    Raises:
        TooManyBadClips: More of the held-out clips than allowed cannot be decoded.
    """
    (train, held_out), data, training = splits, arguments.data, arguments.training
    reader = ClipReader.for_extractor(extractor, audio_column=data.audio_column, root=data.root)
    bad_list = output_folder(training) / BAD_LIST
    num_clips = clips_of_training(train, arguments) + len(held_out) + len(validation or ())
    bad_clips = BadClips(bad_list, num_clips, data.max_bad_share)
    augmentation = arguments.augmentation
    collate = partial(
        AudioCollator,
        extractor,
        label_column=label_column(data, train),
        reader=reader,
        features=not features_on_device(arguments),
    )
    if isinstance(train, IterableDataset):
        train = TrainingStream(train, data.train_clips, data.shuffle_buffer, training.seed)
    return ASTTrainer(
        model,
        training,
        data_collator=collate(
            label_encoder(classes, model.config.problem_type, shares=mixes_labels(augmentation)),
            crop="random",
            bad_clips=bad_clips,
            augmentation=augmentation,
            min_length=arguments.model.min_length,
            partners=train if arguments.sampling.mix_whole_set else None,
            seed=training.seed,
        ),
        eval_collator=collate(label_encoder(classes, model.config.problem_type), crop="parts"),
        train_dataset=train,
        eval_dataset=good_clips(held_out, reader, bad_clips, training),
        validation_dataset=validation and good_clips(validation, reader, bad_clips, training),
        compute_metrics=compute_metrics,
        processing_class=extractor,
        extractor=extractor,
        augmentation=augmentation,
        **published_parts(arguments, train),
    )


def clips_of_training(train: Clips, arguments: Arguments) -> int:
    """Number of clips to train on: all of a stored set, or those that the run reads of a stream."""
    if not isinstance(train, IterableDataset):
        return len(train)
    training = arguments.training
    step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return arguments.data.train_clips or step * training.max_steps


def features_on_device(arguments: Arguments) -> bool:
    """Whether the training device computes the features: a GPU does by default."""
    where = arguments.model.features
    return where == "device" or (where == "auto" and arguments.training.device.type != "cpu")


def good_clips(
    held_out: Dataset, reader: ClipReader, bad_clips: BadClips, training: TrainingArguments
) -> Dataset:
    """The held-out clips that can be decoded; one process on each machine decodes them.

    In training another clip replaces a bad one. An evaluation must not count any clip twice, so
    that its bad clips are removed instead.
    """
    with training.main_process_first(desc="search for bad clips"):
        workers = training.dataloader_num_workers or None
        first = training.local_process_index == 0
        return drop_bad_clips(held_out, reader, bad_clips, num_proc=workers, decode=first)


def mixes_labels(augmentation: Augmentation) -> bool:
    """Whether labels of training clips may be fractions, by mixup or label smoothing."""
    return bool(augmentation.mixup_rate or augmentation.label_smoothing)


def label_encoder(
    classes: Sequence[Label], problem_type: str | None, shares: bool = False
) -> LabelEncoder:
    """MIDs, names or indices -> the labels that the loss takes; see `LabelEncoder` for `shares`."""
    label2id = {key: index for index, label in enumerate(classes) for key in label}
    multi_label = problem_type == "multi_label_classification"
    return LabelEncoder(label2id, multi_label, num_labels=len(classes), shares=shares)


def published_parts(arguments: Arguments, train: Clips) -> dict[str, Any]:
    """Keyword arguments of ASTTrainer for the parts of the paper that the arguments switch on."""
    chosen, sampling, training = arguments.optimizer, arguments.sampling, arguments.training
    parts: dict[str, Any] = {}
    if chosen.published_adam:
        parts["make_optimizer"] = partial(
            published_adam,
            learning_rate=training.learning_rate,
            layer_decay=chosen.layer_decay,
            head_rate=chosen.head_rate,
            weight_decay=training.weight_decay,
        )
    elif (chosen.layer_decay, chosen.head_rate) != (1, 1):
        parts["make_optimizer"] = partial(
            layered_adamw,
            learning_rate=training.learning_rate,
            layer_decay=chosen.layer_decay,
            head_rate=chosen.head_rate,
            weight_decay=training.weight_decay,
            betas=(training.adam_beta1, training.adam_beta2),
            epsilon=training.adam_epsilon,
        )
    if chosen.decay_first is not None:
        parts["epoch_decay"] = EpochDecay(
            chosen.decay_first, chosen.decay_every, chosen.decay_factor, int(training.warmup_steps)
        )
    if sampling.balanced_sampling:
        name = label_column(arguments.data, train)
        weights = balanced_weights(train.select_columns(name)[:][name])
        parts["train_sampler"] = BalancedSampler(weights, seed=training.seed)
    if sampling.average_from is not None:
        callback = AverageWeightsCallback(sampling.average_from, sampling.average_to)
        parts["callbacks"] = [callback]
    return parts


__all__ = [
    "BAD_LIST",
    "build_trainer",
    "clips_of_training",
    "good_clips",
    "load_model",
    "mixes_labels",
    "published_parts",
    "start_line",
]
