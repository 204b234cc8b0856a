"""run_card.py: what a reader on the Hub sees, by a renderer of Markdown, for values set by
hand."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import TrainingArguments

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training.answers import Answers
from modeling_ast.training.lengths import Lengths
from modeling_ast.training.optimizer import EpochDecay
from modeling_ast.training.run_card import evaluation_text, run_card

STRANGE = "a | b <script>`x`</script> *c* \u202e"


def answers_of(num_classes=4, clips=40, exclusive=True, names=None):
    rng = np.random.default_rng(0)
    truth = np.eye(num_classes)[rng.integers(0, num_classes, clips)]
    scores = rng.dirichlet(np.ones(num_classes), clips) + 0.4 * truth
    if not exclusive:
        scores = rng.random((clips, num_classes))
    names = names or [f"class {index}" for index in range(num_classes)]
    return Answers(scores, truth, names, exclusive, [f"{i}.wav" for i in range(clips)])


def trainer_of(folder, decay=None, hub=None, frames=1024, **arguments):
    """The attributes of a trainer that the card uses."""
    arguments = TrainingArguments(folder, hub_model_id=hub, **arguments)
    return SimpleNamespace(
        args=arguments,
        hub_model_id=None,
        extractor=ASTFeatureExtractor(max_length=frames, padding="longest"),
        train_dataset=list(range(191)),
        eval_dataset=list(range(40)),
        epoch_decay=decay,
        model=None,  # no adapter
    )


def card_of(folder, answers, metrics=None, sources=("me/ast", "me/sounds"), **trainer):
    folder.mkdir(exist_ok=True)
    return run_card(
        folder, sources, metrics or {}, answers, trainer_of(folder, **trainer), Lengths([], 0, 1.0)
    )


def test_figures_and_files(tmp_path):
    answers = answers_of()
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("confusion.png", "worst_clips.html"):
        (folder / name).touch()
    metrics = {"eval_accuracy": 0.5, "eval_loss": 1.25, "eval_runtime": 3.0}
    metrics |= {"training_accuracy": 0.75, "average_accuracy": 0.625}
    metrics |= {"validation_best_accuracy": 0.875}
    card = card_of(folder, answers, metrics)
    headline = answers.headline
    assert f"| **accuracy** | **{headline.value:.4f}** (95 % interval" in card
    assert f"always answering {headline.majority} | {headline.chance:.4f} |" in card
    assert "| loss | 1.2500 |" in card and "runtime" not in card
    others = card.split("For comparison:\n\n")[1]
    assert "- training clips: accuracy 0.7500\n" in others
    assert "- validation clips, weights of the best evaluation: accuracy 0.8750\n" in others
    assert "- averaged weights, in `average/`: accuracy 0.6250\n" in others
    for link in ("confusion.png", "worst_clips.html", "worst_clips.csv", "learning_curve.png"):
        assert f"({link})" in card
    assert "191 clips to train, 40 held out" in card and "## Training" in card
    for row in answers.classes:
        numbers = f"{row.precision:.3f} | {row.recall:.3f} | {row.f1:.3f}"
        assert f"| {row.name} | {row.positives} | {numbers} |" in card
    pair = answers.confusions[0]
    assert f"| {pair.true} | {pair.predicted} | {pair.clips} of {pair.positives} |" in card
    assert "dataset" in card.split("---")[1] and "model-index" in card.split("---")[1]


def test_what_is_not_there_is_not_shown(tmp_path):
    truth = np.eye(3)[[0, 1, 2, 2]]
    perfect = Answers(truth, truth, list("abc"), True, list("wxyz"))
    card = card_of(tmp_path / "mine", perfect)
    assert "No held-out clip has a wrong answer." in card
    for absent in ("worst_clips", "confusion.png", "Most often confused", "Short clips", "Chosen"):
        assert absent not in card


def test_how_to_use_it(tmp_path):
    card = card_of(tmp_path / "mine", answers_of())
    assert 'name on the Hub.\nname = "path/to/mine"\n' in card
    assert 'pipeline("audio-classification", model=name, feature_extractor=name)\n' in card
    card = card_of(tmp_path / "mine", answers_of(), hub="me/mine")
    assert (
        'name = "me/mine"\n' in card
        and "name on the Hub" not in card
        and "modeling-ast classify me/mine clip.wav" in card
    )
    assert "The pipeline uses only" not in card and "pip install" in card
    card = card_of(tmp_path / "my run", answers_of(), frames=80)
    assert "`modeling-ast classify 'path/to/my run' clip.wav`" in card
    assert "The pipeline uses only the first 0.81 s of a clip; the command cuts a longer" in card


@pytest.mark.parametrize(
    ("decay", "words"),
    [
        (None, "linear schedule"),
        (EpochDecay(5, 1, 0.85), "multiplied by 0.85 after epoch 5 and after each epoch from"),
        (
            EpochDecay(10, 5, 0.5, 1000),
            "after every 5 epochs from then on; it rises over the first",
        ),
        (EpochDecay(0, 1, 0.5), "multiplied by 0.5 from the start, and after each epoch"),
    ],
)
def test_the_schedule_in_words(tmp_path, decay, words):
    card = card_of(tmp_path / "mine", answers_of(), decay=decay, learning_rate=1e-5)
    assert words in card and "learning rate: 1e-05;" in card and "EpochDecay" not in card


def test_what_was_chosen(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    choices = [{"name": "epochs", "value": 40, "reason": "191 clips | few"}]
    (folder / "chosen.json").write_text(json.dumps(choices))
    assert r"| epochs | 40 | 191 clips \| few |" in card_of(folder, answers_of())


def test_which_weights_were_kept_is_said_once_before_the_figures(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    choices = [{"name": "keep_weights", "value": "last", "reason": "the run has no others"}]
    (folder / "chosen.json").write_text(json.dumps(choices))
    metrics = {"eval_accuracy": 0.5, "last_accuracy": 0.51, "best_accuracy": 0.75}
    card = card_of(folder, answers_of(), metrics)
    note = "This model has the weights of the last step (the run has no others)."
    assert card.count(note) == 1 and card.index(note) < card.index("held-out clips")
    assert "0.5100" not in card and "- weights of the best evaluation: accuracy 0.7500" in card
    assert "Chosen for these clips" not in card and "keep_weights" not in card


def test_many_labels(tmp_path):
    answers = answers_of(60, 300, exclusive=False)
    card = card_of(tmp_path / "mine", answers)
    assert "and 30 more (`config.json` has all)" in card
    assert "The 20 worst of 60 labels; `per_class.csv` has all." in card
    assert len(re.findall(r"^\| class \d+ \| \d+ \| ", card, re.MULTILINE)) == 20
    assert f"(10 of {len(answers.confusions)} pairs)" in card
    assert "chance level: random scores" in card and "mean average precision" in card


def test_nothing_of_a_stranger_is_markup(tmp_path):
    markdown_it = pytest.importorskip("markdown_it", reason="needs a renderer of Markdown")
    answers = answers_of(names=[STRANGE, "b", "c", "d"])
    (tmp_path / "mine").mkdir()
    card = card_of(tmp_path / "mine", answers, sources=(STRANGE, STRANGE)).split("\n---\n", 1)[1]
    texts = [card, evaluation_text(tmp_path, [STRANGE], STRANGE, {}, answers)]
    for text in texts:
        html = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
        assert "<script" not in html and "<em>" not in html and "\u202e" not in html
        rows = re.findall("<tr>(.*?)</tr>", html, re.DOTALL)
        assert any("a | b &lt;script&gt;" in row for row in rows)
        assert {row.count("<td") for row in rows} <= {0, 2, 3, 6}


def test_the_text_of_an_evaluation(tmp_path):
    text = evaluation_text(tmp_path, ["a", "b"], "sounds", {"eval_mAP": 0.5}, answers_of())
    assert text.startswith(
        "# Evaluation\n\nThe results of the ensemble of 2 models, `a`, `b`, on the held-out"
    )
    assert "## Training" not in text and "| mean average precision (mAP) | 0.5000 |" in text
