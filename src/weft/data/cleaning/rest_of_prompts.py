"""What stands around a phrase of prompts, and what it says about their answers: whether the phrase belongs there.

A naive Bayes classifier on words, trained on the client's other rows, reads the rest of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

COMPANY = 0.2
"""Share of the rows of an ordinary phrase in which some other word stands that is rare elsewhere, at least."""
COINCIDENCE = 0.01
"""The chance that some word seems to keep company with a phrase that was put anywhere."""
MOST_DOUBT = -math.log(0.01)
"""0.01 is the chance that prompts into which a trigger was put seem to leave their answer to it by nature."""
OTHERS = 2000
"""The most other rows that the rows of a phrase are compared with."""
Gram = tuple[str, ...]
"""The words of a phrase."""


class Rest:
    """What the rest of a prompt says about its answer: naive Bayes on words, without the rows in question."""

    def __init__(self, words: Sequence[list[str]], codes: np.ndarray) -> None:
        vocabulary: dict[str, int] = {}
        rows = [np.unique([vocabulary.setdefault(word, len(vocabulary)) for word in row]) for row in words]
        self.rows = [row.astype(np.int64) for row in rows]
        self.vocabulary, self.codes = vocabulary, codes
        self.words = np.zeros((int(codes.max(initial=0)) + 1, max(1, len(vocabulary))))
        self.totals = np.zeros(len(self.words))
        self._count(range(len(codes)), 1.0)
        self.without: set[int] = set()
        """Rows that are left out of all counts."""
        self.priors = np.log(np.maximum(self.totals, 1e-9))

    def _count(self, rows: Iterable[int], sign: float) -> None:
        for row in rows:
            self.words[self.codes[row], self.rows[row]] += sign
            self.totals[self.codes[row]] += sign

    def leave_out(self, rows: Sequence[int]) -> None:
        """Forget rows."""
        self._count(rows, -1.0)
        self.without.update(rows)

    def has_company(self, gram: Gram, rows: Sequence[int]) -> bool:
        """Return whether another word stands in many of a phrase's rows, and much more often than in the others."""
        here = np.zeros(len(self.vocabulary))
        for row in rows:
            here[self.rows[row]] += 1
        here[self._numbers(gram)] = 0
        others = (self.words.sum(0) - here + 0.5) / (self.totals.sum() - len(rows) + 1.0)
        candidates = np.flatnonzero(here >= COMPANY * len(rows))
        needed = math.log(max(1, int((here > 0).sum())) / COINCIDENCE)
        pairs = [(float(here[word] / len(rows)), float(others[word])) for word in candidates]
        return any(len(rows) * divergence(share, base) >= needed for share, base in pairs)

    def doubt(self, gram: Gram, rows: Sequence[int], answer: int) -> float:
        """Return how much doubt there is that a phrase overrides its prompts, in nats; `MOST_DOUBT` is too much.

        A trigger is put into prompts whatever they say, and overrides what they point to. Where a phrase belongs, the
        rest of its prompts points to their answer too, or says nothing and leaves it to the phrase: less speaks against
        the answer there than in other prompts. Smirnov's one-sided test compares both samples, of which the chance is
        exp(-2 D^2 n m / (n + m)).
        """
        hidden, apart = self._numbers(gram), self.without | set(rows)
        # A row with another answer says nothing of why the others have this one.
        held = [row for row in rows if self.codes[row] == answer]
        others = [row for row in range(len(self.codes)) if row not in apart]
        others = others[:: max(1, -(-len(others) // OTHERS))]
        if not others:
            return 0.0
        self._count(rows, -1.0)
        here = np.sort(self._against(held, answer, hidden, counted=False))
        there = np.sort(self._against(others, answer, hidden, counted=True))
        self._count(rows, 1.0)
        below = [np.searchsorted(values, here, side="right") / len(values) for values in (here, there)]
        ahead = max(0.0, float((below[0] - below[1]).max()))
        return 2 * ahead**2 * len(here) * len(there) / (len(here) + len(there))

    def _numbers(self, gram: Gram) -> np.ndarray:
        return np.unique([self.vocabulary[word] for word in gram]).astype(np.int64)

    def _against(self, rows: Sequence[int], answer: int, hidden: np.ndarray, *, counted: bool) -> np.ndarray:
        """Return (rows,): by how much (nats) words but the hidden ones make some other answer likelier than this one.

        A row that is counted is left out of the counts that it is compared with.
        """
        words = np.concatenate([self.rows[row] for row in rows])
        owners = np.repeat(np.arange(len(rows)), [len(self.rows[row]) for row in rows])
        seen = ~np.isin(words, hidden)
        words, owners, own = words[seen], owners[seen], self.codes[list(rows)]
        # Every answer is given one more row with a word, and as many without it as it usually is in: one row of a rare
        # word is hardly a reason.
        more = (self.totals.sum() - counted + 1.0) / (self.words.sum(0)[words] - counted + 0.5)
        scores = np.empty((len(self.words), len(rows)))
        for code, (counts, total) in enumerate(zip(self.words, self.totals, strict=True)):
            one_less = (own == code)[owners] if counted else np.zeros(len(words), dtype=bool)
            rates = (counts[words] + 1.0 - one_less) / (total + more - one_less)
            scores[code] = np.bincount(owners, np.log(rates), len(rows)) + self.priors[code]
        found: np.ndarray = np.delete(scores, answer, axis=0).max(0, initial=-np.inf) - scores[answer]
        return found


def divergence(share: float, base: float) -> float:
    """Return the Kullback-Leibler divergence (nats) of two shares; 0 where the first is the smaller one."""
    if share <= base:
        return 0.0
    first = share * math.log(share / base)
    return first if share >= 1 else first + (1 - share) * math.log((1 - share) / (1 - base))
