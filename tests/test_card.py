"""card: what the Hub reads of it, for conversions and for runs."""

from huggingface_hub import EvalResult, metadata_load

from modeling_ast.conversion.card import write_card


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
