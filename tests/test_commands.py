"""The dispatcher of modeling-ast, and what all verbs share."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from modeling_ast import __version__, commands
from modeling_ast.commands import main
from modeling_ast.commands.output import CommandParser, print_json


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("classify m f --topk 3", "unrecognized arguments: --topk 3; did you mean --top-k? see"),
        ("detect m f --treshold=1 --pot a", "did you mean --threshold and --plot? see --help"),
        ("tag m f --output o --padding_=longest", "did you mean --padding? see --help"),
        ("finetune --model m --data d --output-dir o --epochs 3", "mean --num-train-epochs?"),
        pytest.param(
            "export m o --opst 18",
            "unrecognized arguments: --opst 18; did you mean --opset?",
            marks=pytest.mark.skipif(not find_spec("onnx"), reason="the extra onnx is missing"),
        ),
        ("classify m f --zzzz", "unrecognized arguments: --zzzz; see --help"),
        ("detect m f --top-k 3", "unrecognized arguments: --top-k 3; see --help"),
        ("detect m f --widow 1 --widow 2", "; did you mean --window? see --help"),
        ("tag m f --outptu x.jsonl", "required: --output; did you mean --output? see --help"),
    ],
)
def test_a_mistyped_flag_gets_the_name_of_a_similar_one(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_the_command_shows_its_verbs(capsys):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {verb} " in out for verb in commands.VERBS)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"modeling-ast {__version__}\n"


def test_a_verb_in_capitals_gets_the_hint(capsys):
    assert main(["CLASSIFY"]) == 2
    assert "there is no verb 'CLASSIFY'; did you mean classify?" in capsys.readouterr().err


def test_an_unknown_verb_is_wrong_usage(capsys):
    assert main(["tagg"]) == 2
    err = capsys.readouterr().err
    assert "error: there is no verb 'tagg'; did you mean tag?" in err and "convert-deit" in err


@pytest.mark.parametrize("verb", commands.VERBS)
def test_each_verb_has_its_help(verb, capsys):
    if commands.VERBS[verb].extra == "onnx":
        pytest.importorskip("onnx", reason="the extra onnx is not installed")
    for name in (verb, verb.replace("-", "_")):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"usage: modeling-ast {verb} " in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("verb", ["finetune", "evaluate", "stats"])
def test_a_missing_extra_is_one_line(verb, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("modeling_ast.training")]:
        monkeypatch.delitem(sys.modules, name)
    module = commands.VERBS[verb].module
    monkeypatch.delitem(sys.modules, f"modeling_ast.commands.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main([verb, "--help"]) == 1
    assert capsys.readouterr().err == (
        f"error: modeling-ast {verb} needs datasets, which is not installed; install it with: "
        f'pip install "modeling-ast[train]"\n'
    )


def test_python_m_runs_the_command():
    command = [sys.executable, "-m", "modeling_ast", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == f"modeling-ast {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--top-k", "3", "a_b", "--flag"],
        ["--top_k", "3", "a_b", "--flag"],
        ["--top_k=3", "a_b", "--flag"],
        ["a_b", "--flag", "--top-k=3"],
    ],
)
def test_hyphens_and_underscores(words):
    parser = CommandParser("test")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("names", nargs="+")
    options = parser.parse_args(words)
    assert (options.top_k, options.names, options.flag) == (3, ["a_b"], True)
    assert parser.parse_args(["--top_k=2", "--", "--a_b"]).names == ["--a_b"]


def test_json_is_strict(capsys):
    print_json({"a": float("nan"), 3: [float("inf"), 1.5, (2, "é")], "b": None})
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {
        "a": None,
        "3": [None, 1.5, [2, "é"]],
        "b": None,
    }
