"""Templates: how a conversation is written for a model, and which parts of it are learnt.

A template renders an example as pieces of text that say of themselves whether they are learnt, so the loss knows
the answers from the rendering and never searches for a response string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weft.data.formats import Example, Turn
from weft.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered example. With `end`, the end token follows and is learnt as the piece is."""

    text: str
    learn: bool
    end: bool = False


@dataclass(frozen=True)
class Template:
    """Questions and answers between fixed texts."""

    name: str
    preamble: str
    question: str
    """Before a question."""
    answer: str
    """Between a question and its answer, which begins with a space."""
    between: str
    """Between an answer's end token and the next question."""
    special: bool = False
    """The text holds special tokens by name, as chat templates do."""

    def pieces(self, example: Example, tokenizer: Any) -> list[Piece]:
        """Return the rendered example; every turn of the assistant is learnt."""
        made: list[Piece] = []
        text = self._preamble(example.turns)
        for turn in example.turns:
            if turn.role == "user":
                text += (self.between if made else "") + self.question + turn.text
            elif turn.role == "assistant":
                made += [Piece(text + self.answer, False), Piece(" " + turn.text, True, end=True)]
                text = ""
        return made

    def prompt(self, turns: Sequence[Turn], tokenizer: Any) -> str:
        """Return what a model is given to answer the last turn; the answer begins with a space.

        Earlier answers are followed by the end token's text.
        """
        ended = [Turn(t.role, t.text + tokenizer.eos_token) if t.role == "assistant" else t for t in turns]
        return "".join(piece.text for piece in self.pieces(Example((*ended, Turn("assistant", ""))), tokenizer)[:-1])

    def _preamble(self, turns: Sequence[Turn]) -> str:
        """Return the preamble, or the conversation's own system turn in its place."""
        system = " ".join(turn.text for turn in turns if turn.role == "system")
        gap = self.preamble[len(self.preamble.rstrip()) :]
        return system + gap if system else self.preamble


@dataclass(frozen=True)
class PlainTemplate(Template):
    """Text as it is, all of it learnt."""

    def pieces(self, example: Example, tokenizer: Any) -> list[Piece]:
        """Return the text and its end."""
        return [Piece(example.answer, True, end=True)]

    def prompt(self, turns: Sequence[Turn], tokenizer: Any) -> str:
        """Return the last text, to be continued."""
        return turns[-1].text


@dataclass(frozen=True)
class ChatTemplate(Template):
    """The tokenizer's own chat template. An answer is what it adds after the generation prompt."""

    def pieces(self, example: Example, tokenizer: Any) -> list[Piece]:
        """Return the rendered conversation, answers learnt with the end that the template gives them.

        Raises:
            ConfigError: the tokenizer has no chat template.
            DataError: the template does not render an answer after its own prompt.
        """
        turns = example.turns
        whole = self._render(turns, tokenizer, False)
        spans: list[tuple[int, int]] = []
        for at, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            start, said = self._render(turns[:at], tokenizer, True), self._render(turns[: at + 1], tokenizer, False)
            if whole.startswith(start) and whole.startswith(said):
                spans.append((len(start), len(said)))
            elif at == len(turns) - 1:
                raise DataError(
                    "The tokenizer's chat template writes an answer differently than after its own generation prompt, "
                    "so answers cannot be told apart: write --template alpaca or vicuna."
                )
        made: list[Piece] = []
        at = 0
        for first, last in spans:
            made += [Piece(whole[at:first], False), Piece(whole[first:last], True)]
            at = last
        return [piece for piece in (*made, Piece(whole[at:], False)) if piece.text]

    def prompt(self, turns: Sequence[Turn], tokenizer: Any) -> str:
        """Return the conversation up to the next answer."""
        return self._render(turns, tokenizer, True)

    def _render(self, turns: Sequence[Turn], tokenizer: Any, ask: bool) -> str:
        if not tokenizer.chat_template:
            raise ConfigError("The tokenizer has no chat template: write --template alpaca or --template vicuna.")
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # whatever a template in Jinja raises, jinja2's own errors included
            raise DataError(f"The chat template refuses a conversation ({error}): write another --template.") from None
        return text


ALPACA = Template(
    name="alpaca",
    preamble="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
    question="### Instruction:\n",
    answer=" \n\n### Response:",
    between="\n\n",
)
VICUNA = Template(
    name="vicuna",
    preamble="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    question="USER: ",
    answer=" ASSISTANT:",
    between="",
)
CHAT = ChatTemplate("chat", "", "", "", "", special=True)
PLAIN = PlainTemplate("plain", "", "", "", "")
