"""Fine-tunes an AST on any data set, with one or several labels to a clip.

Clips with several labels are learned with the binary cross-entropy and judged by the mean average
precision (mAP); clips with exactly one label are learned with the cross-entropy and judged by the
accuracy. The published optimiser, schedule, sampling and averaging of epochs are off unless asked
for, see `arguments.py` and the recipes. The output directory has the model, its extractor and what
`results.py` describes, ready for push_to_hub; `average/` has the model of the averaged weights. If
a run is interrupted, run it again: it resumes from the last checkpoint.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from torch import nn
from transformers import TrainingArguments, set_seed

from ..errors import one_line
from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import Label
from ..modeling_ast import ASTForAudioClassification
from ..outputs import one_run_at_a_time
from ..pretrained import load_config, load_extractor
from ..pretrained import load_model as load_pretrained
from ..strict_json import to_json
from ..tagging import AudioTagger
from .arguments import RUN_FILE, Arguments, ModelArguments
from .averaging import AverageWeightsCallback
from .batches import AudioCollator, LabelEncoder
from .cheap_tuning import before_saving, train_a_part
from .checkpoints import find_damage, last_whole_checkpoint
from .classes import Clips, check_labels, is_exclusive, label_column, read_classes
from .clips import BadClips, ClipReader, drop_bad_clips
from .data_report import DataReport
from .data_sources import Loaded, load
from .evaluation import Lengths, held_out_clips, judge_lengths, spread
from .optimizer import EpochDecay, published_adam
from .results import Judge, save_results
from .sampling import BalancedSampler, balanced_weights
from .streams import TrainingStream
from .trainer import ASTTrainer, output_folder

if TYPE_CHECKING:
    from .adapted_model import AdaptedAST

# Of ModelArguments, those that from_pretrained takes as they are.
CONFIG_FIELDS = (
    "max_length",
    "frequency_stride",
    "time_stride",
    "patchout_frequency",
    "patchout_time",
)
# What torch's errors about files that it cannot write say; they are RuntimeErrors like all others.
_WRITING = ("PytorchStreamWriter", "Parent directory", "unexpected pos")
BAD_LIST = "bad_clips.txt"
# Of the arguments in RUN_FILE, those that may change when a run resumes: how clips are read, where
# features are computed.
MAY_CHANGE = ("max_bad_share", "shuffle_buffer", "features")


class Outcome(NamedTuple):
    """What a fine-tuning gives, beside the files in its output directory."""

    trainer: ASTTrainer
    # `eval_*` of the model, `average_*` of the averaged weights and, in the first process, the
    # scores under both paddings.
    metrics: dict[str, float]
    metric: str  # the one that the run is judged by, "mAP" or "accuracy"
    data: DataReport  # what became of each file


def smooth_in_loss(arguments: Arguments) -> None:
    """Leaves label smoothing to Trainer's loss, which can smooth class indices."""
    amount = arguments.augmentation.label_smoothing
    arguments.training.label_smoothing_factor = amount or arguments.training.label_smoothing_factor
    arguments.augmentation = replace(arguments.augmentation, label_smoothing=0.0)


def load_model(
    arguments: ModelArguments, classes: Sequence[Label], exclusive: bool = False
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """The model with a head for `classes`, and its extractor.

    Args:
        arguments: Name the checkpoint, and what to change of it.
        classes: In the order of their indices; if their number is new, the head is fresh.
        exclusive: Whether it learns with the cross-entropy of one label for a clip.
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
        model = load_pretrained(arguments.source, fresh_head=True, **changes)
    stored = load_extractor(arguments.source)
    for name in ("mean", "std", "do_normalize"):
        # A checkpoint of transformers has these in its extractor's file only.
        setattr(model.config, name, getattr(stored, name))
    for name in ("mean", "std"):
        if getattr(arguments, name) is not None:
            setattr(model.config, name, getattr(arguments, name))
    padding = arguments.padding or stored.padding
    return model, ASTFeatureExtractor.from_config(model.config, padding=padding)


def build_trainer(
    model: ASTForAudioClassification | AdaptedAST,
    extractor: ASTFeatureExtractor,
    classes: Sequence[Label],
    splits: tuple[Clips, Dataset],
    arguments: Arguments,
    compute_metrics: Judge,
) -> ASTTrainer:
    """A Trainer whose workers decode, crop and mix the clips.

    Workers also extract features and augment them, unless the training device does.

    Args:
        model, extractor: From `load_model`; the model also from `train_a_part`.
        classes: From `read_classes`.
        splits: The clips to train on and those held out, from `load_data`.
        arguments: Of the run.
        compute_metrics: Judges the held-out clips.
    Raises:
        TooManyBadClips: More of the held-out clips than allowed cannot be decoded.
    """
    (train, held_out), data, training = splits, arguments.data, arguments.training
    reader = ClipReader.for_extractor(extractor, audio_column=data.audio_column, root=data.root)
    bad_list = output_folder(training) / BAD_LIST
    num_clips = clips_of_training(train, arguments) + len(held_out)
    bad_clips = BadClips(bad_list, num_clips, data.max_bad_share)
    collate = partial(
        AudioCollator,
        extractor,
        label_encoder(classes, model.config.problem_type),
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
            crop="random",
            bad_clips=bad_clips,
            augmentation=arguments.augmentation,
            partners=train if arguments.sampling.mix_whole_set else None,
            seed=training.seed,
        ),
        eval_collator=collate(crop="parts"),
        train_dataset=train,
        eval_dataset=good_clips(held_out, reader, bad_clips, training),
        compute_metrics=compute_metrics,
        processing_class=extractor,
        extractor=extractor,
        augmentation=arguments.augmentation,
        **published_parts(arguments, train),
    )


def clips_of_training(train: Clips, arguments: Arguments) -> int:
    """Number of clips to train on: of the set, or those that the run will draw from a stream."""
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
    """The held-out clips that can be decoded, which one process on each machine finds out.

    In training another clip takes the place of a bad one; an evaluation must count none twice.
    """
    with training.main_process_first(desc="the look for bad clips"):
        workers = training.dataloader_num_workers or None
        first = training.local_process_index == 0
        return drop_bad_clips(held_out, reader, bad_clips, num_proc=workers, decode=first)


def label_encoder(classes: Sequence[Label], problem_type: str | None) -> LabelEncoder:
    """MIDs, names or indices -> the labels that the loss takes."""
    label2id = {key: index for index, label in enumerate(classes) for key in label}
    multi_label = problem_type == "multi_label_classification"
    return LabelEncoder(label2id, multi_label, num_labels=len(classes))


def published_parts(arguments: Arguments, train: Clips) -> dict[str, Any]:
    """ASTTrainer's keywords for those parts of the paper that the arguments ask for."""
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


def evaluate_average(trainer: ASTTrainer) -> dict[str, float]:
    """The metrics of the averaged weights, as `average_*`."""
    trainer.accelerator.wait_for_everyone()
    trained, wrapped = trainer.model, trainer.model_wrapped
    folder = output_folder(trainer.args) / "average"
    average = load_pretrained(folder)
    # transformers wraps `to` without its types.
    module: nn.Module = average
    module.to(trainer.args.device)
    trainer.model = trainer.model_wrapped = average
    try:
        return trainer.evaluate(metric_key_prefix="average")
    finally:
        trainer.model, trainer.model_wrapped = trained, wrapped


def judge_saved_model(trainer: ASTTrainer, judge: Judge, num_clips: int) -> Lengths:
    """The scores of the saved model under both paddings, on some of the held-out clips."""
    if num_clips == 0:
        return Lengths([], 0)
    collate = trainer.eval_collator
    assert isinstance(collate, AudioCollator)  # from `build_trainer`
    held_out = held_out_clips(
        trainer.eval_dataset, collate.reader, judge.classes, collate.label_column, judge.exclusive
    )
    tagger = AudioTagger.from_pretrained(output_folder(trainer.args), trainer.args.device)
    return judge_lengths(tagger, spread(held_out, num_clips))


def deciding_arguments(arguments: Arguments) -> dict[str, Any]:
    """The arguments that decide what a run learns, as JSON holds them."""
    chosen = (
        arguments.model,
        arguments.data,
        arguments.augmentation,
        arguments.optimizer,
        arguments.cheap,
    )
    given = {name: value for kind in chosen for name, value in asdict(kind).items()}
    given |= asdict(arguments.sampling)
    given |= {name: getattr(arguments.training, name) for name in ("learning_rate", "seed")}
    return json.loads(to_json({name: given[name] for name in given if name not in MAY_CHANGE}))


def check_same_run(folder: Path, deciding: dict[str, Any]) -> None:
    """Refuses to go on with a run of other arguments.

    It would write a card and an extractor that the weights were not trained with.

    Args:
        folder: The output directory.
        deciding: From `deciding_arguments`.
    Raises:
        ValueError: An argument differs from that of the run in `folder`.
    """
    file = folder / RUN_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, value in deciding.items():
        if before.get(name, value) != value:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{folder} holds a run with {flag} {before[name]}, not {value}; give another "
                f"--output-dir, or the same arguments to go on with it"
            )


def find_resumed(
    training: TrainingArguments, model: ASTForAudioClassification | AdaptedAST
) -> str | None:
    """The checkpoint to go on from: the one that is asked for, or else the newest whole one.

    Raises:
        ValueError: The one that is asked for is damaged.
    """
    kind = (training.world_size, training.save_only_model, model)
    given = training.resume_from_checkpoint
    if given is None:
        return last_whole_checkpoint(output_folder(training), *kind)
    damage = find_damage(Path(given), *kind)
    if damage is not None:
        raise ValueError(
            f"cannot go on from {given}: {damage}; leave out --resume-from-checkpoint to go on "
            f"from the newest whole checkpoint in {training.output_dir}"
        )
    return given


def train(
    arguments: Arguments, announce: Callable[[DataReport], None] = lambda report: None
) -> tuple[ASTTrainer, Judge, Loaded]:
    """Trains the model that the arguments describe, from its last checkpoint if there is one.

    Args:
        arguments: Of the run.
        announce: Is given what became of each file, in the first process, before the training.
    Returns:
        The trainer, the judge of the held-out clips, and the data.
    Raises:
        OSError, ValueError: As `finetune`.
    """
    training = arguments.training
    deciding = deciding_arguments(arguments)
    set_seed(training.seed)
    loaded = load(arguments.data)
    splits = (loaded.train, loaded.held_out)
    classes = read_classes(arguments.data, *splits)
    check_labels(loaded.report, classes, loaded.train_name, loaded.held_out_name)
    if training.process_index == 0:
        announce(loaded.report)
    exclusive = is_exclusive(arguments.data, splits[0])
    with_softmax = arguments.data.loss == "cross_entropy"
    if with_softmax and not exclusive:
        raise ValueError("--loss cross_entropy needs exactly one label to a clip; use bce")
    with_softmax |= arguments.data.loss == "auto" and exclusive
    if with_softmax:
        smooth_in_loss(arguments)
    model, extractor = load_model(arguments.model, classes, with_softmax)
    trained = train_a_part(model, arguments.cheap)
    resumed = find_resumed(training, trained)
    if resumed:
        check_same_run(output_folder(training), deciding)
    elif training.process_index == 0:
        # The clips that an earlier run listed may have been mended or removed since.
        (output_folder(training) / BAD_LIST).unlink(missing_ok=True)
    judge = Judge(classes, exclusive)
    trainer = build_trainer(trained, extractor, classes, splits, arguments, judge)
    if trainer.is_world_process_zero():
        file = output_folder(training) / RUN_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_json(deciding) + "\n", encoding="utf-8")
        loaded.report.save(output_folder(training))
    trainer.train(resume_from_checkpoint=resumed)
    return trainer, judge, loaded


def finetune(
    arguments: Arguments, announce: Callable[[DataReport], None] = lambda report: None
) -> Outcome:
    """Trains, evaluates and saves.

    Args:
        arguments: Of the run.
        announce: See `train`.

    With several processes each of them calls it; the first one writes the files.

    Raises:
        OSError, ValueError: Model or data cannot be read, they do not fit together, or more clips
            than allowed are bad.
    """
    folder = output_folder(arguments.training)
    folder.mkdir(parents=True, exist_ok=True)
    # The processes of one run share the directory: the first locks it for all.
    first = arguments.training.process_index == 0
    with one_run_at_a_time(folder) if first else nullcontext(), _writing(folder):
        return _finetune(arguments, announce)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Names the output directory where it cannot be written: libraries' messages do not."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        text = str(error)
        by_torch = any(words in text for words in _WRITING)
        if isinstance(error, RuntimeError) and not by_torch:
            raise
        if isinstance(error, OSError) and str(folder) not in text and error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"cannot write into {folder} ({one_line(error)}); make room or mend the directory, and "
            f"run the same command again: it goes on from the newest whole checkpoint"
        ) from error


def _finetune(arguments: Arguments, announce: Callable[[DataReport], None]) -> Outcome:
    trainer, judge, loaded = train(arguments, announce)
    metrics = trainer.evaluate()
    table = judge.table
    if arguments.sampling.average_from is not None:
        metrics |= evaluate_average(trainer)
    trained = before_saving(trainer, arguments.cheap)
    # Not pushed yet: what follows belongs to it, and reads it.
    trainer.save_model(_internal_call=True)
    if trainer.is_world_process_zero():
        data = arguments.data.data
        assert data is not None  # it has been read
        sources = (arguments.model.source, data)
        lengths = judge_saved_model(trainer, judge, arguments.lengths.length_clips)
        metrics |= lengths.as_metrics(judge.metric)
        save_results(trainer, judge, table, sources, metrics, lengths, trained)
        folder, collate = output_folder(trainer.args), trainer.eval_collator
        assert isinstance(collate, AudioCollator)  # from `build_trainer`
        bad = BadClips(folder / BAD_LIST, num_clips=1).read()
        loaded.skip_bad_clips(bad, collate.reader, arguments.data)
        loaded.report.save(folder)
    # With --push-to-hub this uploads the whole folder, but for the checkpoints.
    trainer.save_model()
    return Outcome(trainer, metrics, judge.metric, loaded.report)


__all__ = ["Outcome", "build_trainer", "evaluate_average", "finetune", "load_model", "train"]
