"""Reading an answer out of what a model wrote, and comparing it with the right one.

An answer that cannot be read is None: it is counted, and never replaced by a guess.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from weft.tasks.math_answers import boxed, dollars


class Reading(BaseModel):
    """One way of reading an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    regex: str = ""
    """The answer is the first group that matched, or the whole match; "": see `how`."""
    take: Literal["first", "last"] = "first"
    how: Literal["whole", "first_line", "boxed", "dollars"] = "whole"
    """Without a pattern: the whole text, its first line that is not empty, what the last \\boxed holds, or what stands
    between the first and the last dollar sign."""

    @model_validator(mode="after")
    def _valid(self) -> Reading:
        try:
            re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"the pattern '{self.regex}' is not valid ({error})") from None
        return self

    def read(self, text: str) -> str | None:
        """Return the answer, None where there is none."""
        if self.regex:
            matches = list(re.finditer(self.regex, text))
            if not matches:
                return None
            match = matches[0 if self.take == "first" else -1]
            groups = [group for group in match.groups() if group]
            found: str = groups[0] if groups else match[0]
            return found.strip() or None
        if self.how == "boxed":
            return boxed(text)
        if self.how == "dollars":
            return dollars(text)
        if self.how == "first_line":
            return next((line.strip() for line in text.splitlines() if line.strip()), None)
        return text.strip() or None


def read_label(text: str, labels: Sequence[str], others: dict[str, str] | None = None) -> int:
    """Return the number of the only label in the answer's first line with a label, -1 where no line has just one.

    Args:
        text: what the model wrote.
        labels: as whole words, whatever their case.
        others: further words that mean a label.
    """
    words = {label.lower(): number for number, label in enumerate(labels)}
    words |= {word.lower(): words[label.lower()] for word, label in (others or {}).items()}
    pattern = re.compile(
        r"(?<!\w)(" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + r")(?!\w)", re.I
    )
    for line in text.splitlines():
        found = {words[match[1].lower()] for match in pattern.finditer(line)}
        if found:
            return found.pop() if len(found) == 1 else -1
    return -1


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Return a text in lower case without punctuation, articles and double spaces, as SQuAD compares answers."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(_ARTICLES.sub(" ", text).split())


def word_f1(answer: str, right: str) -> float:
    """Return the F1 of the words that two texts share, as SQuAD has it."""
    given, expected = normalise(answer).split(), normalise(right).split()
    if not given or not expected:
        return float(given == expected)
    common = sum((Counter(given) & Counter(expected)).values())
    return 2 * common / (len(given) + len(expected))


def plain(text: str, ignore: Sequence[str], ignore_case: bool) -> str:
    """Return a text without what is ignored."""
    for pattern in ignore:
        text = re.sub(pattern, "", text)
    return text.lower() if ignore_case else text


def number_of(text: str) -> float | None:
    """Return the number that a text is, without its thousands separators, currency and percent signs; else None."""
    stripped = text.strip().rstrip(".%").lstrip("$\u20ac\u00a3").replace(",", "").strip()
    try:
        return float(stripped)
    except ValueError:
        return None
