"""Contamination: how many items of an evaluation task share a long n-gram of words with the rows of a training.

A model that was trained on a test item answers it better than one that was not, so that its score means less. As in the
GPT-3 paper (arXiv 2005.14165, appendix C), an n-gram has 13 words, or as many as the longest text of an item where that
has 8 to 12; n-grams that many items have are a question's frame, and say nothing.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LONGEST, SHORTEST = 13, 8
"""Words of an n-gram: as many as the longest text of an item has, within these bounds."""
COMMON = 10
"""Items that may have an n-gram in common; of a small task, at most a tenth of its items, and one at least."""
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Letters of languages that are written without spaces: each counts as a word."""
_WORD = re.compile(f"[{_WIDE}]|[^\\W_{_WIDE}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class ItemGrams:
    """The n-grams of a task's items, as hashes of 64 bits: of each length their sorted hashes, and whose they are."""

    items: int
    """Items of the task."""
    compared: int
    """Those that have an n-gram to compare."""
    tables: Mapping[int, tuple[np.ndarray, list[tuple[int, ...]]]]

    def shared(self, texts: Iterable[str]) -> set[int]:
        """Return the numbers of the items that share an n-gram with one of the texts."""
        found: set[int] = set()
        if not self.tables:
            return found
        for text in texts:
            for length, hashes in _grams(text, max(self.tables)):
                if length not in self.tables:
                    continue
                keys, owners = self.tables[length]
                places = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
                for place in np.unique(places[keys[places] == hashes]):
                    found.update(owners[place])
        return found


def grams_of(rows: Iterable[Mapping[str, object]]) -> ItemGrams:
    """Return the n-grams of the items of a task; `rows` are the columns of each, of which the texts count."""
    by_item = [_of_item(row) for row in rows]
    common = max(1, min(COMMON, len(by_item) // 10))
    counts = Counter(gram for grams in by_item for gram in grams)
    owners: dict[int, dict[int, list[int]]] = {}
    compared = 0
    for number, grams in enumerate(by_item):
        own = [gram for gram in grams if counts[gram] <= common]
        compared += bool(own)
        for length, value in own:
            owners.setdefault(length, {}).setdefault(value, []).append(number)
    tables = {
        length: (np.array(sorted(some), dtype=np.uint64), [tuple(some[value]) for value in sorted(some)])
        for length, some in owners.items()
    }
    return ItemGrams(len(by_item), compared, tables)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in small letters and without signs."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _of_item(row: Mapping[str, object]) -> set[tuple[int, int]]:
    """Return the n-grams (length, hash) of an item; none where all of its texts are short."""
    texts = [text for value in row.values() for text in _texts(value)]
    length = min(LONGEST, max((len(words_of(text)) for text in texts), default=0))
    if length < SHORTEST:
        return set()
    return {
        (length, int(value))
        for text in texts
        for size, hashes in _grams(text, length)
        if size == length
        for value in hashes
    }


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a column, which may be a list or an object of texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def _grams(text: str, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield of each length from `SHORTEST` to `most` the hashes of all n-grams of a text, in their order."""
    words = np.array([_hash(word) for word in words_of(text)], dtype=np.uint64)
    factor, sums = np.uint64(1), np.zeros(len(words), dtype=np.uint64)
    for length in range(1, min(most, len(words)) + 1):
        # sum of word[i + k] * factor^k, modulo 2^64; each length adds a word to the one before.
        sums = sums[: len(words) - length + 1] + words[length - 1 :] * factor
        factor = np.uint64(int(factor) * int(_FACTOR) % (1 << 64))
        if length >= SHORTEST:
            yield length, sums


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
