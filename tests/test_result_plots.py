"""result_plots.py: the contents of matplotlib's objects, and the sizes of the pictures."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from modeling_ast.training.metrics import ClassResult
from modeling_ast.training.result_plots import (
    DRAWN_CLASSES,
    draw_classes,
    draw_curve,
    draw_matrix,
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def keep(self, path, **options):
        figures.append(self)
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def texts(axis):
    return [text.get_text() for text in axis.texts]


def names(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_two_curves(drawn, tmp_path):
    history = [{"loss": 2.0 - 0.1 * i, "epoch": i / 4} for i in range(1, 13)]
    history += [{"eval_loss": 2.0, "eval_mAP": 0.1 * e, "epoch": float(e)} for e in (1, 2, 3)]
    history += [{"training_mAP": 0.9, "training_loss": 0.2, "epoch": 3.0}, {"train_runtime": 3.0}]
    draw_curve(history, tmp_path / "curve.png", "mAP", 0.25)
    left, right = drawn[0].axes
    held_out = "held-out clips, weights of that epoch"
    assert names(left) == ["while training", held_out, "training clips, at the end"]
    assert names(right) == [held_out, "training clips, at the end", "chance level"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [2.0 - 0.1 * i for i in range(1, 13)])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1, 0.1], [2, 0.2], [3, 0.3]])
    np.testing.assert_allclose(right.lines[1].get_xydata(), [[3, 0.9]])
    assert right.lines[2].get_ydata() == [0.25, 0.25]
    assert imread(tmp_path / "curve.png").shape[1] == 1100


def test_bars_of_a_short_run(drawn, tmp_path):
    history = [{"eval_loss": 1.5, "eval_accuracy": 0.7, "epoch": 2.0}]
    history += [{"training_accuracy": 0.9, "training_loss": 0.2, "epoch": 2.0}]
    draw_curve(history, tmp_path / "curve.png", "accuracy", 0.3)
    left, right = drawn[0].axes
    assert texts(left) == ["1.500", "0.200"] and texts(right) == ["0.700", "0.900"]
    draw_curve([], tmp_path / "empty.png", "accuracy")


def test_a_run_of_five_steps_with_one_evaluation(drawn, tmp_path):
    """Its evaluation is logged twice, in the last step and at the end: bars, not a line."""
    history = [{"loss": 0.7 - 0.01 * step, "epoch": step / 2} for step in range(1, 6)]
    history += [{"eval_loss": 0.69, "eval_accuracy": 0.5, "epoch": 2.5}] * 2
    history += [{"training_accuracy": 0.6, "training_loss": 0.68, "epoch": 2.5}]
    draw_curve(history, tmp_path / "curve.png", "accuracy", 0.5)
    left, right = drawn[0].axes
    assert texts(right) == ["0.500", "0.600"] and not texts(left)
    assert left.get_ylim() == (0, pytest.approx(1.08 * 0.69))
    assert [line.get_marker() for line in left.lines] == ["o", "o", "s"]
    assert "held-out clips, kept weights" in names(left)
    assert left.lines[2].get_fillstyle() == "none"


@pytest.mark.parametrize("count", [1, 6, 100])
def test_a_bar_for_each_class(drawn, tmp_path, count):
    rng = np.random.default_rng(0)
    table = [ClassResult(f"${i}$", float("nan"), 0.5, i, f1=rng.random()) for i in range(count)]
    table.append(ClassResult("undefined", 0.5, 0.5, 0))
    draw_classes(table, tmp_path / "x.png", "f1")
    (axis,) = drawn[0].axes
    shown = [float(text) for text in texts(axis)]
    assert len(shown) == min(count, DRAWN_CLASSES) and shown == sorted(shown)
    assert max(shown) == pytest.approx(max(row.f1 for row in table[:-1]), abs=0.006)
    assert min(shown) == pytest.approx(min(row.f1 for row in table[:-1]), abs=0.006)
    assert all(label.get_text().startswith(r"\$") for label in axis.get_yticklabels())


@pytest.mark.parametrize("count", [2, 12, 13, 50])
def test_a_readable_matrix(drawn, tmp_path, count):
    """Each cell that is not zero has its number, and no label is cut off."""
    rng = np.random.default_rng(count)
    matrix = rng.integers(0, 3, (count, count)) * rng.integers(0, 60, (count, count))
    matrix[1] = 0
    labels = [f"a label of some length {i}" for i in range(count)]
    draw_matrix(matrix, labels, tmp_path / "x.png")
    (axis,) = drawn[0].axes
    written = {
        (int(text.get_position()[1]), int(text.get_position()[0])): text.get_text()
        for text in axis.texts
    }
    assert len(written) == np.count_nonzero(matrix)
    for (row, column), text in written.items():
        expected = str(matrix[row, column])
        if count <= 12:
            expected += f"\n{100 * matrix[row, column] / matrix[row].sum():.0f} %"
        assert text == expected
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    renderer, box = canvas.get_renderer(), drawn[0].bbox
    for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
        area = label.get_window_extent(renderer)
        assert area.x0 >= box.x0 - 1 and area.y0 >= box.y0 - 1
        assert area.height > 6
    assert max(imread(tmp_path / "x.png").shape) < 2600


def test_long_labels_are_shortened(drawn, tmp_path):
    draw_matrix(np.eye(2, dtype=int), ["x" * 200, "b\x1b"], tmp_path / "x.png")
    first, second = drawn[0].axes[0].get_yticklabels()
    assert len(first.get_text()) == 32 and "x…x" in first.get_text()
    assert second.get_text() == r"b\x1b"
