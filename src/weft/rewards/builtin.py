"""The rewards that come with Weft. Each is made from the run's settings and scores one answer by a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from weft.json_types import JsonObject

Reward = Callable[[str, str, str], float]
"""(prompt, completion, answer) -> reward."""

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


def exact(settings: JsonObject) -> Reward:
    """1 for the row's answer, spaces around both left out."""
    return lambda prompt, completion, answer: float(completion.strip() == answer.strip())


def numeric(settings: JsonObject) -> Reward:
    """1 where the last number in the completion is the last number in the row's answer: 1,234.50 is 1234.5."""
    return lambda prompt, completion, answer: float(
        (number := last_number(completion)) is not None and number == last_number(answer)
    )


def regex(settings: JsonObject) -> Reward:
    """1 where `reward_pattern` is found in the completion; if it has a group, the last find must hold the answer."""
    pattern = re.compile(settings["pattern"], re.DOTALL)

    def score(prompt: str, completion: str, answer: str) -> float:
        matches = list(pattern.finditer(completion))
        if not matches or not pattern.groups:
            return float(bool(matches))
        return float((matches[-1].group(1) or "").strip() == answer.strip())

    return score


def format(settings: JsonObject) -> Reward:
    """1 where the whole completion has the form of `reward_format`."""
    pattern = re.compile(settings["format"], re.DOTALL)
    return lambda prompt, completion, answer: float(pattern.fullmatch(completion.strip()) is not None)


def length(settings: JsonObject) -> Reward:
    """1 for at most `reward_length` characters, falling in a line to 0 at twice as many."""
    most = int(settings["length"])
    return lambda prompt, completion, answer: min(1.0, max(0.0, 2.0 - len(completion) / most))


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text as an exact decimal, or None."""
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
