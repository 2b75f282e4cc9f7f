"""Templates: how a conversation is written for a model, and which parts of it are learnt.

A template renders an example as pieces of text that say of themselves whether they are learnt, so the loss knows
the answers from the rendering and never searches for a response string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from weft.core.libraries import Tokenizer
from weft.data.formats import Example, Turn
from weft.data.marks import add_marks, remove_marks
from weft.data.rows import printable
from weft.errors import ConfigError, DataError

OPENS = re.compile(r"(<[a-z_|]*(?:think|thought|reason)[a-z_|]*>)\s*\Z")
"""The opening of a thought, at the end of a generation prompt."""
SYSTEM_MOVED = "the chat template has no place for system turns: their text is put before the first turn of the user."
EMPTY_THOUGHT = (
    "the chat template opens a thought before answers: answers without a thought are learnt after an empty one."
)
EARLIER_ANSWERS = (
    "the chat template writes earlier answers differently than after its own prompt: only the last is learnt."
)


CLOCK = "strftime_now"
"""The function by which a chat template reads the time."""


def _stop_clock(template: str, day: str) -> None:
    """Make a template write this day (YYYY-MM-DD) whenever it is rendered.

    transformers turns functions passed as template variables into text, so its own function is replaced instead.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    _compile_jinja_template(template).environment.globals[CLOCK] = datetime.fromisoformat(day).strftime


class RoleRefused(DataError):
    """A template refuses a conversation; the message is the reason, without a remedy."""


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

    def pieces(self, example: Example, tokenizer: Tokenizer) -> list[Piece]:
        """Return the rendered example; every turn of the assistant is learnt."""
        pieces: list[Piece] = []
        text = self._preamble(example.turns)
        for turn in example.turns:
            if turn.role == "user":
                text += (self.between if pieces else "") + self.question + turn.text
            elif turn.role == "assistant":
                gap = "" if turn.text.startswith(" ") else " "
                pieces += [Piece(text + self.answer, False), Piece(gap + turn.text, True, end=True)]
                text = ""
        return pieces

    def prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> str:
        """Return the prompt for an answer to the last turn; the answer begins with a space.

        Earlier answers are followed by the end token's text.
        """
        closed_turns = [
            Turn(t.role, t.text + (tokenizer.eos_token or "")) if t.role == "assistant" else t for t in turns
        ]
        return "".join(
            piece.text for piece in self.pieces(Example((*closed_turns, Turn("assistant", ""))), tokenizer)[:-1]
        )

    def _preamble(self, turns: Sequence[Turn]) -> str:
        """Return the preamble, or the conversation's own system turn in its place."""
        system = " ".join(turn.text for turn in turns if turn.role == "system")
        gap = self.preamble[len(self.preamble.rstrip()) :]
        return system + gap if system else self.preamble


@dataclass(frozen=True)
class PlainTemplate(Template):
    """Text as it is, all of it learnt."""

    def pieces(self, example: Example, tokenizer: Tokenizer) -> list[Piece]:
        """Return the text and its end."""
        return [Piece(example.answer, True, end=True)]

    def prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> str:
        """Return the last text, to be continued."""
        return turns[-1].text


@dataclass(frozen=True)
class ChatTemplate(Template):
    """The tokenizer's own chat template. An answer is what it adds after the generation prompt."""

    date: str = ""
    """The day (YYYY-MM-DD) that a template with a clock writes; without one it writes the time of rendering."""
    notes: dict[str, None] = field(default_factory=dict, compare=False, repr=False)
    """Notes for the user on how conversations were rendered; keys of an ordered set."""

    def pieces(self, example: Example, tokenizer: Tokenizer) -> list[Piece]:
        """Return the rendered conversation, answers learnt with the end that the template gives them.

        Raises:
            ConfigError: the tokenizer has no chat template.
            RoleRefused: the template refuses the conversation, or does not render an answer after its own prompt.
        """
        turns, whole = self._place_system_turns(example.turns, tokenizer)
        spans: list[tuple[int, int]] = []
        for at, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            start = self._render(turns[:at], tokenizer, True)
            at_end = at == len(turns) - 1
            through_answer = whole if at_end else self._render(turns[: at + 1], tokenizer, False)
            # An answer is a span of the rendered whole only if both renderings are prefixes of it; templates may
            # drop earlier thoughts, for example.
            if whole.startswith(start) and whole.startswith(through_answer):
                spans.append((len(start), len(through_answer)))
            elif at_end:
                whole = start + self._behind_thought(start, whole, add_marks(turn.text, tokenizer))
                spans.append((len(start), len(whole)))
            else:
                self.notes[EARLIER_ANSWERS] = None
        pieces: list[Piece] = []
        at = 0
        for first, last in spans:
            pieces += [Piece(whole[at:first], False), Piece(whole[first:last], True)]
            at = last
        return [piece for piece in (*pieces, Piece(whole[at:], False)) if piece.text]

    def prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> str:
        """Return the conversation up to the next answer."""
        return remove_marks(self._render(turns, tokenizer, True))

    def _behind_thought(self, start: str, whole: str, text: str) -> str:
        """Return an answer with its end as it continues a generation prompt that opens a thought.

        Args:
            start: the conversation up to the generation prompt, which is included.
            whole: the conversation as the template writes it, perhaps without thoughts.
            text: what the assistant says.
        """
        opening = OPENS.search(start)
        if opening is None or not whole.startswith(start[: opening.start()]):
            raise RoleRefused(
                "the chat template writes an answer differently than after its own generation prompt, so that answers "
                "cannot be located"
            )
        tag = opening.group(1)
        close = tag.replace("<", "</", 1)
        answer = text.rpartition(close)[2].strip()
        at = whole.rfind(answer, opening.start())
        if not answer or at < 0:
            raise RoleRefused("the chat template omits the text of an answer after its thought")
        if text.lstrip().startswith(tag):
            text = text.lstrip()[len(tag) :].lstrip("\n")
        elif close not in text:
            text = f"\n{close}\n\n{text}"
            self.notes[EMPTY_THOUGHT] = None
        return text.rstrip() + whole[at + len(answer) :]

    def _place_system_turns(self, turns: tuple[Turn, ...], tokenizer: Tokenizer) -> tuple[tuple[Turn, ...], str]:
        """Return the turns in a form that the template accepts, and the rendered conversation.

        If the template refuses or ignores system turns, their text is put before the first turn of the user.
        """
        system = [turn.text for turn in turns if turn.role == "system"]
        others = [turn for turn in turns if turn.role != "system"]
        try:
            whole = self._render(turns, tokenizer, False)
            if not system or whole != self._render(others, tokenizer, False):
                return turns, whole
        except RoleRefused:
            if not system:
                raise
        at = next((at for at, turn in enumerate(others) if turn.role == "user"), 0)
        others[at] = Turn(others[at].role, "\n\n".join([*system, others[at].text]))
        whole = self._render(others, tokenizer, False)
        self.notes[SYSTEM_MOVED] = None
        return tuple(others), whole

    def _render(self, turns: Sequence[Turn], tokenizer: Tokenizer, ask: bool) -> str:
        if not tokenizer.chat_template:
            raise ConfigError("The tokenizer has no chat template: write --template alpaca or --template vicuna.")
        messages = [{"role": turn.role, "content": add_marks(turn.text, tokenizer)} for turn in turns]
        try:
            if self.date and CLOCK in str(tokenizer.chat_template):
                _stop_clock(tokenizer.get_chat_template(), self.date)
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # templates are code: they raise jinja2's and any other error
            reason = printable(str(error), 200).rstrip(".") or type(error).__name__
            raise RoleRefused(f"the chat template refuses the conversation: {reason}") from None
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
