"""Tokenizing conversations: rendered pieces become ids, each with a flag that says whether the loss learns it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from weft.core.libraries import Tokenizer
from weft.data.formats import Example, Turn
from weft.data.marks import START, stretches
from weft.data.templates import Piece, PlainTemplate, RoleRefused, Template

CHUNK = 2000
NO_LEAD = np.zeros(0, dtype=np.int32)
Row = tuple[np.ndarray, np.ndarray]
"""Ids (T,) int32 and learn mask (T,) bool."""


class _Segment(NamedTuple):
    """A text that is tokenized in one call, its spans of characters to learn, and whether an end token follows."""

    text: str
    learn_spans: list[tuple[int, int]]
    end: bool
    learn_end: bool


def truncate_left(values: np.ndarray, most: int, lead: np.ndarray) -> np.ndarray:
    """Return a row of at most `most` values: its lead, and as many of its last values as fit."""
    remaining = max(0, most - len(lead))
    return values if len(values) <= most else np.concatenate([values[: len(lead)], values[len(values) - remaining :]])


def tokenize(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    template: Template,
    lead: np.ndarray = NO_LEAD,
    refusals: dict[int, str] | None = None,
) -> Iterator[Row]:
    """Yield every example as ids (T,) and learn mask (T,), untruncated, after the lead.

    Args:
        examples: conversations.
        tokenizer: of the model.
        template: how a conversation becomes text.
        lead: ids that every row begins with.
        refusals: receives number -> reason of each example that the template refuses; such an example yields a row
            of no tokens. Without it the refusal is raised.
    """
    chunk: list[Example] = []
    num_before = 0
    for example in examples:
        chunk.append(example)
        if len(chunk) == CHUNK:
            yield from _tokenize(chunk, tokenizer, template, lead, refusals, num_before)
            num_before += len(chunk)
            chunk = []
    if chunk:
        yield from _tokenize(chunk, tokenizer, template, lead, refusals, num_before)


def _pieces(
    examples: list[Example], tokenizer: Tokenizer, template: Template, refusals: dict[int, str] | None, first: int
) -> Iterator[list[Piece]]:
    for number, example in enumerate(examples, start=first):
        try:
            yield template.pieces(example, tokenizer)
        except RoleRefused as reason:
            if refusals is None:
                raise
            refusals[number] = str(reason)
            yield []


def _tokenize(
    examples: list[Example],
    tokenizer: Tokenizer,
    template: Template,
    lead: np.ndarray,
    refusals: dict[int, str] | None,
    first: int,
) -> Iterator[Row]:
    rendered = [_segments(pieces) for pieces in _pieces(examples, tokenizer, template, refusals, first)]
    all_segments = [segment for segments in rendered for segment in segments]
    spans = _offsets(all_segments, tokenizer, special=template.special) if all_segments else []
    begin, end = begin_and_end_ids(tokenizer)
    position = 0
    for segments in rendered:
        if not segments:
            yield NO_LEAD, np.zeros(0, dtype=bool)
            continue
        ids: list[int] = []
        learn_mask: list[bool] = []
        for number, segment in enumerate(segments):
            tokens, offsets = spans[position]
            position += 1
            if number == 0 and not (begin and tokens[: len(begin)] == begin):
                ids += begin
                learn_mask += [False] * len(begin)
            ids += tokens
            learn_mask += _learnt(offsets, segment.learn_spans)
            if segment.end:
                ids.append(end)
                learn_mask.append(segment.learn_end)
        yield (
            np.concatenate([lead, np.array(ids, dtype=np.int32)]),
            np.concatenate([np.zeros(len(lead), dtype=bool), np.array(learn_mask, dtype=bool)]),
        )


def _learnt(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """Return for each token whether its characters touch one of the spans to learn."""
    if len(spans) == 1:  # nearly always; a generator for each token would take a third of the time of tokenizing
        ((first, last),) = spans
        return [a < last and b > first for a, b in offsets]
    return [any(a < last and b > first for first, last in spans) for a, b in offsets]


def prompt_ids(turns: tuple[Turn, ...], tokenizer: Tokenizer, template: Template) -> np.ndarray:
    """Return the ids (P,) int32 of the prompt before the next answer, exactly as training writes them.

    Raises:
        RoleRefused: the template refuses the conversation.
    """
    if isinstance(template, PlainTemplate):
        begin, _ = begin_and_end_ids(tokenizer)
        bare = tokenizer.encode(template.prompt(turns, tokenizer), add_special_tokens=False, split_special_tokens=True)
        return np.array(bare if begin and bare[: len(begin)] == begin else begin + bare, dtype=np.int32)
    # A placeholder answer is rendered, since only a rendered answer shows where the prompt ends.
    ((ids, learn_mask),) = tokenize([Example((*turns, Turn("assistant", "-")))], tokenizer, template)
    return ids[: last_run(learn_mask)[0]]


def _segments(pieces: list[Piece]) -> list[_Segment]:
    """Join pieces up to each end token into segments, so that no word is split where pieces meet."""
    segments: list[_Segment] = []
    text, learn_spans = "", []
    for piece in pieces:
        if piece.learn:
            learn_spans.append((len(text), len(text) + len(piece.text)))
        text += piece.text
        if piece.end:
            segments.append(_Segment(text, learn_spans, True, piece.learn))
            text, learn_spans = "", []
    if text:
        segments.append(_Segment(text, learn_spans, False, False))
    return segments


Spans = tuple[list[int], list[tuple[int, int]]]
"""Ids, and for each id its span of characters."""


def _offsets(segments: list[_Segment], tokenizer: Tokenizer, *, special: bool) -> list[Spans]:
    """Return ids and character spans; special tokens in the text stay text unless the template wrote them."""
    if not getattr(tokenizer, "is_fast", False):
        return [_piecewise(segment, tokenizer, special) for segment in segments]
    encoding = tokenizer(
        [segment.text for segment in segments],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=not special,
        verbose=False,
    )
    spans = list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))
    if special:
        for number, segment in enumerate(segments):
            if START in segment.text:
                spans[number] = _tokenize_marked(segment.text, tokenizer)
    return spans


def _tokenize_marked(text: str, tokenizer: Tokenizer) -> Spans:
    """Tokenize a text with marks part by part, what is between marks as text."""
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    line = tokenizer.encode("\n", add_special_tokens=False)
    for first, last, as_text in stretches(text, tokenizer):
        # Behind a newline, which is taken off again, so that SentencePiece puts no space before a later part.
        for lead in ("\n", "") if first else ("",):
            encoding = tokenizer(
                lead + text[first:last],
                add_special_tokens=False,
                return_offsets_mapping=True,
                split_special_tokens=as_text,
                verbose=False,
            )
            num_skipped = len(line) if lead else 0
            if encoding["input_ids"][:num_skipped] == line[:num_skipped]:
                break
        ids += encoding["input_ids"][num_skipped:]
        shift = first - len(lead)
        spans += [(a + shift, b + shift) for a, b in encoding["offset_mapping"][num_skipped:]]
    return ids, spans


def _piecewise(segment: _Segment, tokenizer: Tokenizer, special: bool) -> Spans:
    """Tokenize spans to learn separately from the rest, for slow tokenizers, which report no offsets."""
    parts = stretches(segment.text, tokenizer) if special else [(0, len(segment.text), True)]
    edges = {edge for span in segment.learn_spans for edge in span}
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for start, stop, as_text in parts:
        cuts = sorted({start, stop, *(edge for edge in edges if start < edge < stop)})
        for first, last in pairwise(cuts):
            text = segment.text[first:last]
            tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=as_text)
            ids += tokens
            spans += [(first, last)] * len(tokens)
    return ids, spans


def begin_and_end_ids(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Return the ids that the tokenizer puts before every text, and the id of the end token."""
    assert tokenizer.eos_token_id is not None, "the loader of tokenizers refuses those without an end token"
    end = int(tokenizer.eos_token_id)
    with_special = tokenizer.encode("a", add_special_tokens=True)
    bare = tokenizer.encode("a", add_special_tokens=False)
    for start in range(len(with_special) - len(bare) + 1):
        if with_special[start : start + len(bare)] == bare:
            return list(with_special[:start]), end
    return [], end


def last_run(learn_mask: np.ndarray) -> tuple[int, int]:
    """Return the bounds of the last run of True in a mask (T,)."""
    places = np.flatnonzero(learn_mask)
    last = int(places[-1])
    breaks = np.flatnonzero(np.diff(places) > 1)
    first = int(places[breaks[-1] + 1]) if len(breaks) else int(places[0])
    return first, last + 1


def split_prompt(rows: Sequence[Row]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the ids that rows share before their answers, and the ids of each answer with its end."""
    length = min(last_run(learn_mask)[0] for _, learn_mask in rows)
    while any((tokens[:length] != rows[0][0][:length]).any() for tokens, _ in rows):
        length -= 1
    return rows[0][0][:length], [tokens[length : last_run(learn_mask)[1]] for tokens, learn_mask in rows]
