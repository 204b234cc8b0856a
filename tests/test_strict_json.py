"""Strict JSON: what Python writes beyond the standard becomes null."""

import json
import math

import numpy as np
import pytest

from modeling_ast.strict_json import to_json


def test_what_json_lacks_becomes_null():
    value = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf)}], 2: "NaN", "c": None, "d": True}
    text = to_json(value)
    wanted = {"a": [1.5, None, {"b": [None, None]}], "2": "NaN", "c": None, "d": True}
    assert json.loads(text, parse_constant=pytest.fail) == wanted
    assert to_json({"é": [1]}, indent=None) == '{"é": [1]}'


def test_numpys_numbers_and_texts_that_could_harm():
    value = {"a": np.float32(1.5), "b": np.float64("nan"), "c": np.int64(3), "d": np.bool_(True)}
    assert json.loads(to_json(value)) == {"a": 1.5, "b": None, "c": 3, "d": True}
    label = "a\x1b[2J\x9b\u202e\udc80\U000e0041\n犬"
    text = to_json([label])
    assert json.loads(text) == [label]
    text.encode()
    assert text.replace("\n", "").isprintable() and "犬" in text
