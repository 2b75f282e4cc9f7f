"""Turns of conversations, read from cells, messages, lists of messages and transcripts.

A value that cannot be read raises `Unusable` with the reason, under which its row is left out and counted.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weft.data.rows import NO_SIGN, printable
from weft.json_types import JsonObject

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai", "assistant_response"), "assistant"
    ),
}
TOOLS = frozenset(
    "tool function ipython observation environment tool_call tool_response function_call function_response".split()
)
"""Roles of tool calls and results; templates differ in how they write them, so such turns are not read."""
ROLE_KEYS = ("role", "from", "speaker")
TEXT_KEYS = ("content", "value", "text")
SPEAKER_MARKS = (
    re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?"),
    re.compile(r"\s*### (Human|User|Assistant|System): ?"),
)
"""The marks of transcripts: HH-RLHF's, and those of Guanaco."""


class Unusable(Exception):
    """A row is left out; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The text of one speaker; `role` is system, user or assistant."""

    role: str
    text: str


def is_missing(value: object) -> bool:
    """Return whether a cell is null, or NaN, which pandas writes for null."""
    return value is None or (isinstance(value, float) and value != value)


def cell_text(value: object, name: str) -> str:
    """Return the text of a cell.

    Args:
        value: of the cell; numbers, truth values and dates are written as text.
        name: the role of the cell, for the reason.

    Raises:
        Unusable: it is empty, or no text.
    """
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise Unusable(f"empty {name}")
    if isinstance(value, (bytes, bytearray)):
        raise Unusable(f"{name} of bytes, not text")
    if isinstance(value, (list, tuple, dict)):
        raise Unusable(f"{name} that is no text" if value else f"empty {name}")
    text = str(value)
    if not text.isascii() and NO_SIGN.search(text):
        raise Unusable("half a character, such as of an emoji that was cut")
    return text


def strip_separator(text: str) -> str:
    """Return an answer without the one space that data sets put between a prompt and it; templates write their own."""
    return text[1:] if text[:1] == " " and text[1:2] != " " else text


def parse_literal(value: object) -> object:
    """Return the list or dict that a text encodes as JSON, or as Python, which pandas writes; else the value."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            literal = parse(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return literal if isinstance(literal, (list, tuple, dict)) else value
    return value


def messages_in(value: object) -> list[object] | None:
    """Return the messages of a cell, which may encode them as text; None if it holds something else."""
    content = parse_literal(value)
    if isinstance(content, dict):  # a table by columns, as `datasets` gives sequences of dicts
        columns = [column for column in content.values() if isinstance(column, list)]
        if content and len(columns) == len(content) and any(key in content for key in ROLE_KEYS):
            return [dict(zip(content, cells, strict=True)) for cells in zip(*columns, strict=False)]
        return None
    if not isinstance(content, (list, tuple)):
        return None
    # A text that spells a list of something else, such as "[1, 2]", is a text.
    if isinstance(value, str) and not any(
        isinstance(message, dict) and any(key in message for key in ROLE_KEYS) for message in content
    ):
        return None
    return list(content)


def turn_of(message: object, unread: set[str] | None = None) -> Turn | None:
    """Return the turn of a message; None for a system turn that is empty.

    Args:
        message: a dict with a role and a content, as text or in parts of text.
        unread: receives the keys of the message that are not read.

    Raises:
        Unusable: it is no message, is empty, is of an unknown role or of a tool, or has a part that is no text.
    """
    if not isinstance(message, dict):
        raise Unusable("malformed message")
    speaker = next((message[key] for key in ROLE_KEYS if message.get(key) is not None), None)
    if speaker is None:
        raise Unusable("message without a role")
    name = str(speaker).strip().lower()
    if name in TOOLS:
        raise Unusable("turn of a tool")
    if message.get("tool_calls") or message.get("function_call"):
        raise Unusable("turn with tool calls")
    role = ROLES.get(name)
    if role is None:
        raise Unusable(f"unknown role '{printable(name, 40)}' in a conversation")
    value = next((message[key] for key in TEXT_KEYS if not is_missing(message.get(key))), None)
    if unread is not None:
        unread.update(
            key for key, cell in message.items() if key not in _READ_KEYS and not is_missing(cell) and cell != []
        )
    text = _parts(value) if isinstance(value, (list, tuple, dict)) else value
    if role == "system" and (is_missing(text) or text == ""):
        return None
    content = cell_text(text, f"turn of the {role}")
    return Turn(role, strip_separator(content) if role == "assistant" else content)


_READ_KEYS = frozenset((*ROLE_KEYS, *TEXT_KEYS, "tool_calls", "function_call"))


def _parts(value: Iterable[object] | JsonObject) -> str:
    """Return the text of a content in parts, concatenated as chat templates do it."""
    texts = []
    for part in [value] if isinstance(value, dict) else value:
        if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
            texts.append(part["text"])
        elif isinstance(part, str):
            texts.append(part)
        else:
            kind = printable(part.get("type", "unknown"), 40) if isinstance(part, dict) else type(part).__name__
            raise Unusable(f"turn with a part that is no text ({kind})")
    return "".join(texts)


def dialogue(value: object, unread: set[str] | None = None) -> list[Turn]:
    """Return the turns of a list of messages, of a list of alternating texts, or of a transcript.

    Raises:
        Unusable: it is none of these, or a message cannot be read.
    """
    if is_missing(value) or (isinstance(value, (list, tuple, dict, str)) and not value):
        raise Unusable("no messages")
    messages = messages_in(value)
    if messages is None:
        turns = transcript(value) if isinstance(value, str) else None
        if turns is None:
            raise Unusable("conversation that is no list of messages")
        return turns
    if not messages:
        raise Unusable("no messages")
    if len(messages) > 1 and all(isinstance(message, str) for message in messages):  # UltraChat: one after the other
        return [
            Turn(
                role,
                strip_separator(cell_text(text, f"turn of the {role}"))
                if number % 2
                else cell_text(text, f"turn of the {role}"),
            )
            for number, text in enumerate(messages)
            for role in [("user", "assistant")[number % 2]]
        ]
    return [turn for message in messages if (turn := turn_of(message, unread)) is not None]


def transcript(text: str, kinds: Sequence[re.Pattern[str]] = SPEAKER_MARKS) -> list[Turn] | None:
    """Return the turns of a text with speakers' marks; None if it does not begin with a mark."""
    for marks in kinds:
        parts = marks.split(text)
        if len(parts) >= 3 and not parts[0].strip():
            turns = []
            for speaker, spoken in zip(parts[1::2], parts[2::2], strict=True):
                if NO_SIGN.search(spoken):
                    raise Unusable("half a character, such as of an emoji that was cut")
                turns.append(Turn(ROLES[speaker.lower()], spoken))
            return turns
    return None


def conversation(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], bool]:
    """Return the turns up to the last answer, and whether turns after it were left out.

    Raises:
        Unusable: there is no answer, or nothing before it.
    """
    prefix = list(turns)
    while prefix and prefix[-1].role != "assistant":
        prefix.pop()
    roles = [turn.role for turn in prefix if turn.role != "system"]
    if not roles:
        raise Unusable("conversation without an answer")
    if roles[0] == "assistant":
        raise Unusable("conversation that begins with an answer")
    if empty := next((turn.role for turn in prefix if not turn.text.strip()), None):
        raise Unusable(f"empty turn of the {empty}")
    return tuple(prefix), len(prefix) < len(turns)
