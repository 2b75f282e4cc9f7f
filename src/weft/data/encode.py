"""Tokenizing: rendered examples become flat arrays of ids, with what is learnt marked token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from weft.data.formats import Example, Turn
from weft.data.templates import Piece, Template

CHUNK = 2000
NO_LEAD = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Encoded:
    """Rows of token ids behind each other, without an object for each."""

    ids: np.ndarray
    """(tokens,) int32."""
    learn: np.ndarray
    """(tokens,) bool: is a target of the loss."""
    starts: np.ndarray
    """(rows + 1,) int64: where each row begins."""
    rows: np.ndarray
    """(rows,) int64: the example that each row was made of, increasing."""
    counts: dict[str, int]
    number: int
    """How many examples there were."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        here = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return self.ids[here], self.learn[here]

    @property
    def lengths(self) -> np.ndarray:
        """(examples,): tokens of each, 0 for those that were left out."""
        return np.bincount(self.rows, weights=np.diff(self.starts), minlength=self.number).astype(np.int64)

    def within(self, numbers: np.ndarray) -> np.ndarray:
        """Return those of these examples that have a row."""
        return np.intersect1d(numbers, self.rows)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows that were made of these examples, in their order."""
        return np.searchsorted(self.rows, numbers)


class _Segment(NamedTuple):
    """Text that is tokenized as one, the spans of it that are learnt, and whether an end token follows."""

    text: str
    learnt: list[tuple[int, int]]
    end: bool
    end_learnt: bool


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Template,
    *,
    seq_length: int,
    truncation_side: str = "right",
    lead: np.ndarray = NO_LEAD,
) -> Encoded:
    """Render and tokenize examples.

    A token is learnt if its characters reach into a learnt piece. Rows longer than `seq_length` are cut on the
    stated side; rows without a learnt token left are dropped. Both are counted.

    Args:
        examples: conversations.
        tokenizer: of the model.
        template: how a conversation becomes text.
        seq_length: longest row in tokens.
        truncation_side: the side that over-long rows are cut on.
        lead: ids that every row begins with, and that are never cut.
    """
    ids: list[np.ndarray] = []
    learn: list[np.ndarray] = []
    rows: list[int] = []
    truncated = dropped = 0
    for number, (tokens, learnt) in enumerate(tokenize(examples, tokenizer, template, lead)):
        if len(tokens) > seq_length:
            truncated += 1
            left = truncation_side == "left"
            tokens, learnt = (cut_left(v, seq_length, lead) if left else v[:seq_length] for v in (tokens, learnt))
        learnt[:1] = False  # nothing comes before the first token to predict it from
        if not learnt.any():
            dropped += 1
            continue
        ids.append(tokens)
        learn.append(learnt)
        rows.append(number)
    starts = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum([len(tokens) for tokens in ids], out=starts[1:])
    counts = {
        "rows": len(examples),
        "truncated": truncated,
        "no_answer_within_seq_length": dropped,
        "tokens": int(starts[-1]),
    }
    return Encoded(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        np.concatenate(learn) if learn else np.zeros(0, bool),
        starts,
        np.array(rows, dtype=np.int64),
        counts,
        len(examples),
    )


def cut_left(values: np.ndarray, most: int, lead: np.ndarray) -> np.ndarray:
    """Return the last of a row's values, but for those of its lead, `most` in all."""
    kept = max(0, most - len(lead))
    return values if len(values) <= most else np.concatenate([values[: len(lead)], values[len(values) - kept :]])


def tokenize(
    examples: Iterable[Example], tokenizer: Any, template: Template, lead: np.ndarray = NO_LEAD
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids int32, learnt bool) of every example, whole, behind the lead."""
    chunk: list[Example] = []
    for example in examples:
        chunk.append(example)
        if len(chunk) == CHUNK:
            yield from _tokenize(chunk, tokenizer, template, lead)
            chunk = []
    if chunk:
        yield from _tokenize(chunk, tokenizer, template, lead)


def _tokenize(
    examples: list[Example], tokenizer: Any, template: Template, lead: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rendered = [_segments(template.pieces(example, tokenizer)) for example in examples]
    flat = [segment for segments in rendered for segment in segments]
    spans = _offsets(flat, tokenizer, special=template.special)
    begin, end = added(tokenizer)
    at = 0
    for segments in rendered:
        ids: list[int] = []
        learnt: list[bool] = []
        for number, segment in enumerate(segments):
            tokens, offsets = spans[at]
            at += 1
            if number == 0 and not (begin and tokens[: len(begin)] == begin):
                ids += begin
                learnt += [False] * len(begin)
            ids += tokens
            learnt += [any(a < last and b > first for first, last in segment.learnt) for a, b in offsets]
            if segment.end:
                ids.append(end)
                learnt.append(segment.end_learnt)
        yield (
            np.concatenate([lead, np.array(ids, dtype=np.int32)]),
            np.concatenate([np.zeros(len(lead), dtype=bool), np.array(learnt, dtype=bool)]),
        )


def _segments(pieces: list[Piece]) -> list[_Segment]:
    """Join pieces into texts that are tokenized as one: up to each end token."""
    made: list[_Segment] = []
    text, learnt = "", []
    for piece in pieces:
        if piece.learn:
            learnt.append((len(text), len(text) + len(piece.text)))
        text += piece.text
        if piece.end:
            made.append(_Segment(text, learnt, True, piece.learn))
            text, learnt = "", []
    if text:
        made.append(_Segment(text, learnt, False, False))
    return made


def _offsets(
    segments: list[_Segment], tokenizer: Any, *, special: bool
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Return ids and character spans. Names of special tokens in the text are text, unless the template wrote them."""
    texts = [segment.text for segment in segments]
    if getattr(tokenizer, "is_fast", False):
        made = tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            split_special_tokens=not special,
            verbose=False,
        )
        return list(zip(made["input_ids"], made["offset_mapping"], strict=True))
    return [_piecewise(segment, tokenizer) for segment in segments]


def _piecewise(segment: _Segment, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize what is learnt apart from what is not, for tokenizers that know no offsets."""
    cuts = sorted({0, len(segment.text), *(edge for span in segment.learnt for edge in span)})
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for first, last in pairwise(cuts):
        tokens = tokenizer.encode(segment.text[first:last], add_special_tokens=False)
        ids += tokens
        spans += [(first, last)] * len(tokens)
    return ids, spans


def added(tokenizer: Any) -> tuple[list[int], int]:
    """Return the ids that the tokenizer puts before a text, and the end token."""
    end = int(tokenizer.eos_token_id)
    with_added = tokenizer.encode("a", add_special_tokens=True)
    bare = tokenizer.encode("a", add_special_tokens=False)
    for at in range(len(with_added) - len(bare) + 1):
        if with_added[at : at + len(bare)] == bare:
            return list(with_added[:at]), end
    return [], end


class Choices(NamedTuple):
    """Questions with a closed set of answers, as token ids (int32)."""

    prompts: list[np.ndarray]
    choices: list[list[np.ndarray]]
    right: list[int]
    """Which choice is right; -1 where none is."""


def encode_choices(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Template,
    choices: Sequence[str],
    *,
    seq_length: int,
    lead: np.ndarray = NO_LEAD,
) -> Choices:
    """Tokenize every example with each choice as its last answer.

    A prompt is what all choices of an example have in common; what is left of each, its end included, is the
    choice. Prompts are cut on the left to leave room for the longest choice within `seq_length`.
    """
    place = {text: number for number, text in enumerate(choices)}
    asked = (_with_answer(example, text) for example in examples for text in choices)
    made = tokenize(asked, tokenizer, template, lead)
    found = Choices([], [], [])
    for example in examples:
        rows = [next(made) for _ in choices]
        # The last run of learnt tokens is the answer, with what the template puts behind it left out.
        starts = [last_run(learnt)[0] for _, learnt in rows]
        shared = min(starts)
        while any((row[0][:shared] != rows[0][0][:shared]).any() for row in rows):
            shared -= 1
        answers = [tokens[shared : last_run(learnt)[1]] for tokens, learnt in rows]
        room = max(1, seq_length - max(len(answer) for answer in answers))
        found.prompts.append(cut_left(rows[0][0][:shared], room, lead))
        found.choices.append(answers)
        found.right.append(place.get(example.answer, place.get(example.answer.strip(), -1)))
    return found


def _with_answer(example: Example, text: str) -> Example:
    last = max(at for at, turn in enumerate(example.turns) if turn.role == "assistant")
    return Example((*example.turns[:last], Turn("assistant", text)))


def last_run(learnt: np.ndarray) -> tuple[int, int]:
    """Return where the last run of True begins and ends."""
    places = np.flatnonzero(learnt)
    last = int(places[-1])
    breaks = np.flatnonzero(np.diff(places) > 1)
    first = int(places[breaks[-1] + 1]) if len(breaks) else int(places[0])
    return first, last + 1


def closed_set(answers: Iterable[str], most: int = 20, each: int = 10) -> list[str] | None:
    """Return the distinct answers, sorted, if there are 2 to `most` and on average at least `each` rows of one."""
    counted: Counter[str] = Counter()
    for answer in answers:
        counted[answer.strip()] += 1
        if len(counted) > most:
            return None
    if len(counted) < 2 or counted.total() < each * len(counted):
        return None
    return sorted(counted)
