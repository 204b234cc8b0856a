"""The lines that a run prints."""

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerState

from modeling_ast.training.progress import PrintedLines, ProgressLines, log_line, replaced_callbacks

STATE = TrainerState(epoch=1.25, num_train_epochs=4)


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"loss": 0.51234567, "grad_norm": 2.0}, "epoch 1.2 of 4: training loss 0.5123"),
        (
            {"eval_accuracy": 0.75, "eval_loss": 0.5, "eval_runtime": 3.0},
            "epoch 1.2 of 4: accuracy 0.75, loss 0.5 on the held-out clips",
        ),
        (
            {"eval_validation_mAP": 0.8, "eval_validation_loss": 0.25},
            "epoch 1.2 of 4: mAP 0.8, loss 0.25 on the validation clips",
        ),
        ({"train_runtime": 12.0, "train_loss": 0.4}, None),
        ({}, None),
    ],
)
def test_a_log_is_a_sentence(logs, line):
    assert log_line(logs, STATE) == line


def test_trainers_own_lines_are_replaced():
    assert replaced_callbacks() == {
        ProgressCallback: ProgressLines,
        PrinterCallback: PrintedLines,
    }
    assert issubclass(ProgressLines, ProgressCallback)


def test_lines_are_printed_without_a_bar(capsys):
    PrintedLines().on_log(None, STATE, None, logs={"loss": 0.5})
    PrintedLines().on_log(None, STATE, None, logs={"train_runtime": 12.0})
    assert capsys.readouterr().out == "epoch 1.2 of 4: training loss 0.5\n"
