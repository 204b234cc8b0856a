"""Strict JSON: what Python writes beyond the standard becomes null."""

import json
import math

import pytest

from modeling_ast.strict_json import to_json


def test_what_json_lacks_becomes_null():
    value = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf)}], 2: "NaN", "c": None, "d": True}
    text = to_json(value)
    wanted = {"a": [1.5, None, {"b": [None, None]}], "2": "NaN", "c": None, "d": True}
    assert json.loads(text, parse_constant=pytest.fail) == wanted
    assert to_json({"é": [1]}, indent=None) == '{"é": [1]}'
