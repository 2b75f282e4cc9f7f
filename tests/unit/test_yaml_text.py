"""YAML that Weft writes and reads back: by libyaml, the same as by PyYAML alone."""

from __future__ import annotations

import math

import pytest
import yaml

from weft.core.yaml_text import text_of, value_of

VALUES = {
    "words": ["plain", "a: b\nc", "", "null", "1e3", "0x1f", "yes", " end ", "#", "long " * 40],
    "letters": ["é", "日本", "\x85 \u2028", "😀"],
    "numbers": [0, -1, 1e-5, 1.0, 10**20, float("inf")],
    "others": {"none": None, "truth": True, "list": [{}, []]},
}


def test_a_value_comes_back_and_pyyaml_alone_reads_the_same():
    text = text_of(VALUES)
    assert value_of(text) == VALUES == yaml.safe_load(text)
    assert list(value_of(text)) == list(VALUES)  # the order of keys
    assert math.isnan(value_of(text_of({"x": math.nan}))["x"])


@pytest.mark.parametrize("letters", ["é", "日本", "😀"])
def test_letters_stay_as_they_are(letters: str):
    assert letters in text_of({"choices": [letters]})


def test_who_changes_a_value_changes_no_other():
    first = value_of("a: {b: [1]}")
    first["a"]["b"].append(2)
    assert value_of("a: {b: [1]}") == {"a": {"b": [1]}}


def test_nothing_but_plain_values_is_made():
    with pytest.raises(yaml.YAMLError):
        value_of("!!python/object/apply:os.getcwd []")
