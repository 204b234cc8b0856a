"""What a fine-tuning leaves in its output directory, beside the model: numbers, pictures, a card.

`metrics.json`, `learning_curve.png`, `per_class.csv` (average precision, area under the ROC curve
and number of held-out clips of each class), `per_class_ap.png`, and `README.md`, a model card with
the results in the Hub's model-index and the scores under both paddings. Trainer adds its
checkpoints and the TensorBoard log (`runs/`, for `tensorboard --logdir`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence, Sized
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult
from transformers import EvalPrediction, SchedulerType
from transformers.trainer_utils import has_length

from ..conversion.card import markdown_text, write_card
from ..labels import Label
from ..plotting import plain_text
from ..strict_json import to_json
from .cheap_tuning import is_adapted
from .lengths import PLAIN_TRANSFORMERS, Lengths, length_rows
from .metrics import ClassResult, accuracy, class_table, compute_metrics
from .trainer import ASTTrainer, output_folder

# A picture of more classes than these has the best and the worst ones only.
DRAWN_CLASSES = 40

ADAPTER_NOTE = """
These are the weights of an adapter, which are added to those of the base model while it loads:
`pip install "modeling-ast[lora]"`.
"""


class Judge:
    """`compute_metrics` for Trainer; it keeps the table of classes of the last evaluation.

    Args:
        classes: In the order of their indices.
        exclusive: Whether a clip has exactly one label: accuracy is then the first metric, also
            where the labels are multi-hot.
    """

    def __init__(self, classes: Sequence[Label], exclusive: bool):
        self.classes = classes
        self.names = [label.name for label in classes]
        self.exclusive = exclusive
        self.table: list[ClassResult] = []

    @property
    def metric(self) -> str:
        """The metric that a run is judged by."""
        return "accuracy" if self.exclusive else "mAP"

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        metrics = compute_metrics(prediction)
        if labels.ndim == 2:
            self.table = class_table(logits, labels, self.names)
            own = {"accuracy": accuracy(logits, labels.argmax(1))} if self.exclusive else {}
            return own | metrics
        # As compute_metrics ranks clips where each has one label.
        scores = torch.from_numpy(logits).double().log_softmax(-1).numpy()
        self.table = class_table(scores, np.eye(len(self.names))[labels], self.names)
        return metrics


def save_results(
    trainer: ASTTrainer,
    judge: Judge,
    table: list[ClassResult],
    sources: tuple[str, str],
    metrics: dict[str, float],
    lengths: Lengths,
    how_trained: str = "",
) -> None:
    """Writes everything but the weights into the output directory.

    Args:
        trainer: Of the run.
        judge: Of its held-out clips.
        table: Of the evaluation that `metrics` come from.
        sources: The base model and the data, as they were given.
        metrics: `eval_*`, `average_*` if weights were averaged, and those of `lengths`.
        lengths: From `lengths.judge_lengths`.
        how_trained: One sentence on which weights were trained.
    """
    folder = output_folder(trainer.args)
    (folder / "metrics.json").write_text(to_json(metrics) + "\n", encoding="utf-8")
    write_table(table, folder / "per_class.csv")
    draw_curve(trainer.state.log_history, folder / "learning_curve.png", judge.metric)
    draw_classes(table, folder / "per_class_ap.png")
    card = run_card(folder.name, *sources, metrics, judge.metric, trainer, lengths, how_trained)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_table(table: list[ClassResult], path: Path) -> None:
    """Writes a CSV file with a row for each class; a number that is undefined is left empty."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("index", *ClassResult._fields))
        for index, row in enumerate(table):
            cells = ("" if value != value else value for value in row)
            writer.writerow((index, *cells))


def draw_curve(history: list[dict], path: Path, metric: str = "mAP") -> None:
    """Draws the training loss and the metric of the held-out clips over the epochs."""
    pyplot = quiet_pyplot()
    figure, left = pyplot.subplots(figsize=(7, 4), layout="constrained")
    right = left.twinx()
    for axis, key, colour in ((left, "loss", "tab:blue"), (right, f"eval_{metric}", "tab:orange")):
        points = [(row["epoch"], row[key]) for row in history if key in row]
        axis.plot(*zip(*points), color=colour, marker="." if len(points) < 60 else None)
        axis.set_ylabel(key, color=colour)
    left.set_xlabel("epoch")
    right.set_ylim(0, 1)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_classes(table: list[ClassResult], path: Path) -> None:
    """Draws the average precision of each class, the best on top."""
    rows = [row for row in table if row.average_precision == row.average_precision]
    rows = sorted(rows, key=lambda row: row.average_precision)
    title = "average precision of each class"
    if len(rows) > DRAWN_CLASSES:
        title = f"average precision, {DRAWN_CLASSES // 2} worst and best of {len(rows)} classes"
        rows = rows[: DRAWN_CLASSES // 2] + rows[-DRAWN_CLASSES // 2 :]
    pyplot = quiet_pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 1.2 + 0.22 * len(rows)), layout="constrained")
    places = range(len(rows))
    axis.barh(places, [row.average_precision for row in rows], color="tab:orange")
    axis.set_yticks(places, [plain_text(f"{row.name} ({row.positives})") for row in rows])
    axis.set(xlim=(0, 1), title=title)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def quiet_pyplot():
    """matplotlib's pyplot, which opens no window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def run_card(
    name: str,
    base_model: str,
    data: str,
    metrics: dict[str, float],
    metric: str,
    trainer: ASTTrainer,
    lengths: Lengths,
    how_trained: str = "",
) -> str:
    """The model card of a run: results, the scores under both paddings, how to use the model."""
    adapted = is_adapted(trainer.model)
    relation = "adapter" if adapted else "finetune"
    local_model, local_data = Path(base_model).exists(), Path(data).exists()
    value = metrics[f"eval_{metric}"]
    result = EvalResult(
        task_type="audio-classification",
        dataset_type=Path(data).name if local_data else data,
        dataset_name=Path(data).name,
        metric_type=metric,
        metric_name={"mAP": "mean average precision"}.get(metric, metric),
        metric_value=round(value, 4),
    )
    metadata = {
        "model_name": name,
        "base_model": None if local_model else base_model,
        "base_model_relation": None if local_model else relation,
        "datasets": None if local_data else [data],
        # An undefined value (NaN) is no result.
        "eval_results": [result] if math.isfinite(value) else None,
        "metrics": [metric],
    }
    arguments, config = trainer.args, trainer.model.config
    clips, held_out, extractor = trainer.train_dataset, trainer.eval_dataset, trainer.extractor
    # The trainer of a fine-tuning has both.
    assert isinstance(held_out, Sized) and extractor is not None
    num_clips = "a stream of clips"
    if isinstance(clips, Sized) and has_length(clips):
        num_clips = f"{len(clips)} clips"
    local = (
        "The base model and the data were local directories." if local_model or local_data else ""
    )
    schedule = trainer.epoch_decay or f"{SchedulerType(arguments.lr_scheduler_type).value} schedule"
    sections = [
        "An Audio Spectrogram Transformer fine-tuned with `modeling-ast finetune`.",
        f"""
- base model: `{base_model}`
- data: `{data}`, {num_clips} to train, {len(held_out)} held out
- classes: {", ".join(map(markdown_text, config.id2label.values()))}
""",
        local,
        f"""
| held-out metric | value |
| --- | --- |
{metric_rows(metrics)}
""",
        length_section(lengths, metric, extractor.padding),
        "![learning curve](learning_curve.png)",
        "![average precision of each class](per_class_ap.png)",
        f"""
Trained for {arguments.num_train_epochs:g} epochs at a batch size of
{arguments.train_batch_size}, learning rate {arguments.learning_rate:g},
{schedule}, seed {arguments.seed}. {how_trained}
""",
        ADAPTER_NOTE if adapted else "",
        f"""
```python
import modeling_ast
from transformers import pipeline

classify = pipeline("audio-classification", model="{name}", feature_extractor="{name}")
classify(modeling_ast.read_audio("clip.wav"))
```
""",
    ]
    return write_card(name, metadata, filter(None, sections))


def length_section(lengths: Lengths, metric: str, padding: str) -> str:
    """The scores under both paddings at three lengths; empty if nothing was judged."""
    if not lengths.results:
        return ""
    rows = "\n".join(
        f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |"
        for name, values in length_rows(lengths, metric)
    )
    return f"""
{metric} on {lengths.num_clips} of the held-out clips, whole and cut to their middle, under both
paddings. This model has saved the padding `{padding}`; {PLAIN_TRANSFORMERS}.

| padding | whole clips | half of each | a quarter of each |
| --- | --- | --- | --- |
{rows}
"""


def metric_rows(metrics: dict[str, float]) -> str:
    """Lines of the card's table; those of the averaged weights (`average/`) last."""
    names = {
        "accuracy": "accuracy",
        "mAP": "mAP",
        "mAUC": "mean ROC AUC",
        "d_prime": "d'",
        "loss": "loss",
    }
    rows = []
    for prefix, suffix in (("eval", ""), ("average", " of the averaged weights")):
        for key, label in names.items():
            if f"{prefix}_{key}" in metrics:
                rows.append(f"| {label}{suffix} | {metrics[f'{prefix}_{key}']:.4f} |")
    return "\n".join(rows)


__all__ = ["Judge", "save_results", "write_table"]
