"""Rows that are there already: equal ones, and nearly equal ones by MinHash; within one client's rows alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools
from weft.errors import ConfigError, MissingExtra

WEIGHTS = (0.1, 0.9)
"""What a needless comparison and a missed candidate count: the former costs time alone."""
SHORT = 5
"""Words of answers that decide about a row together."""
WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    """Return the words of a text alone, in lower case."""
    return " ".join(WORD.findall(text.lower()))


@dataclass(frozen=True)
class ExactDuplicates(Cleaner):
    """Leaves out a row whose words, prompts and answers, are those of an earlier row."""

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that repeat an earlier one."""
        known: set[bytes] = set()
        repeats = {}
        for number, sample in enumerate(samples):
            mark = xxhash.xxh3_128_digest((normalised(sample.text) or sample.text).encode())
            if mark in known:
                repeats[number] = "duplicate"
            known.add(mark)
        return repeats


@dataclass(frozen=True)
class NearDuplicates(Cleaner):
    """Leaves out a row that shares most of its shingles with an earlier row.

    MinHash (Broder 1997) finds the candidates in buckets, and the shingles themselves decide.
    """

    threshold: float = 0.8
    """Jaccard similarity of the shingles of two rows from which on the later one is left out."""
    shingle: int = 3
    """Words of a shingle."""
    hashes: int = 128
    """Hash functions of a sketch."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(
                f"near_duplicates.threshold is {self.threshold:g}, and similarities lie between 0 and 1: write one "
                "such as 0.8."
            )

    def start(self) -> None:
        """Refuse a machine without datasketch."""
        _datasketch()

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that are nearly an earlier one."""
        minhash = _datasketch()
        index = minhash.MinHashLSH(threshold=self.threshold, num_perm=self.hashes, weights=WEIGHTS)
        kept: dict[int, frozenset[str]] = {}
        repeats = {}
        empty = minhash.MinHash(num_perm=self.hashes, hashfunc=_hash)
        for number, sample in enumerate(samples):
            shingles = self._shingles(sample)
            sketch = empty.copy()
            sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
            if any(_similarity(shingles, kept[other]) >= self.threshold for other in sorted(index.query(sketch))):
                repeats[number] = "near duplicate"
                continue
            kept[number] = shingles
            index.insert(number, sketch)
        return repeats

    def _shingles(self, sample: Sample) -> frozenset[str]:
        words = normalised(sample.text).split()
        last = max(1, len(words) - self.shingle + 1)
        # Rows that differ in a short answer alone are not duplicates: that may be what they teach.
        answers = normalised(" ".join(sample.answers))
        mark = f" answers: {answers}" if sample.prompts and len(answers.split()) <= SHORT else ""
        return frozenset(" ".join(words[at : at + self.shingle]) + mark for at in range(last))


def _hash(shingle: bytes) -> int:
    return xxhash.xxh3_64_intdigest(shingle) & 0xFFFFFFFF


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise MissingExtra("datasketch", "clean", "The cleaner near_duplicates") from None
    return datasketch
