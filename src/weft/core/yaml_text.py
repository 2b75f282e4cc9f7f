"""YAML of settings that Weft writes and reads back, by libyaml where PyYAML has it: eight times as fast."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def value_of(text: str) -> Any:
    """Return the plain value of a YAML text.

    Raises:
        yaml.YAMLError: invalid YAML. Its message lacks the line itself, so what people write is read by PyYAML alone.
    """
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """Return a value that nobody may change: the settings of a run are read several times in it."""
    return yaml.load(text, LOADER)


def text_of(value: object) -> str:
    """Return plain data as YAML, keys in their order, letters as they are."""
    text: str = yaml.dump(value, Dumper=DUMPER, sort_keys=False, allow_unicode=True)
    # libyaml escapes what is beyond the basic plane, such as emoji.
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if "\\U" in text else text
