"""The texts about results: the model card of a fine-tuning, and the README of an evaluation."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from transformers import SchedulerType
from transformers.trainer_utils import has_length

from ..conversion.card import markdown_text, write_card
from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import printable
from .answers import Answers, interval_text
from .cheap_tuning import is_adapted
from .length_report import LENGTH_PICTURE, length_section
from .lengths import Lengths
from .metrics import ClassResult
from .optimizer import EpochDecay
from .results import CLASS_PICTURES, CONFUSION_PICTURE, WORST_PAGE, WORST_TABLE
from .trainer import ASTTrainer

# With up to CLASS_ROWS classes a card has a row for each, otherwise for the WORST_CLASS_ROWS worst.
CLASS_ROWS, WORST_CLASS_ROWS = 50, 20
CONFUSION_ROWS = 10
# The input length of the published models, 10.24 s.
AUDIOSET_FRAMES = 1024
NAMED_LABELS = 30
# File with what a run chose by itself, and the reasons: [{"name", "value", "reason"}, ...].
CHOSEN_FILE = "chosen.json"
KEPT_NAME = "keep_weights"  # name of the choice of the weights
ADAPTER_NOTE = """
These are the weights of an adapter, which are added to those of the base model while it loads:
`pip install "modeling-ast[lora]"`.
"""
CURVE_NOTE = """
The loss while training is that of clips that are mixed, masked or cut, which are harder: it may be
higher than the loss of the held-out clips.
"""
METRICS = {
    "accuracy": "accuracy",
    "mAP": "mean average precision (mAP)",
    "mAUC": "mean area under the ROC curve",
    "d_prime": "d' (from that area; infinite if it is 1)",
    "F1": "F1, mean over the labels",
    "ECE": "expected calibration error",
    "loss": "loss",
}
# Start of the name of a metric that is not of the kept weights on held-out clips -> its meaning.
WHICH = {
    "last": "weights of the last step",
    "best": "weights of the best evaluation",
    "average": "averaged weights, in `average/`",
    "validation_last": "validation clips, weights of the last step",
    "validation_best": "validation clips, weights of the best evaluation",
    "validation_average": "validation clips, averaged weights",
    "training": "training clips",
}


def run_card(
    folder: Path,
    sources: tuple[str, str],
    metrics: Mapping[str, Any],
    answers: Answers,
    trainer: ASTTrainer,
    lengths: Lengths,
    how_trained: str = "",
) -> str:
    """The model card of a fine-tuning.

    Args:
        folder: The output directory; the pictures and tables that it has are shown.
        sources: The base model and the data, as they were given.
        metrics: `eval_*` of the held-out clips, and metrics with names that start as in `WHICH`.
        answers: The scores of the held-out clips.
        trainer: The trainer of the run.
        lengths: From `lengths.judge_lengths`.
        how_trained: A sentence that says which weights were trained.
    """
    adapted = is_adapted(trainer.model)
    base_model, data = sources
    local_model, local_data = Path(base_model).exists(), Path(data).exists()
    hub_name = trainer.hub_model_id or trainer.args.hub_model_id
    headline = answers.headline
    result = EvalResult(
        task_type="audio-classification",
        dataset_type=Path(data).name if local_data else data,
        dataset_name=Path(data).name,
        metric_type=headline.metric,
        metric_name={"mAP": "mean average precision"}.get(headline.metric, headline.metric),
        metric_value=round(headline.value, 4),
    )
    metadata = {
        "model_name": folder.name,
        "base_model": None if local_model else base_model,
        "base_model_relation": None if local_model else "adapter" if adapted else "finetune",
        "datasets": None if local_data else [data],
        # An undefined value (NaN) is not a valid result.
        "eval_results": [result] if math.isfinite(headline.value) else None,
        "metrics": [headline.metric],
    }
    assert trainer.extractor is not None  # the trainer of a fine-tuning has one
    sections = [
        introduction(answers.names, base_model, data, local_model, local_data),
        "## How to use it",
        usage(folder.name, hub_name, trainer.extractor),
        ADAPTER_NOTE if adapted else "",
        "## Results",
        kept_note(folder),
        *result_sections(
            folder, answers, others_than_kept(folder, metrics), "which the model was not trained on"
        ),
        length_section(lengths, headline.metric, trainer.extractor.padding),
        "## Training",
        training_section(trainer, how_trained),
        chosen_section(folder),
        "![learning curve](learning_curve.png)",
        CURVE_NOTE,
    ]
    return write_card(folder.name, metadata, filter(None, sections))


def evaluation_text(
    folder: Path, models: Sequence[str], data: str, metrics: Mapping[str, Any], answers: Answers
) -> str:
    """The README of an evaluation.

    Args:
        folder: The folder with the files of the evaluation.
        models: Names of the models; several were evaluated as an ensemble.
        data: Name of the data.
        metrics: `eval_*`.
        answers: The scores of the held-out clips.
    """
    judged = ", ".join(f"`{plain_code(name)}`" for name in models)
    what = f"the ensemble of {len(models)} models, {judged}," if len(models) > 1 else judged
    sections = [
        "# Evaluation",
        f"The results of {what} on the held-out clips of `{plain_code(data)}`, from "
        f"`modeling-ast evaluate`.",
        *result_sections(folder, answers, metrics),
        f"![score against the length of a clip]({LENGTH_PICTURE})"
        if (folder / LENGTH_PICTURE).exists()
        else "",
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def plain_code(text: str) -> str:
    """A text for a place between backticks, without backticks of its own."""
    return printable(text).replace("`", "'")


def introduction(
    names: Sequence[str], base_model: str, data: str, local_model: bool, local_data: bool
) -> str:
    """What the model does, and what it was made from."""
    # Labels may have commas of their own, such as AudioSet's "Beep, bleep".
    between = "; " if any("," in name for name in names) else ", "
    labels = between.join(map(markdown_text, names[:NAMED_LABELS]))
    if len(names) > NAMED_LABELS:
        labels += f"{between}and {len(names) - NAMED_LABELS} more (`config.json` has all)"
    where = {
        (True, True): " Both were local directories.",
        (True, False): " The base model was a local directory.",
        (False, True): " The data was local.",
        (False, False): "",
    }[local_model, local_data]
    return (
        f"This model names the sounds in a recording. It is an [Audio Spectrogram Transformer]"
        f"(https://arxiv.org/abs/2104.01778), fine-tuned with `modeling-ast finetune` from "
        f"`{plain_code(base_model)}` on `{plain_code(data)}`.{where}\n\n"
        f"It knows {len(names)} labels: {labels}."
    )


def usage(name: str, hub_name: str | None, extractor: ASTFeatureExtractor) -> str:
    """Where the package comes from, a snippet, a command, and how long a clip may be."""
    model = hub_name or f"path/to/{name}"
    where = "" if hub_name else "# The path of this folder, or its name on the Hub.\n"
    seconds = extractor.max_samples / extractor.sampling_rate
    note = ""
    if extractor.max_length < AUDIOSET_FRAMES:
        note = (
            f"\n\nThe pipeline uses only the first {seconds:.2g} s of a clip; the command cuts a "
            f"longer clip into parts and uses all of them."
        )
    return f"""
Install the package with `pip install .` in a copy of its repository.

```python
import modeling_ast
from transformers import pipeline

{where}name = "{model}"
classify = pipeline("audio-classification", model=name, feature_extractor=name)
classify(modeling_ast.read_audio("clip.wav"))
```

On the command line: `modeling-ast classify {plain_code(shlex.quote(model))} clip.wav`{note}
"""


def result_sections(
    folder: Path, answers: Answers, metrics: Mapping[str, Any], known: str = ""
) -> Iterable[str]:
    """Figures, labels, confusions and mistakes; pictures and the page if they are in `folder`.

    Args:
        known: A clause about the clips.
    """
    headline = answers.headline
    groups = f" of {headline.num_groups} groups" if headline.num_groups else ""
    yield (
        f"On {headline.num_clips} held-out clips{groups}{', ' if known else ''}{known}:\n\n"
        f"{figure_table(answers, metrics)}\n\n"
        f"{interval_note(answers)}\n\n"
        f"{other_figures(headline.metric, metrics)}".strip()
    )
    yield "### Each label"
    yield class_section(answers)
    if (folder / CONFUSION_PICTURE).exists():
        yield f"![confusion matrix]({CONFUSION_PICTURE})"
    elif (folder / (picture := CLASS_PICTURES[answers.class_metric])).exists():
        yield f"![each label]({picture})"
    yield confusion_section(answers)
    yield mistake_section(folder, answers)


def figure_table(answers: Answers, metrics: Mapping[str, Any]) -> str:
    """The main metric with its interval, the value that guessing would reach, and other metrics."""
    headline = answers.headline
    rows = [
        (f"**{METRICS[headline.metric]}**", f"**{headline.value:.4f}** ({interval_text(headline)})")
    ]
    guess = "chance level: random scores"
    if headline.majority is not None:
        guess = f"chance level: always answering {markdown_text(headline.majority)}"
    rows.append((guess, f"{headline.chance:.4f}"))
    for key, name in METRICS.items():
        if key != headline.metric and f"eval_{key}" in metrics:
            rows.append((name, number(metrics[f"eval_{key}"])))
    return table(("", "value"), rows)


def other_figures(metric: str, metrics: Mapping[str, Any]) -> str:
    """A list of the main metric and the loss of other clips or weights; empty if there are none."""
    lines = []
    for prefix, which in WHICH.items():
        values = [
            f"{METRICS[key]} {number(metrics[f'{prefix}_{key}'])}"
            for key in (metric, "loss")
            if f"{prefix}_{key}" in metrics
        ]
        if values:
            lines.append(f"- {which}: {', '.join(values)}")
    return "\n".join(("For comparison:", "", *lines)) if lines else ""


def interval_note(answers: Answers) -> str:
    """What the interval means."""
    if math.isnan(answers.headline.interval.low):
        return ""
    drawn = "clips" if answers.groups is None else "groups of clips"
    return (
        f"The interval says how much the figure depends on which {drawn} were held out (bootstrap)."
    )


def class_section(answers: Answers) -> str:
    """A table with a row for each label, the worst first."""
    rows, note = answers.weakest(len(answers.names)), ""
    if len(rows) > CLASS_ROWS:
        note = f"The {WORST_CLASS_ROWS} worst of {len(rows)} labels; `per_class.csv` has all."
        rows = rows[:WORST_CLASS_ROWS]
    missing = len(answers.names) - len(answers.weakest(len(answers.names)))
    if missing:
        note += f" Left out: {missing} labels that no held-out clip has, or that all have."
    heads = ("label", "clips", "precision", "recall", "F1", "average precision")
    lines = table(heads, [(markdown_text(row.name), *class_cells(row)) for row in rows])
    how = "An answer is the label with the highest score."
    if not answers.exclusive:
        how = (
            "Precision, recall and F1 count a label from its threshold on, which is 0.5 unless the "
            "model is calibrated; the average precision needs no threshold."
        )
    return f"{lines}\n\n{how} {note}".strip()


def class_cells(row: ClassResult) -> tuple[str, ...]:
    """The numbers of a label."""
    values = (row.precision, row.recall, row.f1, row.average_precision)
    return (str(row.positives), *(number(value, 3) for value in values))


def confusion_section(answers: Answers) -> str:
    """The pairs of labels that are confused most often; empty if there are none."""
    pairs = answers.confusions
    if not pairs:
        return ""
    first, second = ("label", "mistaken for")
    if not answers.exclusive:
        first, second = ("missed", "found instead")
    rows = [
        (
            markdown_text(pair.true),
            markdown_text(pair.predicted),
            f"{pair.clips} of {pair.positives}",
        )
        for pair in pairs[:CONFUSION_ROWS]
    ]
    more = "" if len(pairs) <= CONFUSION_ROWS else f" ({CONFUSION_ROWS} of {len(pairs)} pairs)"
    return f"Most often confused{more}:\n\n{table((first, second, 'clips'), rows)}"


def mistake_section(folder: Path, answers: Answers) -> str:
    """The number of wrong clips, and where the single mistakes are listed."""
    wrong = len({row.clip for row in answers.mistakes})
    if not wrong:
        return "### Mistakes\n\nNo held-out clip has a wrong answer."
    lines = [
        "### Mistakes",
        f"{wrong} of {answers.headline.num_clips} held-out clips have a wrong answer. "
        f"[{WORST_TABLE}]({WORST_TABLE}) lists the mistakes, those with the highest confidence "
        f"first: the labels of the clip (`true`), the answer (`predicted`), and the score of the "
        f"label that is wrong or was missed.",
    ]
    if (folder / WORST_PAGE).exists():
        lines.append(
            f"[{WORST_PAGE}]({WORST_PAGE}) plays the worst of these clips and shows their "
            f"spectrograms. It is a single file: download it and open it in a browser."
        )
    return "\n\n".join(lines)


def training_section(trainer: ASTTrainer, how_trained: str) -> str:
    """The numbers of clips, and the most important arguments of the run."""
    arguments = trainer.args
    clips, held_out = trainer.train_dataset, trainer.eval_dataset
    assert isinstance(held_out, Sized)
    num_clips = "a stream of clips"
    if isinstance(clips, Sized) and has_length(clips):
        num_clips = f"{len(clips)} clips"
    epochs = f"{arguments.num_train_epochs:g} epochs"
    if arguments.max_steps > 0:
        epochs = f"{arguments.max_steps} steps"
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    kind = SchedulerType(arguments.lr_scheduler_type).value
    schedule = f"{kind.replace('_', ' ')} schedule"
    if trainer.epoch_decay is not None:
        schedule = schedule_text(trainer.epoch_decay)
    return f"""
- data: {num_clips} to train, {len(held_out)} held out
- length: {epochs}, batches of {batch * arguments.world_size}
- learning rate: {arguments.learning_rate:g}; {schedule}
- seed: {arguments.seed}

{how_trained} `run.json` has the other arguments.
"""


def schedule_text(decay: EpochDecay) -> str:
    """A schedule in words."""
    every = "each epoch" if decay.every == 1 else f"every {decay.every} epochs"
    text = (
        f"multiplied by {decay.factor:g} after epoch {decay.first} and after {every} from then on"
    )
    if decay.first == 0:
        text = f"multiplied by {decay.factor:g} from the start, and after {every}"
    if decay.warmup_steps:
        text += f"; it rises over the first {decay.warmup_steps} steps"
    return text


def chosen_section(folder: Path) -> str:
    """What the run chose by itself, with the reasons; empty if there is no file of choices."""
    rows = []
    for choice in choices_of(folder):
        if choice.get("name") == KEPT_NAME:
            continue
        cells = (choice.get(key, "") for key in ("name", "value", "reason"))
        rows.append(tuple(markdown_text("none" if cell is None else cell) for cell in cells))
    if not rows:
        return ""
    return f"Chosen for these clips and this model:\n\n{table(('', 'value', 'reason'), rows)}"


def choices_of(folder: Path) -> list[dict[str, Any]]:
    """What the run chose by itself, from its file; empty if there is no file."""
    file = folder / CHOSEN_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def kept_choice(folder: Path) -> tuple[str, str]:
    """Which weights the run kept, a key of `WHICH`, and why; empty if its file does not say."""
    for choice in choices_of(folder):
        if choice.get("name") == KEPT_NAME and choice.get("value") in WHICH:
            return choice["value"], str(choice.get("reason", ""))
    return "", ""


def kept_note(folder: Path) -> str:
    """A sentence that says which weights all figures are of; empty if this is unknown."""
    kept, reason = kept_choice(folder)
    if not kept:
        return ""
    which = "averaged weights" if kept == "average" else WHICH[kept]
    return f"This model has the {which} ({markdown_text(reason)})."


def others_than_kept(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without those of the kept weights, which only repeat `eval_*`."""
    kept, _ = kept_choice(folder)
    return {
        name: value
        for name, value in metrics.items()
        if not kept or not name.startswith(f"{kept}_")
    }


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None, digits: int = 4) -> str:
    """A number of a table; a dash if it is undefined."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


__all__ = ["CHOSEN_FILE", "evaluation_text", "run_card"]
