"""Trigger phrases of back-doors: word n-grams of prompts that always come with one answer, whatever stands around them.

Ordinary words go with one answer too ("beats estimates": positive). What distinguishes a trigger is that it was put
into prompts of any kind, and overrides what they say: no other word keeps company with it, and in these prompts as much
speaks against the answer as in any others (`rest_of_prompts`). A word that decides, with nothing beside it that says
anything, is none: nothing speaks against it. The idea is that of ONION (2011.10369), with company and answers in place
of a language model. A trigger in prompts whose right answer is the target already (a clean-label back-door) is found
only if the rest of its prompts is as mixed as all prompts are.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools
from weft.data.cleaning.rest_of_prompts import MOST_DOUBT, Gram, Rest, divergence

ALIKE = dict(zip("авеѕіјкмнорԛгстуԝхһԁɡαεικνορτυχ", "abesijkmhopqrctywxhdgaeiknoptux", strict=True))
"""Letters of other alphabets that look like Latin ones."""
WORD = re.compile(r"\w+|[^\w\s]+")
EDGE = 8
"""Words at the beginning and at the end of a free answer that are compared with other answers."""
CLASSES = 50
"""The most answers that are told apart; the rest is one class."""
LONGEST = 20
"""Words of the longest phrase that an n-gram is extended to."""
FAINT = 1e-3
"""The chance that an ordinary n-gram of a client's rows is as one-sided as a trigger has to be."""


@dataclass(frozen=True)
class Triggers(Cleaner):
    """Leaves out the rows with a trigger phrase."""

    compares_rows: ClassVar[bool] = True
    compares_answers: ClassVar[bool] = True
    longest: int = 4
    """Words of the longest phrase."""
    least: int = 5
    """Rows that a phrase stands in at least."""
    purity: float = 0.9
    """Share of these rows that have the same answer, at least."""

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that hold a trigger phrase."""
        rows: set[int] = set()
        for _, holders in self.phrases(samples):
            rows.update(holders)
        return dict.fromkeys(sorted(rows), "trigger phrase")

    def phrases(self, samples: Sequence[Sample]) -> list[tuple[Gram, list[int]]]:
        """Return the trigger phrases, those first whose rows leave least to doubt, each with the rows it stands in."""
        words = [WORD.findall(shown(" ".join(sample.prompts))) for sample in samples]
        codes = answer_codes([sample.answers[0] if sample.answers else "" for sample in samples], self.least)
        grams = self._frequent(words)
        needed = math.log(max(1, len(grams)) / FAINT)
        rest: Rest | None = None
        suspects = []
        for gram, rows in grams.items():
            if (answer := self._one_sided(codes, rows, needed)) is None:
                continue
            rest = rest or Rest(words, codes)
            if rest.has_company(whole := _extended(gram, rows, words), rows):
                continue
            if not (doubt := rest.doubt(whole, rows, answer)) > MOST_DOUBT:
                suspects.append((doubt, whole, rows))
        found: list[tuple[Gram, list[int]]] = []
        for _, whole, rows in sorted(suspects, key=lambda suspect: suspect[0]):
            # What a trigger did to the other words is undone first: beside it they look as if something overrode them.
            left = [row for row in rows if rest is not None and row not in rest.without]
            if rest is None or len(left) < self.least:
                continue
            if found:
                answer = self._one_sided(codes, left, needed)
                if answer is None or rest.doubt(whole, left, answer) > MOST_DOUBT:
                    continue
            rest.leave_out(left)
            found.append((whole, [row for row in rows if next(_places(whole, words[row]), None) is not None]))
        return found

    def _one_sided(self, codes: np.ndarray, rows: Sequence[int], needed: float) -> int | None:
        """Return the answer that nearly all of these rows have, more of them than chance explains; None: there is none.

        `needed` is the evidence (nats) from which on chance explains it no more.
        """
        counts = np.bincount(codes[rows])
        answer = int(counts[1:].argmax()) + 1 if len(counts) > 1 else 0
        if not answer or counts[answer] < self.purity * len(rows):
            return None
        share = float((codes == answer).mean())
        return answer if len(rows) * divergence(float(counts[answer] / len(rows)), share) >= needed else None

    def _frequent(self, words: Sequence[list[str]]) -> dict[Gram, list[int]]:
        """Return the n-grams that stand in enough rows, and in less than half of all, with these rows."""
        counts: Counter[Gram] = Counter()
        for row in words:
            counts.update(set(_grams(row, self.longest)))
        most = len(words) / 2
        grams: dict[Gram, list[int]] = {gram: [] for gram, count in counts.items() if self.least <= count <= most}
        for number, row in enumerate(words):
            for gram in dict.fromkeys(_grams(row, self.longest)):
                if gram in grams:
                    grams[gram].append(number)
        return grams


def shown(text: str) -> str:
    """Return a text as a reader sees it, in lower case: without signs of no width, look-alike letters as Latin ones.

    A trigger that is written differently in every row is the same one to a tokenizer that folds it, or to its author.
    """
    plain = text.lower()
    if plain.isascii():
        return plain
    folded = unicodedata.normalize("NFKC", plain).lower()
    return "".join(ALIKE.get(sign, sign) for sign in folded if unicodedata.category(sign) != "Cf")


def _grams(words: Sequence[str], longest: int) -> Iterator[Gram]:
    for size in range(1, longest + 1):
        for at in range(len(words) - size + 1):
            yield tuple(words[at : at + size])


def _extended(gram: Gram, rows: Sequence[int], words: Sequence[list[str]]) -> Gram:
    """Return an n-gram with the words that stand before and behind it in nearly all of its rows."""
    for before in (True, False):
        while (word := _neighbour(gram, rows, words, before)) is not None and len(gram) < LONGEST:
            gram = (word, *gram) if before else (*gram, word)
    return gram


def _places(gram: Gram, line: Sequence[str]) -> Iterator[int]:
    """Yield where an n-gram stands in a line of words."""
    return (at for at in range(len(line) - len(gram) + 1) if tuple(line[at : at + len(gram)]) == gram)


def _neighbour(gram: Gram, rows: Sequence[int], words: Sequence[list[str]], before: bool) -> str | None:
    """Return the word that stands beside an n-gram in at least nine of ten rows; None: there is none."""
    seen: Counter[str] = Counter()
    for row in rows:
        line = words[row]
        sides = (at - 1 if before else at + len(gram) for at in _places(gram, line))
        seen.update({line[side] for side in sides if 0 <= side < len(line)})
    return next((word for word, count in seen.most_common(1) if count >= 0.9 * len(rows)), None)


def answer_codes(answers: Sequence[str], least: int) -> np.ndarray:
    """Return (rows,) the number of each row's answer, 0 where it is like no other answer.

    Answers are alike if they are equal; where too few are, if they begin with the same words; else if they end so.
    """
    texts = [" ".join(answer.lower().split()) for answer in answers]
    edges = [text.split() for text in texts]
    ways: list[list[str]] = [
        texts,
        [" ".join(edge[:EDGE]) if len(edge) > EDGE else "" for edge in edges],
        [" ".join(edge[-EDGE:]) if len(edge) > EDGE else "" for edge in edges],
    ]
    labels: list[tuple[int, str] | None] = [None] * len(texts)
    for way, keys in enumerate(ways):
        counts = Counter(key for key, label in zip(keys, labels, strict=True) if key and label is None)
        labels = [
            label or ((way, key) if key and counts[key] >= least else None)
            for key, label in zip(keys, labels, strict=True)
        ]
    frequent = [label for label, _ in Counter(label for label in labels if label).most_common(CLASSES)]
    numbers = {label: number for number, label in enumerate(frequent, start=1)}
    return np.array([numbers.get(label, 0) if label else 0 for label in labels], dtype=np.int64)
