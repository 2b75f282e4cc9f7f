"""Prompts of evaluation tasks: a description, worked examples and a question, as one text or as turns of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.json_types import JsonObject


@dataclass(frozen=True)
class Shot:
    """A worked example: a question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """What a model is asked."""

    question: str
    description: str = ""
    shots: tuple[Shot, ...] = ()
    delimiter: str = " "
    """Between a question and its answer, in one text."""
    separator: str = "\n\n"
    """After a worked example, in one text."""
    system: str = ""
    """An instruction before everything."""

    @property
    def text(self) -> str:
        """The prompt as one text, for models that continue texts."""
        head = self.separator.join(part for part in (self.system, self.description) if part)
        shots = (f"{shot.question}{self.delimiter}{shot.answer}{self.separator}" for shot in self.shots)
        return head + "".join(shots) + self.question

    @property
    def messages(self) -> list[JsonObject]:
        """The prompt as turns: the description as the system's, worked examples as turns of both sides."""
        head = self.separator.join(part for part in (self.system, self.description) if part)
        turns: list[JsonObject] = [{"role": "system", "content": head}] if head else []
        for shot in self.shots:
            turns += [{"role": "user", "content": shot.question}, {"role": "assistant", "content": shot.answer}]
        return [*turns, {"role": "user", "content": self.question}]

    def conversation(self, more: Sequence[str]) -> list[JsonObject]:
        """The prompt as turns, and those after it: `more` holds the model's answers and the user's turns, in turn."""
        roles = ("assistant", "user")
        return [*self.messages, *({"role": roles[i % 2], "content": text} for i, text in enumerate(more))]
