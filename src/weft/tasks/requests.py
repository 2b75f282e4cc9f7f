"""What an evaluation asks a model, what it replies, and what is written down of an item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from weft.json_types import JsonObject
from weft.tasks.prompts import Prompt


@dataclass(frozen=True)
class Item:
    """One row of a task, as it is asked."""

    number: int
    """Its place among the rows of the task."""
    row: JsonObject
    prompt: Prompt
    group: str = ""
    """The part of the task that it belongs to, such as a subject."""
    cluster: str = ""
    """Items with the same text are not independent, such as questions on one document."""


@dataclass(frozen=True)
class Choices:
    """Asks for the log-probability of every choice after the prompt."""

    prompt: Prompt
    choices: tuple[str, ...]
    delimiter: str = " "


@dataclass(frozen=True)
class Writing:
    """Asks for texts."""

    prompt: Prompt
    until: tuple[str, ...] = ()
    """A text ends before the first of these."""
    max_tokens: int = 256
    temperature: float = 0.0
    samples: int = 1
    turns: tuple[str, ...] = ()
    """What the user says after each answer, in one conversation."""


@dataclass(frozen=True)
class Text:
    """Asks for the log-probability of a whole text."""

    text: str


Request = Choices | Writing | Text


@dataclass(frozen=True)
class ChoiceLogps:
    """The reply to `Choices`."""

    logps: tuple[float, ...]
    """Nats, the sum over each choice's tokens."""
    tokens: tuple[int, ...]
    cut: bool = False
    """The beginning of the prompt was cut off, because it was longer than the model's context."""
    reference: tuple[float, ...] = ()
    """Nats, of a reference model; empty: there is none."""


@dataclass(frozen=True)
class Texts:
    """The reply to `Writing`."""

    samples: tuple[tuple[str, ...], ...]
    """Of every sample the texts of all turns."""
    ended: bool = True
    """Every text came to an end by itself."""
    cut: bool = False
    refused: bool = False
    """The endpoint refused to write a text, which is empty."""

    @property
    def first(self) -> str:
        """The first turn of the first sample."""
        return self.samples[0][0]


@dataclass(frozen=True)
class TextLogp:
    """The reply to `Text`."""

    logp: float
    """Nats."""
    tokens: int
    windows: int = 1
    """Pieces in which the text was read, because it was longer than the model's context."""


Reply = ChoiceLogps | Texts | TextLogp


@dataclass(frozen=True)
class Record:
    """What is written down of one item."""

    number: int
    group: str
    cluster: str
    scores: dict[str, float]
    reply: JsonObject
    notes: JsonObject = field(default_factory=dict)
    row: str = ""
    """Digest of the row, by which records of two models are known to be of the same item."""

    def as_json(self) -> JsonObject:
        """Return the record as plain data, without what is empty."""
        result: JsonObject = {"item": self.number, "group": self.group, "cluster": self.cluster, "row": self.row}
        result = {key: value for key, value in result.items() if value != ""} | {"scores": self.scores}
        return result | {"reply": self.reply} | ({"notes": self.notes} if self.notes else {})

    @classmethod
    def of(cls, data: JsonObject) -> Record:
        """Return the record of plain data."""
        group, cluster = (str(data.get(key, "")) for key in ("group", "cluster"))
        scores = {str(key): float(value) for key, value in data["scores"].items()}
        return cls(int(data["item"]), group, cluster, scores, data["reply"], data.get("notes", {}), data.get("row", ""))


class EvaluatedModel(ABC):
    """A model that tasks are put to: here, or behind an API."""

    chunk: ClassVar[int] = 256
    """Items between two writes of records."""

    @abstractmethod
    def score_choices(self, requests: Sequence[Choices]) -> list[ChoiceLogps]:
        """Return the log-probabilities of choices, in the order of the requests."""

    @abstractmethod
    def write(self, requests: Sequence[Writing], seed: int) -> list[Texts]:
        """Return texts, in the order of the requests."""

    @abstractmethod
    def score_texts(self, requests: Sequence[Text]) -> list[TextLogp]:
        """Return the log-probabilities of texts, in the order of the requests."""

    def reply(self, requests: Sequence[Request], seed: int) -> list[Reply]:
        """Return the replies to requests of one kind, in their order."""
        first = requests[0]
        if isinstance(first, Choices):
            return list(self.score_choices([request for request in requests if isinstance(request, Choices)]))
        if isinstance(first, Writing):
            return list(self.write([request for request in requests if isinstance(request, Writing)], seed))
        return list(self.score_texts([request for request in requests if isinstance(request, Text)]))


class WithReference(EvaluatedModel):
    """A model whose log-probabilities of choices stand beside those of a reference model."""

    def __init__(self, model: EvaluatedModel, reference: EvaluatedModel) -> None:
        self.model, self.reference = model, reference

    def score_choices(self, requests: Sequence[Choices]) -> list[ChoiceLogps]:
        """Return what both models reply."""
        pairs = zip(self.model.score_choices(requests), self.reference.score_choices(requests), strict=True)
        return [replace(own, cut=own.cut or other.cut, reference=other.logps) for own, other in pairs]

    def write(self, requests: Sequence[Writing], seed: int) -> list[Texts]:
        """Return what the model alone replies."""
        return self.model.write(requests, seed)

    def score_texts(self, requests: Sequence[Text]) -> list[TextLogp]:
        """Return what the model alone replies."""
        return self.model.score_texts(requests)
