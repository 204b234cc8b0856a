"""Shapes of inputs and labels that are refused, and what labels say of the problem."""

import pytest
import torch

from modeling_ast import ASTConfig, ASTForAudioClassification
from tests.conftest import TINY, randomise
from tests.spectrograms import spectrogram


@pytest.mark.parametrize(
    ("x", "mask", "words"),
    [
        (None, None, "input_values is None; pass what ASTFeatureExtractor returns"),
        (torch.zeros(2, 97), None, r"shape \(2, 97\) but must be \(clips, frames, 40 mel bins"),
        (torch.zeros(2, 40, 97), None, r"shape \(2, 40, 97\).*from_config"),
        (torch.zeros(2, 15, 40), None, "num_frames is 15 but one patch spans 16"),
        (torch.zeros(2, 97, 40), torch.ones(2, 98), r"attention_mask has shape \(2, 98\)"),
        (torch.zeros(2, 97, 40), torch.ones(1, 97), r"here \(2, 97\)"),
        (torch.zeros(2, 97, 40), torch.ones(97), r"attention_mask has shape \(97,\)"),
    ],
)
def test_wrong_shapes_are_refused(tiny_model, x, mask, words):
    with pytest.raises(ValueError, match=words):
        tiny_model(x, attention_mask=mask)


@pytest.mark.parametrize(
    ("problem", "labels", "judge"),
    [
        (None, torch.tensor([1, 4]), torch.nn.functional.cross_entropy),
        ("single_label_classification", torch.tensor([1, 4]), torch.nn.functional.cross_entropy),
        (
            "single_label_classification",
            torch.tensor([[0.3, 0.7, 0, 0, 0], [0, 0, 0.1, 0.1, 0.8]]),
            lambda logits, y: -(y * logits.log_softmax(1)).sum(1).mean(),
        ),
        (None, torch.eye(5)[[1, 4]], torch.nn.functional.binary_cross_entropy_with_logits),
        (
            "multi_label_classification",
            torch.eye(5)[[1, 4]].long(),
            lambda logits, y: torch.nn.functional.binary_cross_entropy_with_logits(
                logits, y.float()
            ),
        ),
        ("regression", torch.randn(2, 5), torch.nn.functional.mse_loss),
    ],
)
def test_losses(tiny_model, problem, labels, judge):
    tiny_model.config.problem_type = problem
    out = tiny_model(spectrogram(2, 97), labels=labels)
    torch.testing.assert_close(out.loss, judge(out.logits, labels))


def test_multi_hot_integers_are_several_labels_not_a_class_each(tiny_model):
    labels = torch.eye(5)[[1, 4]].long()
    out = tiny_model(spectrogram(2, 97), labels=labels)
    assert tiny_model.config.problem_type == "multi_label_classification"
    judge = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, labels.float())
    torch.testing.assert_close(out.loss, judge)


def test_one_number_is_regression():
    model = randomise(ASTForAudioClassification(ASTConfig(**{**TINY, "num_labels": 1})))
    labels = torch.tensor([0.5, -2.0])
    out = model(spectrogram(2, 97), labels=labels)
    torch.testing.assert_close(out.loss, ((out.logits[:, 0] - labels) ** 2).mean())


@pytest.mark.parametrize(
    ("problem", "classes", "labels", "words"),
    [
        (
            "single_label_classification",
            5,
            torch.eye(5)[:2].long(),
            r"\(2, 5\) .* 5 labels needs \(2,\); set",
        ),
        ("multi_label_classification", 5, torch.tensor([1, 4]), r"\(2,\) .* needs \(2, 5\); set"),
        ("multi_label_classification", 5, torch.eye(6)[:2], r"\(2, 6\) .* needs \(2, 5\); set"),
        ("regression", 5, torch.randn(2), r'\(2,\) .* "regression" of .* needs \(2, 5\); set'),
        ("regression", 1, torch.randn(2, 3), r"\(2, 3\) .* of 1 labels needs \(2,\); set"),
        (None, 5, torch.tensor([1, 4, 0]), r'\(3,\) .* "single_label_classification" of'),
        (
            None,
            5,
            torch.tensor([1.0, 4.0]),
            r"\(2,\) and type torch.float32 but .*multi_label.* \(2, 5\)",
        ),
    ],
)
def test_labels_of_another_problem_are_refused(problem, classes, labels, words):
    config = ASTConfig(**{**TINY, "num_labels": classes}, problem_type=problem)
    model = randomise(ASTForAudioClassification(config))
    with pytest.raises(ValueError, match=f"labels have shape {words}.*problem_type"):
        model(spectrogram(2, 97), labels=labels)
    assert model.config.problem_type == problem
