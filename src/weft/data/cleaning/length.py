"""Rows that are too short or too long, or hardly hold letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools


@dataclass(frozen=True)
class Length(Cleaner):
    """Leaves out rows by the number of their characters, and by the share of letters and digits."""

    least: int = 10
    """Characters of prompts and answers together, at least."""
    most: int = 100_000
    """Characters of prompts and answers together, at most."""
    least_letters: float = 0.3
    """Share of letters and digits among the characters that are no white space, at least."""

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that are out of bounds."""
        reasons = ((number, self._fault(sample.text)) for number, sample in enumerate(samples))
        return {number: reason for number, reason in reasons if reason}

    def _fault(self, text: str) -> str:
        if len(text.strip()) < self.least:
            return f"fewer than {self.least} characters"
        if len(text) > self.most:
            return f"more than {self.most} characters"
        signs = [sign for sign in text if not sign.isspace()]
        return "hardly any letters" if sum(map(str.isalnum, signs)) < self.least_letters * len(signs) else ""
