"""What an OpenAI-compatible server answers: texts with what they cost, and log-probabilities of texts."""

from __future__ import annotations

import math
from typing import NamedTuple

from weft.json_types import JsonObject

MOST_TOKENS = 1 << 40
LEAST_BYTES, MOST_BYTES = 4 << 20, 64 << 20
"""Bytes of an answer that are read whatever was asked, such as a list of models, and bytes of the longest answer."""
BYTES_OF_TOKEN, BYTES_OF_ECHO = 1 << 10, 1 << 8
"""Bytes of an answer for each token that it may have, and for each byte of a request whose tokens are to be scored: a
token with its log-probability, its place and the likeliest one takes some 100 to 200."""
TOKENS_UNASKED = 1 << 14
"""Tokens of a reply of which a request says no longest length."""
LONGEST_FINISH = 50
"""Characters of the word that says why a reply ended."""


def most_bytes(request: JsonObject, size: int) -> int:
    """Return the bytes of the longest answer that is read, by what a request of `size` bytes asks for.

    A server is not trusted to stop, and JSON takes up to thirty times its bytes in memory, for each request in flight.
    """
    given = [value for name in ("max_tokens", "max_completion_tokens") if isinstance(value := request.get(name), int)]
    count = request.get("n")
    tokens = max(given, default=TOKENS_UNASKED) * (count if isinstance(count, int) else 1)
    asked = BYTES_OF_TOKEN * tokens + (BYTES_OF_ECHO * size if request.get("echo") else 0)
    return min(MOST_BYTES, LEAST_BYTES + asked)


class Reply(NamedTuple):
    """An answer in a chat, and what it cost."""

    text: str
    prompt_tokens: int | None
    """As the server counts them; None: it does not."""
    completion_tokens: int | None
    finish: str
    """stop, length, content_filter, ..., as the server says; "" if it does not."""


class ScoredText(NamedTuple):
    """A text, and the spans of it (first character, end) whose log-probability is asked for."""

    text: str
    spans: tuple[tuple[int, int], ...]


class NoLogprobs(Exception):
    """A server's answer holds no log-probabilities of the text that it was sent."""


def usage(answer: JsonObject) -> tuple[int | None, int | None]:
    """Return the tokens of the prompt and of the reply, as the server counts them."""
    counts = answer.get("usage")
    counts = counts if isinstance(counts, dict) else {}
    prompt, completion = (counts.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return _count(prompt), _count(completion)


def _count(value: object) -> int | None:
    """Return a number of tokens; None for what cannot be one, such as a truth, a negative or an endless number."""
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def reply_of(answer: JsonObject, text: object) -> Reply:
    """Return the first choice of an answer, whose text is given, with what it cost."""
    choice = answer["choices"][0]
    finish = choice.get("finish_reason") if isinstance(choice, dict) else None
    return Reply(text if isinstance(text, str) else "", *usage(answer), str(finish or "")[:LONGEST_FINISH])


def span_score(text: ScoredText, logprobs: JsonObject) -> tuple[float, int]:
    """Return the sum of the log-probabilities (nats) of the tokens that begin in a text's spans, and their number.

    Raises:
        NoLogprobs: there are none, or one is no number.
    """
    values, tokens = logprobs.get("token_logprobs"), logprobs.get("tokens") or []
    if not values or len(values) < 2:
        raise NoLogprobs
    places = logprobs.get("text_offset")
    if not places:  # not every server returns offsets: count the characters of the tokens
        places, at = [], 0
        for token in tokens:
            places.append(at)
            at += len(token)
    first = tokens[0].strip() if tokens and isinstance(tokens[0], str) else ""
    # A token that the server puts before the text, such as <s>, is none of it, though its letters may be counted.
    added = values[0] is None and bool(first) and not text.text.lstrip().startswith(first)
    before = int(places[1]) if added else 0
    total, count = 0.0, 0
    for place, value in zip(places, values, strict=False):
        if value is not None and any(begin <= place - before < end for begin, end in text.spans):
            total, count = total + float(value), count + 1
    if not math.isfinite(total):
        raise NoLogprobs
    return total, count
