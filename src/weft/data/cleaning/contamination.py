"""Training rows that hold what the model will be measured on: word n-grams in common with the texts of a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import xxhash

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools
from weft.data.cleaning.duplicates import normalised

COMMON = 0.01
"""Share of the texts of a test that an n-gram may stand in; beyond it, it belongs to the form of all questions."""


@dataclass
class Marks:
    """The n-grams of a set of texts, as 8-byte digests; n-grams that many of the texts have are not among them."""

    size: int
    """Words of an n-gram; a text that has fewer is one n-gram."""
    known: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, texts: Sequence[str], size: int) -> Marks:
        """Return the marks of the texts that a model is measured on."""
        marks = cls(size)
        counts = Counter(gram for text in texts for gram in set(marks.grams(text)))
        most = max(3, COMMON * len(texts))
        marks.known = {gram for gram, count in counts.items() if count <= most}
        return marks

    def grams(self, text: str) -> list[int]:
        """Return the digests of a text's n-grams, in their order."""
        words = normalised(text).split()
        if not words:
            return []
        last = max(1, len(words) - self.size + 1)
        return [xxhash.xxh3_64_intdigest(" ".join(words[at : at + self.size]).encode()) for at in range(last)]

    def share(self, text: str) -> float:
        """Return the share of a text's n-grams that the texts of the test have too."""
        grams = self.grams(text)
        return sum(gram in self.known for gram in grams) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Contamination(Cleaner):
    """Leaves out rows that share a part of their word n-grams with a text that the model is measured on.

    Of the run's evaluation tasks one long n-gram suffices, as `weft.tasks.contamination` counts it.
    """

    compares_rows: ClassVar[bool] = True
    size: int = 8
    """Words of an n-gram."""
    share: float = 0.3
    """Share of a row's n-grams from which on it is left out."""
    against: str = ""
    """Files with further texts, a plus between them: a test set that is not among the run's held-out rows."""

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that overlap with a text of the test."""
        marks = Marks.of([*tools.measured, *_texts_of(self.against)], self.size)
        found = {}
        for number, sample in enumerate(samples):
            if marks.known and max(marks.share(sample.text), marks.share(" ".join(sample.prompts))) >= self.share:
                found[number] = "in the test set"
            elif tools.on_tasks is not None and (task := tools.on_tasks(sample.text)) is not None:
                found[number] = f"in the task {task}"
        return found


def _texts_of(files: str) -> list[str]:
    """Return the texts of each row of some files: all its cells of text, one behind the other."""
    from weft.data.load import whole_rows

    rows = (row for name in files.split("+") if name for row in whole_rows(name))
    return [" ".join(cell for cell in row.values() if isinstance(cell, str)) for row in rows]
