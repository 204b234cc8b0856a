"""card.py: the metadata that the Hub reads, for conversions and for runs."""

import re
from html import unescape

import pytest
from huggingface_hub import EvalResult, metadata_load

from modeling_ast.conversion.card import markdown_text, write_card


def test_a_card_with_results(tmp_path):
    result = EvalResult(
        task_type="audio-classification",
        dataset_type="esc50",
        dataset_name="ESC-50",
        metric_type="accuracy",
        metric_value=0.9,
    )
    metadata = {
        "model_name": "barks",
        "base_model": "me/ast",
        "datasets": ["esc50"],
        "eval_results": [result],
        "license": None,
        "tags": ["dogs"],
    }
    path = tmp_path / "README.md"
    path.write_text(write_card("Barks: über", metadata, ["\nA text.\n", "- a\n- b"]), "utf-8")
    text = path.read_text("utf-8")
    assert text.startswith("---\n")
    assert text.endswith("\n---\n\n# Barks: über\n\nA text.\n\n- a\n- b\n")
    found = metadata_load(path)
    (model,) = found.pop("model-index")
    assert model["name"] == "barks" and model["results"][0]["metrics"][0]["value"] == 0.9
    assert found == {
        "base_model": "me/ast",
        "datasets": ["esc50"],
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",
        "tags": ["dogs"],
    }


def test_what_all_models_share_is_added(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(write_card("A model", {}, []), "utf-8")
    assert metadata_load(path) == {
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",
        "tags": ["audio-spectrogram-transformer", "audio-classification", "modeling_ast"],
    }


def test_labels_are_shown_as_they_are():
    """A Markdown renderer must give one paragraph of plain text, without tag, link or emphasis."""
    markdown_it = pytest.importorskip("markdown_it", reason="needs a renderer of Markdown")
    label = (
        "*a* _b_ `c` <img src=x onerror=y> [d](http://e) &lt; ~~f~~ | # ![g](h) \\* \x1b\n# i $j$"
    )
    for text in (markdown_text(label), f"- {markdown_text(label)}"):
        html = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
        plain = re.sub("</?(p|ul|li)>|\n", "", html)
        assert "<" not in plain
        assert unescape(plain) == label.replace("\x1b", r"\x1b").replace("\n", r"\n")
    assert "$" not in markdown_text(label).replace(r"\$", "")
