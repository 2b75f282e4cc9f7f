"""Answers of mathematics in LaTeX: reading them, and bringing them into one form to compare.

The rules are those by which the MATH benchmark is scored (Hendrycks et al. 2021, arXiv 2103.03874).
"""

from __future__ import annotations

import re

_REMOVED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")
_FRACTION = re.compile(r"(-?\d+)/(-?\d+)")


def boxed(text: str) -> str | None:
    """Return what the last \\boxed or \\fbox of a text holds, None where there is none or it is not closed."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if rest.startswith(" "):
        return rest[1:].partition("$")[0].strip() or None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip() or None if place else None
    return None


def dollars(text: str) -> str | None:
    """Return what stands between the first and the last dollar sign; the whole text where there are fewer than two."""
    first, last = text.find("$"), text.rfind("$")
    inner = text[first + 1 : last] if first < last else text
    return inner if inner.strip() else None


def same(answer: str, right: str) -> bool:
    """Return whether two answers are equal in their common form."""
    try:
        return common_form(answer) == common_form(right)
    except ValueError:
        return answer == right


def common_form(text: str) -> str:
    """Return an answer without spacing, units and degrees, with whole fractions and roots.

    Raises:
        ValueError: more than one unit.
    """
    for removed in _REMOVED[:2]:
        text = text.replace(removed, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for removed in _REMOVED[2:]:
        text = text.replace(removed, "")
    if "\\text{ " in text:
        text, *units = text.split("\\text{ ")
        if len(units) > 1:
            raise ValueError("two units")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    parts = text.split("=")
    if len(parts) == 2 and len(parts[0]) <= 2:
        text = parts[1]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = _whole_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    match = _FRACTION.fullmatch(text)
    if match and f"{int(match[1])}/{int(match[2])}" == text:
        return f"\\frac{{{int(match[1])}}}{{{int(match[2])}}}"
    return text


def _whole_fractions(text: str) -> str:
    """Return a text in which \\frac12 and \\frac1{72} have braces around both sides."""
    first, *others = text.split("\\frac")
    result = first
    for other in others:
        if other.startswith("{"):
            result += "\\frac" + other
            continue
        if len(other) < 2:
            return text
        upper, lower, rest = other[0], other[1], other[2:]
        result += f"\\frac{{{upper}}}" + (f"{{{lower}}}{rest}" if lower != "{" else "{" + rest)
    return result
