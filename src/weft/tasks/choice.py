"""Scorer of questions with given choices: the likeliest one is the answer, and nothing is generated or parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from weft.errors import DataError
from weft.json_types import JsonObject
from weft.tasks.expressions import evaluate
from weft.tasks.requests import ChoiceLogps, Choices, Item, Record, Reply
from weft.tasks.scorer import Expression, Measures, Scorer, f1_values, label_measures


class Choice(Scorer):
    """The choice with the greatest log-probability, by its sum and for each byte."""

    main: ClassVar[str] = "accuracy"
    expressions: ClassVar[tuple[str, ...]] = ("choices", "answer")

    choices: list[str] | Expression
    """The same for all rows, or an expression over a row."""
    answer: Expression
    """Number of the right choice, its letter where the choices are letters, or its text."""
    delimiter: str = " "

    def choices_of(self, row: JsonObject) -> tuple[str, ...]:
        """Return the choices of a row."""
        values = self.choices if isinstance(self.choices, list) else evaluate(self.choices, row)
        if not isinstance(values, (list, tuple)) or len(values) < 2:
            raise DataError(f"'choices' gives {values!r}, and a question has two or more choices.")
        return tuple(map(str, values))

    def right_of(self, row: JsonObject, choices: Sequence[str]) -> int:
        """Return the number of the right choice of a row."""
        value = evaluate(self.answer, row)
        if isinstance(value, str):
            if value in choices:
                return choices.index(value)
            value = int(value) if value.strip().isdecimal() else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(choices):
            raise DataError(f"'answer' gives {value!r}, and the choices are {', '.join(choices)}.")
        return value

    def answer_text(self, row: JsonObject) -> str:
        """Return the right choice."""
        choices = self.choices_of(row)
        return choices[self.right_of(row, choices)]

    def notes(self, item: Item) -> JsonObject:
        """Return the right choice."""
        return {"right": self.answer_text(item.row)}

    def request(self, item: Item) -> Choices:
        """Ask for the log-probabilities of all choices."""
        return Choices(item.prompt, self.choices_of(item.row), self.delimiter)

    def scores(self, item: Item, reply: Reply) -> Mapping[str, float]:
        """Return whether the likeliest choice is right, by its sum and for each byte of its text."""
        assert isinstance(reply, ChoiceLogps)
        choices = self.choices_of(item.row)
        right = self.right_of(item.row, choices)
        given = _likeliest(reply.logps)
        norms = [logp / max(1, len(text.encode())) for logp, text in zip(reply.logps, choices, strict=True)]
        return {
            "accuracy": float(given == right),
            "accuracy_norm": float(_likeliest(norms) == right),
            "right": float(right),
            "given": float(given),
        }

    def perfect(self, item: Item) -> ChoiceLogps:
        """Return a reply by which the right choice alone is likely."""
        choices = self.choices_of(item.row)
        right = self.right_of(item.row, choices)
        logps = tuple(-1.0 if number == right else -1e4 for number in range(len(choices)))
        return ChoiceLogps(logps, tuple(1 for _ in choices))

    def measures(self, records: Sequence[Record]) -> Measures:
        """Return accuracies; macro-F1 and the most common label where all rows have the same choices."""
        result = super().measures(records)
        if isinstance(self.choices, list):
            result |= label_measures(records)
        return result

    def values(self, records: Sequence[Record]) -> dict[str, dict[int, float]]:
        """Return those of the accuracies, and of macro-F1 where all rows have the same choices."""
        result = super().values(records)
        return result | {"macro_f1": f1_values(records)} if isinstance(self.choices, list) else result


def _likeliest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
