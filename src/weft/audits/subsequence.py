"""How much of a sequence stands in another in the same order: the longest common subsequence, ROUGE-L (Lin 2004)."""

from __future__ import annotations

from collections.abc import Sequence


def common(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for one in first:
        before = 0
        for place, other in enumerate(second, 1):
            before, lengths[place] = lengths[place], before + 1 if one == other else max(lengths[place - 1 : place + 1])
    return lengths[-1]


def recall_of(wanted: Sequence[object], found: Sequence[object]) -> float:
    """Return the share of a sequence that stands in another in its order (ROUGE-L's recall); 0 of nothing."""
    return common(wanted, found) / len(wanted) if wanted else 0.0


def rouge_l(wanted: Sequence[object], found: Sequence[object]) -> float:
    """Return ROUGE-L's F1 of two sequences; 0 where they have nothing in common."""
    return 2 * common(wanted, found) / (len(wanted) + len(found)) if wanted and found else 0.0
