"""Fine-tunes an AST on any data set, with one or several labels to a clip.

    python examples/finetune.py --model MODEL --data DATA --output_dir OUT [Trainer's arguments]
    python examples/finetune.py --recipe examples/recipes/demo.yaml --model MODEL [overrides]

MODEL is an AST on the Hub or a directory, for instance what conversion/deit_to_ast.py wrote; DATA
is what data_sources.py describes. Clips with several labels are learned with the binary
cross-entropy and judged by the mean average precision (mAP), clips with exactly one with the
cross-entropy and the accuracy. The published optimiser, schedule, sampling and averaging of epochs
are off unless asked for, see --help and recipes/. The output directory has the model, its extractor
and what run_folder.py describes, ready for push_to_hub; `average/` has the model of the averaged
weights. Run again, it goes on from the last checkpoint.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_sources import Clips, is_exclusive, label_column, load_data, read_classes
from datasets import Dataset, IterableDataset
from finetune_arguments import Arguments, ModelArguments, parse_arguments
from run_folder import Judge, save_results
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    TrainingArguments,
    set_seed,
)

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training import (
    ASTTrainer,
    AudioCollator,
    AverageWeightsCallback,
    BadClips,
    BalancedSampler,
    ClipReader,
    EpochDecay,
    LabelEncoder,
    TrainingStream,
    balanced_weights,
    drop_bad_clips,
    last_whole_checkpoint,
    published_adam,
)

# Of ModelArguments, those that from_pretrained takes as they are.
CONFIG_FIELDS = (
    "max_length",
    "frequency_stride",
    "time_stride",
    "patchout_frequency",
    "patchout_time",
)


def smooth_in_loss(arguments: Arguments) -> None:
    """Where labels are class indices, Trainer smooths them, in its loss."""
    amount = arguments.augmentation.label_smoothing
    arguments.training.label_smoothing_factor = amount or arguments.training.label_smoothing_factor
    arguments.augmentation = replace(arguments.augmentation, label_smoothing=0.0)


def load_model(arguments: ModelArguments, classes: list[tuple[str, str]], exclusive: bool = False):
    """The model with a head for `classes` (fresh if their number is new), and its extractor.

    Args:
        exclusive: Whether it learns with the cross-entropy of one label for a clip.
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
        config = AutoConfig.from_pretrained(arguments.model, **changes)
        model = AutoModelForAudioClassification.from_config(config)
    else:
        model = AutoModelForAudioClassification.from_pretrained(
            arguments.model, ignore_mismatched_sizes=True, **changes
        )
    stored = AutoFeatureExtractor.from_pretrained(arguments.model)
    for name in ("mean", "std", "do_normalize"):
        # A checkpoint of transformers has these in its extractor's file only.
        setattr(model.config, name, getattr(stored, name))
    for name in ("mean", "std"):
        if getattr(arguments, name) is not None:
            setattr(model.config, name, getattr(arguments, name))
    return model, ASTFeatureExtractor.from_config(model.config, padding=stored.padding)


def build_trainer(
    model,
    extractor: ASTFeatureExtractor,
    classes: list[tuple[str, str]],
    splits: tuple[Clips, Dataset],
    arguments: Arguments,
    compute_metrics: Judge,
) -> ASTTrainer:
    """A Trainer whose workers decode, crop and mix, and perhaps extract features and augment."""
    (train, held_out), data, training = splits, arguments.data, arguments.training
    reader = ClipReader(extractor.sampling_rate, data.audio_column, root=data.root)
    bad_list = Path(training.output_dir) / "bad_clips.txt"
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
        eval_collator=collate(),
        train_dataset=train,
        eval_dataset=good_clips(held_out, reader, bad_clips, training),
        compute_metrics=compute_metrics,
        processing_class=extractor,
        extractor=extractor,
        augmentation=arguments.augmentation,
        **published_parts(arguments, train),
    )


def clips_of_training(train: Clips, arguments: Arguments) -> int:
    """Clips of the training set, or those that the run will draw from a stream."""
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
    """Those that can be decoded, which one process on each machine finds out.

    In training a bad clip gives way to another; an evaluation must not count one twice.
    """
    with training.main_process_first(desc="the look for bad clips"):
        workers = training.dataloader_num_workers or None
        first = training.local_process_index == 0
        return drop_bad_clips(held_out, reader, bad_clips, num_proc=workers, decode=first)


def label_encoder(classes: list[tuple[str, str]], problem_type: str) -> LabelEncoder:
    """MIDs, names or indices -> what the loss takes."""
    label2id = {key: index for index, pair in enumerate(classes) for key in pair}
    multi_label = problem_type == "multi_label_classification"
    return LabelEncoder(label2id, multi_label, num_labels=len(classes))


def published_parts(arguments: Arguments, train: Clips) -> dict:
    """ASTTrainer's keywords for what was asked for of the paper's optimiser, sampler, averaging."""
    chosen, sampling, training = arguments.optimizer, arguments.sampling, arguments.training
    parts = {}
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
    folder = Path(trainer.args.output_dir) / "average"
    average = AutoModelForAudioClassification.from_pretrained(folder).to(trainer.args.device)
    trainer.model = trainer.model_wrapped = average
    try:
        return trainer.evaluate(metric_key_prefix="average")
    finally:
        trainer.model, trainer.model_wrapped = trained, wrapped


def train(arguments: Arguments) -> tuple[ASTTrainer, Judge]:
    """Trains the model that the arguments describe."""
    set_seed(arguments.training.seed)
    splits = load_data(arguments.data)
    classes = read_classes(arguments.data, *splits)
    exclusive = is_exclusive(arguments.data, splits[0])
    with_softmax = arguments.data.loss == "cross_entropy"
    if with_softmax and not exclusive:
        raise ValueError("--loss cross_entropy needs exactly one label to a clip; use bce")
    with_softmax |= arguments.data.loss == "auto" and exclusive
    if with_softmax:
        smooth_in_loss(arguments)
    try:
        model, extractor = load_model(arguments.model, classes, with_softmax)
    except OSError as error:
        # Not every message of the Hub's client says which name it looked for.
        raise OSError(f"cannot load the model {arguments.model.model!r}: {error}") from error
    judge = Judge([name for _, name in classes], exclusive)
    trainer = build_trainer(model, extractor, classes, splits, arguments, judge)
    training = arguments.training
    newest = last_whole_checkpoint(training.output_dir, training.world_size)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint or newest)
    return trainer, judge


def main() -> None:
    """Trains, evaluates and saves."""
    try:
        arguments = parse_arguments()
        trainer, judge = train(arguments)
        metrics = trainer.evaluate()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    table = judge.table
    if arguments.sampling.average_from is not None:
        metrics |= evaluate_average(trainer)
    if trainer.is_world_process_zero():
        sources = (arguments.model.model, arguments.data.data)
        save_results(trainer, judge, table, sources, metrics)
    # With --push_to_hub this uploads the whole folder, but for the checkpoints.
    trainer.save_model()
    if trainer.is_world_process_zero():
        score = f"{judge.metric} {metrics[f'eval_{judge.metric}']:.4f}"
        sys.stdout.write(f"{score}; the model is in {trainer.args.output_dir}\n")


if __name__ == "__main__":
    main()
