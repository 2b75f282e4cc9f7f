"""Rows of plain text as rows of a task: fill-in-the-middle, or a suffix that follows a prefix.

A row is a piece of one document. It is cut at random places between tokens, and what is learnt goes with each token:
one that another row learns stays unlearnt wherever it is moved. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Row = tuple[np.ndarray, np.ndarray]
"""Token ids (n,) int32, and the mask (n,) bool of those that are learnt."""


class Infilling(NamedTuple):
    """How rows are rearranged."""

    prefix: int
    """The mark before a prefix; so are the next two."""
    suffix: int
    middle: int
    begin: Sequence[int]
    """Tokens before every document; they stay in front."""
    end: int
    """The token that ends a document, and the middle."""

    def text(self, row: Row) -> tuple[int, int]:
        """Return where the text of a row begins and ends: between the tokens before a document and the end token."""
        ids = row[0]
        first = len(self.begin) if ids[: len(self.begin)].tolist() == list(self.begin) else 0
        return first, len(ids) - (len(ids) > first and int(ids[-1]) == self.end)

    def rearranged(
        self, row: Row, first: int, last: int, *, suffix_first: bool = False, middle_only: bool = False
    ) -> Row:
        """Return a row with the tokens [first, last) as its middle (Bavarian et al. 2022, arXiv 2207.14255, section 3).

        Prefix, suffix, middle (PSM): <PRE> prefix <SUF> suffix <MID> middle <END>. Suffix, prefix, middle (SPM, their
        variant 2): <PRE> <SUF> suffix <MID> prefix middle <END>. Marks are given where text is filled in, so they are
        never learnt; the end of the middle always is: it says that middle and suffix join.

        Args:
            row: of a piece of a document.
            first, last: places in the row's text, as `text` bounds it.
            suffix_first: SPM.
            middle_only: nothing but the middle and its end is learnt, which is how filling in is measured.
        """
        ids, learn = row
        begin, end = self.text(row)
        if middle_only:
            learn = np.zeros_like(learn)
            learn[first:last] = True
        front, prefix, middle, suffix = ((ids[a:b], learn[a:b]) for a, b in _pieces(begin, first, last, end))
        before_prefix, before_suffix, before_middle = map(_unlearnt, (self.prefix, self.suffix, self.middle))
        if suffix_first:
            parts = [front, before_prefix, before_suffix, suffix, before_middle, prefix, middle]
        else:
            parts = [front, before_prefix, prefix, before_suffix, suffix, before_middle, middle]
        parts.append((np.array([self.end]), np.array([True])))
        rearranged = np.concatenate([part for part, _ in parts]).astype(np.int32)
        return rearranged, np.concatenate([part for _, part in parts]).astype(bool)


def _unlearnt(token: int) -> Row:
    return np.array([token]), np.array([False])


def _pieces(begin: int, first: int, last: int, end: int) -> list[tuple[int, int]]:
    return [(0, begin), (begin, first), (first, last), (last, end)]


def two_places(rng: np.random.Generator, begin: int, end: int) -> tuple[int, int]:
    """Return two places from begin to end, uniform and in order: any of the three parts may be empty."""
    first, last = sorted(rng.integers(begin, end, size=2, endpoint=True).tolist())
    return first, last


def after_prefix(row: Row, place: int) -> Row:
    """Return a row of which the tokens from `place` are learnt, and those before it are read alone."""
    ids, learn = row
    return ids, learn & (np.arange(len(ids)) >= place)
