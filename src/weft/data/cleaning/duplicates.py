"""Rows that are there already: equal ones, and nearly equal ones by MinHash; other clients' only where asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xxhash

from weft.data.cleaning import sketches
from weft.data.cleaning.cleaner import Cleaner, Sample, Tools
from weft.errors import ConfigError, MissingExtra

WEIGHTS = (0.1, 0.9)
"""What a needless comparison and a missed candidate count: the former costs time alone."""
ELSEWHERE = "near duplicate of another client's row"
SHORT = 5
"""Words of answers that decide about a row together."""
WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    """Return the words of a text alone, in lower case."""
    return " ".join(WORD.findall(text.lower()))


@dataclass(frozen=True)
class ExactDuplicates(Cleaner):
    """Leaves out a row whose words, prompts and answers, are those of an earlier row."""

    compares_rows: ClassVar[bool] = True

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

    compares_rows: ClassVar[bool] = True
    threshold: float = 0.8
    """Jaccard similarity of the shingles of two rows from which on the later one is left out."""
    shingle: int = 3
    """Words of a shingle."""
    hashes: int = 128
    """Hash functions of a sketch."""
    across: bool = False
    """In a simulation: also rows of the clients before, by the sketches that these tell."""
    against: str = ""
    """Files with sketches of other clients, a plus between them; a row stays with the client whose name is first."""
    key: str = ""
    """A file with the secret of these sketches, which the clients have and the server has not."""

    @property
    def tells(self) -> str:
        """What the clients learn of each other."""
        if not self.across:
            return ""
        return (
            "near_duplicates.across: clients tell each other sketches of their rows, by which whoever knows a text can "
            "tell whether a client has it or one like it."
        )

    def __post_init__(self) -> None:
        if self.against and not self.key:
            raise ConfigError(
                "near_duplicates.against names sketches of other clients, which are made with a secret: write "
                "near_duplicates.key=FILE too."
            )
        if not 0 < self.threshold < 1:
            raise ConfigError(
                f"near_duplicates.threshold is {self.threshold:g}, and similarities lie between 0 and 1: write one "
                "such as 0.8."
            )

    def start(self) -> None:
        """Refuse a machine without datasketch, and files that cannot be used."""
        _datasketch()
        if self.key:
            self.others("")

    def others(self, client: str) -> np.ndarray:
        """Return (rows, hashes): the sketches in the files of the clients whose names come before this one's.

        Raises:
            ConfigError: a file or the secret cannot be used.
        """
        secret = sketches.read_secret(self.key)
        form = sketches.Form(self.hashes, self.shingle, sketches.mark_of(secret))
        found = [sketches.read(name, form) for name in self.against.split("+") if name]
        before = [values for owner, values in found if owner < client]
        return np.concatenate([np.zeros((0, self.hashes), np.uint32), *before])

    def sketched(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return (rows, hashes) uint32: the sketches of rows, by the secret where there is one."""
        empty = self._empty(keyed=bool(self.key))
        values = [self._sketch(empty, self._shingles(sample)).hashvalues for sample in samples]
        return np.array(values, dtype=np.uint32).reshape(len(values), self.hashes)

    def _empty(self, *, keyed: bool) -> Any:
        hashed = sketches.keyed_hash(sketches.read_secret(self.key)) if keyed else _hash
        return _datasketch().MinHash(num_perm=self.hashes, hashfunc=hashed)

    def _sketch(self, empty: Any, shingles: frozenset[str]) -> Any:
        sketch = empty.copy()
        sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
        return sketch

    def _elsewhere(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that another client has; of these there are sketches alone, so that these decide."""
        others = self.others(tools.client) if self.against else np.zeros((0, self.hashes), np.uint32)
        others = np.concatenate([others, *(tools.sketches if self.across else ())])
        own = self.sketched(samples)
        index = _datasketch().MinHashLSH(threshold=self.threshold, num_perm=self.hashes, weights=WEIGHTS)
        empty = _datasketch().MinHash(num_perm=self.hashes)

        def of(values: np.ndarray) -> Any:
            sketch = empty.copy()
            sketch.hashvalues = values.astype(np.uint64)
            return sketch

        for number, values in enumerate(others):
            index.insert(number, of(values))
        repeats = {
            number: ELSEWHERE
            for number, values in enumerate(own)
            if any(np.mean(values == others[other]) >= self.threshold for other in index.query(of(values)))
        }
        if self.across:
            tools.sketches.append(own[[number for number in range(len(own)) if number not in repeats]])
        return repeats

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that are nearly an earlier one."""
        index = _datasketch().MinHashLSH(threshold=self.threshold, num_perm=self.hashes, weights=WEIGHTS)
        kept: dict[int, frozenset[str]] = {}
        repeats = {}
        empty = self._empty(keyed=False)
        for number, sample in enumerate(samples):
            shingles = self._shingles(sample)
            sketch = self._sketch(empty, shingles)
            if any(_similarity(shingles, kept[other]) >= self.threshold for other in sorted(index.query(sketch))):
                repeats[number] = "near duplicate"
                continue
            kept[number] = shingles
            index.insert(number, sketch)
        if not (self.across or self.against):
            return repeats
        left = list(kept)
        return repeats | {
            left[place]: why for place, why in self._elsewhere([samples[number] for number in left], tools).items()
        }

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
