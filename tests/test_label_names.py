"""label_names: AudioSet's csv as AudioSet writes it, and each way to get it wrong."""

import json

import label_names
import pytest
from key_maps import ConversionError
from label_names import describe_labels, fetch_label_names, read_label_csv

GOOD = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding)
    return path


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "index,mid,display_name\n" + "\n".join(GOOD.splitlines()[:0:-1]) + "\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_good_files(tmp_path, text, encoding):
    names = read_label_csv(write(tmp_path, text, encoding), 2)
    assert list(names.items()) == [(0, "Speech"), (1, "Male speech, man speaking")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD, "has 2 labels but the checkpoint's head has 3"),
        (GOOD.replace("1,", "0,"), "has the index 0 twice"),
        (GOOD.replace("index", "id"), "has the header id,mid,display_name but must have index,mid"),
        (GOOD.split("\n", 1)[1], "has the header 0,/m/09x0r,Speech but must have"),
        ("", r"has the header \(none\) but must have"),
        (GOOD.replace("1,", "2,"), "has 2 labels but no index 1; number them"),
        ("index,mid,display_name\n", "has 0 labels but no index 0"),
        (GOOD.replace("1,", "one,"), "has the index 'one' with the name 'Male speech, man"),
        (GOOD + "2,/m/x\n", "has the index '2' with the name ''"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ConversionError, match=message):
        read_label_csv(write(tmp_path, text), 3)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConversionError, match=r"cannot read the label file .*No such file"):
        read_label_csv(tmp_path / "none.csv")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConversionError, match=r"cannot read the label file .*decode"):
        read_label_csv(tmp_path / "picture.csv")


def test_fields_of_the_config():
    assert describe_labels({0: "dog", 1: "cat"}) == {
        "id2label": {0: "dog", 1: "cat"},
        "label2id": {"dog": 0, "cat": 1},
        "problem_type": None,
    }
    fields = describe_labels(527)
    assert fields["id2label"][526] == "LABEL_526"
    assert fields["problem_type"] == "multi_label_classification"
    with pytest.raises(ConversionError, match="num_labels is 0; it must be 1 or more"):
        describe_labels(0)


@pytest.mark.parametrize(
    ("content", "result"),
    [
        ({"1": "b", "0": "a"}, {0: "a", 1: "b"}),
        ({"0": "a", "2": "c"}, "does not number its labels"),
        (None, "has no x.json; give --label-csv"),
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
