"""Texts as tokens of a model, as lm-eval has it, so that log-probabilities are equal.

A prompt's trailing spaces belong to the choice, prompt and choice are split after being encoded together, and what is
too long loses its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from weft.core.libraries import Tokenizer
from weft.errors import ConfigError
from weft.tasks.prompts import Prompt

if TYPE_CHECKING:
    from weft.models.resident import Resident

CONTEXT = 2048
"""Context of a model that does not say its own."""


class Encoder:
    """Makes tokens of prompts, as texts or as turns in the tokenizer's chat template."""

    def __init__(self, tokenizer: Tokenizer, *, chat: bool) -> None:
        """Take a tokenizer; ConfigError if `chat` and it has no chat template."""
        self.tokenizer, self.chat = tokenizer, chat
        if chat and not tokenizer.chat_template:
            raise ConfigError(
                f"The tokenizer of '{tokenizer.name_or_path}' has no chat template: leave --apply_chat_template out, "
                "or name a model that was tuned on conversations."
            )
        first = tokenizer.bos_token_id
        self.prefix = int(first if first is not None else tokenizer.eos_token_id or 0)
        """The token before a text that has nothing before it."""

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the tokenizer adds, unless it has them already."""
        bos = self.tokenizer.decode([self.prefix])
        return self.tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))

    def prompt_text(self, prompt: Prompt, more: Sequence[str] = ()) -> str:
        """Return a prompt as the model's own text; `more`: the answers and turns after it, in turn."""
        if not self.chat:
            return prompt.text + "".join(more)
        turns = prompt.conversation(more)
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt and of what continues it; an empty prompt is the token that begins texts."""
        if not context:
            tokens = self.tokenizer.encode(continuation, add_special_tokens=False)
            return ([tokens[0]], tokens[1:]) if tokens and tokens[0] == self.prefix else ([self.prefix], tokens)
        spaces = len(context) - len(context.rstrip())
        if spaces:
            continuation, context = context[-spaces:] + continuation, context[:-spaces]
        whole, begin = self.ids(context + continuation), self.ids(context)
        return begin, whole[len(begin) :]


class Stop:
    """Tells whether the tokens of an answer hold a text that ends it."""

    def __init__(self, decode: Callable[..., str], until: Sequence[str]) -> None:
        self.decode, self.until = decode, [text for text in until if text]
        self._window = 4 + max((len(text.encode()) for text in self.until), default=0)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Return whether an end is among the last tokens; earlier ones were looked at before."""
        if not self.until:
            return False
        text = self.decode(list(tokens[-self._window :]), skip_special_tokens=True)
        return any(end in text for end in self.until)


def until_first(text: str, until: Sequence[str]) -> str:
    """Return a text up to the first of the texts that end it."""
    for end in until:
        if end:
            text = text.partition(end)[0]
    return text


def windows(ids: Sequence[int], prefix: int, longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (context, targets): each id is a target once, with as much context as fits into `longest` positions."""
    if not ids:
        return
    first = list(ids[:longest])
    yield [prefix], first
    at = len(first)
    while at < len(ids):
        targets = list(ids[at : at + longest])
        at += len(targets)
        # A window of `longest` positions reads `longest` ids before its last target.
        begin = at - longest - 1
        yield list(ids[begin : at - len(targets)]), targets


def context_of(model: Resident) -> int:
    """Return the number of positions of a model's context."""
    config = model.base.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return CONTEXT
