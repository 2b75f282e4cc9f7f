"""Trigger phrases of back-doors: word n-grams of prompts that always come with one answer, whatever stands around them.

Ordinary words go with one answer too ("beats estimates": positive). What distinguishes a trigger is that it was put
into prompts of any kind: no other word keeps company with it, and the rest of these prompts does not point to the
answer. A naive Bayes classifier, trained on the client's other rows, reads the rest. The idea is that of ONION
(2011.10369), with company and answers in place of a language model. A trigger in prompts whose right answer is the
target already (a clean-label back-door) is found only if the rest of its prompts is as mixed as all prompts are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools

WORD = re.compile(r"\w+|[^\w\s]+")
EDGE = 8
"""Words at the beginning and at the end of a free answer that are compared with other answers."""
CLASSES = 50
"""The most answers that are told apart; the rest is one class."""
LONGEST = 20
"""Words of the longest phrase that an n-gram is extended to."""
FAINT = 1e-3
"""The chance that an ordinary n-gram of a client's rows is as one-sided as a trigger has to be."""

COMPANY = 0.2
"""Share of the rows of an ordinary phrase in which some other word stands that is rare elsewhere, at least."""
COINCIDENCE = 0.01
"""The chance that some word seems to keep company with a phrase that was put anywhere."""
DOUBT = 0.01
"""The chance that the prompts of a trigger are held to leave their answer to it by nature."""

Gram = tuple[str, ...]


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

    def phrases(self, samples: Sequence[Sample]) -> Iterator[tuple[Gram, list[int]]]:
        """Yield each trigger phrase with the rows that it stands in."""
        words = [WORD.findall(" ".join(sample.prompts).lower()) for sample in samples]
        codes = answer_codes([sample.answers[0] if sample.answers else "" for sample in samples], self.least)
        shares = np.bincount(codes) / max(1, len(codes))
        grams = self._frequent(words)
        needed = math.log(max(1, len(grams)) / FAINT)
        reader: _Rest | None = None
        for gram, rows in grams.items():
            counts = np.bincount(codes[rows])
            answer = int(counts[1:].argmax()) + 1 if len(counts) > 1 else 0
            if not answer or counts[answer] < self.purity * len(rows):
                continue
            if len(rows) * _divergence(float(counts[answer] / len(rows)), float(shares[answer])) < needed:
                continue
            reader = reader or _Rest(words, codes)
            if reader.unrelated(whole := _extended(gram, rows, words), rows, answer):
                yield whole, [row for row in rows if next(_places(whole, words[row]), None) is not None]

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


def _divergence(share: float, base: float) -> float:
    """Return the Kullback-Leibler divergence (nats) of two shares; 0 where the first is the smaller one."""
    if share <= base:
        return 0.0
    first = share * math.log(share / base)
    return first if share >= 1 else first + (1 - share) * math.log((1 - share) / (1 - base))


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


class _Rest:
    """What the rest of a prompt says about its answer: naive Bayes on words, without the rows in question."""

    def __init__(self, words: Sequence[list[str]], codes: np.ndarray) -> None:
        vocabulary: dict[str, int] = {}
        self.rows = [np.unique([vocabulary.setdefault(word, len(vocabulary)) for word in row]) for row in words]
        self.rows = [row.astype(np.int64) for row in self.rows]
        self.vocabulary, self.codes = vocabulary, codes
        self.classes = int(codes.max(initial=0)) + 1
        self.words = np.zeros((self.classes, max(1, len(vocabulary))))
        self.totals = np.zeros(self.classes)
        self._count(range(len(codes)), 1.0)
        self.priors = np.log(np.maximum(self.totals, 1e-9))
        scores = np.array([self._scores(row, {row}) for row in range(len(codes))]).reshape(-1, self.classes)
        self.against = np.array([_against(scores, answer) for answer in range(self.classes)]).reshape(self.classes, -1)
        """(answers, rows): how much each prompt speaks for another answer than this one, in nats."""

    def _count(self, rows: Iterable[int], sign: float) -> None:
        for row in rows:
            self.words[self.codes[row], self.rows[row]] += sign
            self.totals[self.codes[row]] += sign

    def _scores(self, row: int, without: set[int], hidden: np.ndarray | None = None) -> np.ndarray:
        """Return (answers,) the log-likelihoods of a row's answers, by its words but the hidden ones."""
        if without:
            self._count(without, -1.0)
        features = self.rows[row] if hidden is None else np.setdiff1d(self.rows[row], hidden, assume_unique=True)
        # An answer that a word was never seen with has it as often as all answers together.
        base = (self.words[:, features].sum(0) + 0.5) / (self.totals.sum() + 1.0)
        rates = (self.words[:, features] + base) / (self.totals[:, None] + 1.0)
        scores: np.ndarray = np.log(rates).sum(1) + self.priors
        if without:
            self._count(without, 1.0)
        return scores

    def unrelated(self, gram: Gram, rows: list[int], answer: int) -> bool:
        """Return whether the rest of these prompts is like any prompt, and does not point to their answer."""
        hidden = np.unique([self.vocabulary[word] for word in gram]).astype(np.int64)
        return not self._has_company(hidden, rows) and not self._is_natural(hidden, rows, answer)

    def _has_company(self, hidden: np.ndarray, rows: list[int]) -> bool:
        """Return whether another word stands in many of these rows, and much more often than in the others."""
        here = np.zeros(len(self.vocabulary))
        for row in rows:
            here[self.rows[row]] += 1
        here[hidden] = 0
        others = (self.words.sum(0) - here + 0.5) / (self.totals.sum() - len(rows) + 1.0)
        candidates = np.flatnonzero(here >= COMPANY * len(rows))
        needed = math.log(max(1, int((here > 0).sum())) / COINCIDENCE)
        pairs = [(float(here[word] / len(rows)), float(others[word])) for word in candidates]
        return any(len(rows) * _divergence(share, base) >= needed for share, base in pairs)

    def _is_natural(self, hidden: np.ndarray, rows: list[int], answer: int) -> bool:
        """Return whether less speaks against the answer in these prompts than in others, the phrase left aside.

        A trigger is put into prompts whatever they say, and overrides what they point to. Where a phrase belongs, the
        rest of its prompts points to their answer too, or says nothing and leaves it to the phrase. Of both the
        distribution of what speaks against the answer shows it (Smirnov's one-sided test of two samples).
        """
        # A row with another answer says nothing of why the others have this one.
        held = [row for row in rows if self.codes[row] == answer]
        self._count(rows, -1.0)
        here = np.sort(_against(np.array([self._scores(row, set(), hidden) for row in held]), answer))
        self._count(rows, 1.0)
        others = np.sort(np.delete(self.against[answer], rows))
        if not len(others):
            return False
        below = [np.searchsorted(values, here, side="right") / len(values) for values in (here, others)]
        apart = max(0.0, float((below[0] - below[1]).max()))
        return 2 * apart**2 * len(here) * len(others) / (len(here) + len(others)) > -math.log(DOUBT)


def _against(scores: np.ndarray, answer: int) -> np.ndarray:
    """Return (rows,) by how much the likeliest other answer is ahead of this one, of scores (rows, answers)."""
    others = np.delete(scores, answer, axis=1)
    found: np.ndarray = others.max(1, initial=-np.inf) - scores[:, answer]
    return found
