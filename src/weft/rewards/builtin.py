"""The rewards of Weft. Each factory takes the run's settings and returns a function that scores one answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from weft.json_types import JsonObject

Reward = Callable[[str, str, str], float]
"""(prompt, completion, answer) -> reward."""

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


def exact(settings: JsonObject) -> Reward:
    """1 if the completion is the row's answer, without surrounding spaces."""
    return lambda prompt, completion, answer: float(completion.strip() == answer.strip())


def numeric(settings: JsonObject) -> Reward:
    """1 if the last numbers in the completion and in the row's answer are equal: 1,234.50 is 1234.5."""
    return lambda prompt, completion, answer: float(
        (number := last_number(completion)) is not None and number == last_number(answer)
    )


def regex(settings: JsonObject) -> Reward:
    """1 if `reward_pattern` matches in the completion; if it has a group, its last match must be the answer."""
    pattern = re.compile(settings["pattern"], re.DOTALL)

    def score(prompt: str, completion: str, answer: str) -> float:
        matches = list(pattern.finditer(completion))
        if not matches or not pattern.groups:
            return float(bool(matches))
        return float((matches[-1].group(1) or "").strip() == answer.strip())

    return score


def format(settings: JsonObject) -> Reward:
    """1 if `reward_format` matches the whole completion."""
    pattern = re.compile(settings["format"], re.DOTALL)
    return lambda prompt, completion, answer: float(pattern.fullmatch(completion.strip()) is not None)


def length(settings: JsonObject) -> Reward:
    """1 for at most `reward_length` characters, falling linearly to 0 at twice as many."""
    most = int(settings["length"])
    return lambda prompt, completion, answer: min(1.0, max(0.0, 2.0 - len(completion) / most))


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text as an exact decimal, or None."""
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
