"""label_names.py: names from a file or from the Hub, and the fields of the config."""

import json

import pytest

from modeling_ast.conversion import label_names
from modeling_ast.conversion.key_maps import ConversionError
from modeling_ast.conversion.label_names import (
    describe_labels,
    fetch_label_names,
    read_label_names,
)


def test_names_from_a_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("index,mid,display_name\n1,/m/1,cat\n0,/m/0,dog\n")
    assert list(read_label_names(path).items()) == [(0, "dog"), (1, "cat")]
    with pytest.raises(ConversionError, match=r"cannot read the label file .*none\.csv"):
        read_label_names(tmp_path / "none.csv")


def test_fields_of_the_config():
    assert describe_labels({0: "dog", 1: "cat"}) == {
        "id2label": {0: "dog", 1: "cat"},
        "label2id": {"dog": 0, "cat": 1},
        "problem_type": None,
    }
    fields = describe_labels(527)
    assert fields["id2label"][526] == "LABEL_526"
    assert fields["problem_type"] == "multi_label_classification"
    with pytest.raises(ConversionError, match="num_labels is 0; it must be from 1 to 100000"):
        describe_labels(0)


@pytest.mark.parametrize(
    ("content", "result"),
    [
        ({"1": "b", "0": "a"}, {0: "a", 1: "b"}),
        ({"0": "a", "2": "c"}, "does not number its labels"),
        (None, "has no x.json; give a label file"),
    ],
)
def test_names_from_the_hub(tmp_path, monkeypatch, content, result):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(label_names, "download", lambda *_, **__: path if content else None)
    if isinstance(result, dict):
        assert list(fetch_label_names("x.json").items()) == list(result.items())
    else:
        with pytest.raises(ConversionError, match=result):
            fetch_label_names("x.json")
