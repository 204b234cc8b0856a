"""Error messages on one line, and missing extras."""

import sys

import pytest
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTConfig
from modeling_ast.errors import MissingExtra, naming, need_extra, one_line


def config_error(**fields):
    with pytest.raises(StrictDataclassError) as caught:
        ASTConfig(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (
            ValueError("Error(s) in loading:\n\tsize mismatch\n\tmore"),
            "Error(s) in loading: size mismatch",
        ),
        (ValueError("\n \n  after  blank lines \n"), "after blank lines"),
        (ValueError(), "ValueError"),
        (KeyError("name"), "'name'"),
        (config_error(std=0.0), "std is 0.0, which is impossible; it must be a number above 0"),
        (config_error(max_length="x"), "Field 'max_length' expected int, got str (value: 'x')"),
        ("a name\nwith a break\tand tabs", "a name with a break and tabs"),
        ("", ""),
        (3.5, "3.5"),
    ],
)
def test_one_line(said, line):
    assert one_line(said) == line


def test_a_module_that_is_there_is_given():
    assert need_extra("json", "train", "nothing") is sys.modules["json"]


def test_a_missing_library_names_the_line_for_pip(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(MissingExtra) as caught:
        need_extra("matplotlib.pyplot", "train", "a picture")
    assert str(caught.value) == (
        "a picture needs matplotlib, which is not installed; install it with: "
        'pip install "modeling-ast[train]"'
    )


def test_a_mistake_of_ours_is_not_taken_for_a_missing_library():
    with pytest.raises(ModuleNotFoundError) as caught:
        need_extra("modeling_ast.no_such_file", "train", "a test")
    assert not isinstance(caught.value, MissingExtra)


def test_a_file_is_named_once():
    assert naming("a", "no file at 'a'; check the path") == "no file at 'a'; check the path"
    assert naming("a.wav", "a.wav holds NaN") == "a.wav holds NaN"
    assert naming("a", "cannot be decoded as audio") == "a: cannot be decoded as audio"
