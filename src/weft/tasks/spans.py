"""Answers that are numbers, dates or sets of spans, as DROP scores them (Dua et al. 2019, arXiv 1903.00161)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from weft.json_types import JsonObject

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def score(answer: str, rights: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Return the best exact match and F1 of an answer over the right ones, each of which is a set of spans."""
    matches, overlaps = [0.0], [0.0]
    for right in rights:
        if not right or not right[0].strip():
            continue
        match, overlap = _compare(answer, list(right))
        matches.append(match)
        overlaps.append(overlap)
    return max(matches), max(overlaps)


def right_answers(answer: JsonObject, others: JsonObject) -> list[list[str]]:
    """Return the spans of each right answer of a row: the first one's, and those of further annotators.

    Args:
        answer: `number`, `spans` and `date` (`day`, `month`, `year`), of which the first that is not empty counts.
        others: the same keys, each with a list.
    """
    keys = ("number", "date", "spans")
    rows = [answer, *({key: others[key][i] for key in keys} for i in range(len(others["number"])))]
    result: list[list[str]] = []
    for row in rows:
        date = " ".join(str(row["date"][key]) for key in ("day", "month", "year")).strip()
        spans = [str(row["number"])] if row["number"] != "" else list(row["spans"]) or [date]
        if spans not in result:
            result.append(spans)
    return result


def _compare(answer: str, right: list[str]) -> tuple[float, float]:
    """Return exact match and F1 of one text: of several right spans it can be one, and the others count 0."""
    given, spans = _normal(answer), [_normal(span) for span in right]
    words, bags = set(given.split()), [set(span.split()) for span in spans]
    overlaps = [_overlap(words, bag) if _numbers_agree(words, bag) else 0.0 for bag in bags]
    return float({given} == set(spans) and len(spans) == 1), round(max(overlaps) / len(bags), 2)


def _numbers_agree(given: set[str], right: set[str]) -> bool:
    numbers = {word for word in right if _is_number(word)}
    return not numbers or bool(numbers & {word for word in given if _is_number(word)})


def _overlap(given: set[str], right: set[str]) -> float:
    common = len(given & right)
    precision = common / len(given) if given else 1.0
    recall = common / len(right) if right else 1.0
    return 0.0 if precision == recall == 0.0 else 2 * precision * recall / (precision + recall)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _normal(text: str) -> str:
    words = []
    for word in re.split(" |-", text.lower()):
        bare = word if _is_number(word) else "".join(c for c in word if c not in set(string.punctuation))
        plain = str(float(bare)) if _is_number(bare) else bare
        words.append(" ".join(_ARTICLES.sub(" ", plain).split()))
    return " ".join(word for word in words if word.strip()).strip()
