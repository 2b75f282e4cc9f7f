"""Documents of token stores as rows of a table; only the offsets of documents are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from weft.data.store import Store


class Pieces(Sequence[int]):
    """The rows of some documents in their order, without a number in memory for each."""

    def __init__(self, first: np.ndarray, counts: np.ndarray) -> None:
        """Take the first row of each document, and how many rows it has."""
        self.first, self.ends = first, np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        document = int(np.searchsorted(self.ends, place, side="right"))
        before = int(self.ends[document - 1]) if document else 0
        return int(self.first[document]) + place - before

    def __iter__(self) -> Iterator[int]:
        return (self[place] for place in range(len(self)))


class Documents:
    """A table of the documents of several stores, each in rows of at most `seq_length` tokens.

    A row begins with the last token of the one before, so that every token is learnt once.
    """

    def __init__(self, stores: Sequence[Store], seq_length: int, begin: int) -> None:
        """Concatenate the stores; the first `begin` tokens of every document are not learnt."""
        self.seq_length, self.begin = seq_length, max(1, begin)
        # As plain arrays: a slice of a memory map makes a map anew, which takes as long as all else of a row.
        self._shards = [np.asarray(shard) for store in stores for shard in store.tokens]
        first_documents = np.cumsum([0, *(len(store.documents) for store in stores)])
        self._shard_of = np.concatenate(
            [store.shard_of + first for store, first in zip(stores, first_documents, strict=False)]
        )
        documents = np.concatenate([store.documents for store in stores])
        self.lengths, self._sizes = documents[:, 0], documents[:, 1]
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        self._offsets = starts[self._shard_of]
        """Tokens before each shard."""
        self._starts = starts
        # Rows of a document overlap by one token: n tokens make ceil((n - 1) / (seq_length - 1)) rows.
        self.pieces = -(-np.maximum(self.lengths - 1, 1) // max(1, seq_length - 1))
        self._rows = np.concatenate([[0], np.cumsum(self.pieces)])
        self.counts = {"rows": len(documents), "truncated": 0, "tokens": int(ends[-1])}

    def __len__(self) -> int:
        return int(self._rows[-1])

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        document, piece = self._place(row)
        offset = piece * (self.seq_length - 1)
        size = min(self.seq_length, int(self.lengths[document]) - offset)
        shard = int(np.searchsorted(self._shard_of, document, side="right")) - 1
        first = int(self._starts[document] - self._offsets[shard]) + offset
        learn = np.ones(size, dtype=bool)
        # The first token of a later row was learnt as the last token of the row before.
        learn[: 1 if piece else self.begin] = False
        return self._shards[shard][first : first + size].astype(np.int32), learn

    def _place(self, row: int) -> tuple[int, int]:
        document = int(np.searchsorted(self._rows, row, side="right")) - 1
        return document, row - int(self._rows[document])

    def text_bytes(self, row: int) -> int:
        """Return the bytes of text that a row's targets encode; all bytes of a document count for its first row."""
        document, piece = self._place(row)
        return 0 if piece else int(self._sizes[document])

    def within(self, numbers: np.ndarray) -> np.ndarray:
        """Return the documents that have rows, which is all of them."""
        return numbers

    def rows_of(self, numbers: np.ndarray) -> Pieces:
        """Return the rows of these documents, in their order."""
        return Pieces(self._rows[numbers], self.pieces[numbers])

    def document(self, number: int) -> np.ndarray:
        """Return all ids of a document."""
        rows = range(int(self._rows[number]), int(self._rows[number + 1]))
        parts = [self[row][0] for row in rows]
        return np.concatenate([parts[0], *(part[1:] for part in parts[1:])])
