"""Scorer of answers that are generated: exact match, numbers, mathematics, spans, words, labels and BLEU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from weft.errors import DataError, MissingExtra
from weft.json_types import JsonObject
from weft.tasks import math_answers, spans
from weft.tasks.answers import Reading, normalise, number_of, plain, read_label, word_f1
from weft.tasks.expressions import evaluate
from weft.tasks.requests import Item, Record, Reply, Texts, Writing
from weft.tasks.scorer import Expression, Measures, Scorer, f1_values, label_measures
from weft.tasks.statistics import Measure

MAIN = {"labels": "accuracy", "bleu": "bleu"}
"""The metrics of comparisons that have another one than exact match."""


class Generate(Scorer):
    """Reads an answer out of the text that the model writes, and compares it with the right one."""

    main: ClassVar[str] = "exact_match"
    expressions: ClassVar[tuple[str, ...]] = ("answer",)

    answer: Expression
    """The right answer, or a list of texts each of which is right; of `spans`, a list of lists."""
    compare: Literal["exact", "number", "math", "spans", "words", "labels", "bleu"] = "exact"
    readings: dict[str, Reading] = Field(default_factory=lambda: {"": Reading()})
    """By the suffix of their metrics; the first one is the task's."""
    labels: tuple[str, ...] = ()
    other_words: dict[str, str] = Field(default_factory=dict)
    """Of `labels`: further words that mean a label."""
    ignore: tuple[str, ...] = ()
    """Patterns that are removed from both sides before they are compared."""
    ignore_case: bool = False
    until: tuple[str, ...] = ()
    max_tokens: int = 256

    @property
    def main_metric(self) -> str:
        """Accuracy of labels, BLEU, else exact match by the first reading."""
        suffix = next(iter(self.readings), "")
        return MAIN.get(self.compare) or "exact_match" + (f"_{suffix}" if suffix else "")

    def notes(self, item: Item) -> JsonObject:
        """Return the right answers."""
        return {"right": self.rights(item.row)}

    def rights(self, row: JsonObject) -> list[Any]:
        """Return the right answers of a row."""
        value = evaluate(self.answer, row)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise DataError(f"'{self.answer}' gives no right answer.")
        return values if self.compare == "spans" else [str(one) for one in values]

    def label_of(self, row: JsonObject) -> int:
        """Return the number of a row's right label."""
        value = self.rights(row)[0]
        if value in self.labels:
            return self.labels.index(value)
        if value.isdecimal() and int(value) < len(self.labels):
            return int(value)
        raise DataError(f"'answer' gives {value!r}, and the labels are {', '.join(self.labels)}.")

    def answer_text(self, row: JsonObject) -> str:
        """Return the first right answer."""
        if self.compare == "labels":
            return self.labels[self.label_of(row)]
        first = self.rights(row)[0]
        return ", ".join(map(str, first)) if isinstance(first, (list, tuple)) else str(first)

    def request(self, item: Item) -> Writing:
        """Ask for an answer, greedily."""
        return Writing(item.prompt, self.until, self.max_tokens)

    def scores(self, item: Item, reply: Reply) -> Mapping[str, float]:
        """Return the item's numbers for every reading."""
        assert isinstance(reply, Texts)
        if self.compare == "labels":
            given = read_label(reply.first, self.labels, self.other_words)
            right = self.label_of(item.row)
            return {
                "accuracy": float(given == right),
                "unparsable": float(given < 0),
                "right": float(right),
                "given": float(given),
            }
        if self.compare == "bleu":
            return {"exact_match": float(reply.first.strip() in [text.strip() for text in self.rights(item.row)])}
        result: dict[str, float] = {}
        for suffix, reading in self.readings.items():
            answer = reading.read(reply.first)
            tail = f"_{suffix}" if suffix else ""
            result |= {name + tail: value for name, value in self._compared(answer, item.row).items()}
            result["unparsable" + tail] = float(answer is None)
        return result

    def _compared(self, answer: str | None, row: JsonObject) -> dict[str, float]:
        rights = self.rights(row)
        if self.compare == "spans":
            match, overlap = spans.score(answer or "", rights)
            return {"exact_match": match, "f1": overlap}
        if answer is None:
            return {"exact_match": 0.0} | ({"f1": 0.0} if self.compare == "words" else {})
        if self.compare == "words":
            matches = max(float(normalise(answer) == normalise(right)) for right in rights)
            return {"exact_match": matches, "f1": max(word_f1(answer, right) for right in rights)}
        return {"exact_match": max(float(self._equal(answer, right)) for right in rights)}

    def _equal(self, answer: str, right: str) -> bool:
        if self.compare == "math":
            return math_answers.same(answer, right)
        given, expected = (plain(text, self.ignore, self.ignore_case) for text in (answer, right))
        if self.compare == "number":
            numbers = number_of(given), number_of(expected)
            if None not in numbers:
                return numbers[0] == numbers[1]
        return given.strip() == expected.strip()

    def perfect(self, item: Item) -> Texts:
        """Return the right answer as the first reading finds it."""
        text = self.answer_text(item.row)
        if self.compare == "math":
            text = f"${text}$"
        return Texts(((text,),))

    def measures(self, records: Sequence[Record]) -> Measures:
        """Return the means; macro-F1 and the most common label of labels; BLEU over all texts."""
        result = super().measures(records)
        if self.compare == "labels":
            result |= label_measures(records)
        if self.compare == "bleu":
            result = {"bleu": Measure(corpus_bleu(records), None, len(records), len(records))} | result
        return result

    def values(self, records: Sequence[Record]) -> dict[str, dict[int, float]]:
        """Return those of the means, of macro-F1 of labels, and of BLEU over all texts."""
        result = super().values(records)
        if self.compare == "labels":
            return result | {"macro_f1": f1_values(records)}
        return result | {"bleu": bleu_values(records)} if self.compare == "bleu" else result


def corpus_bleu(records: Sequence[Record]) -> float:
    """Return the BLEU (0 to 100) of all texts, by sacrebleu with its 13a tokens.

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    sacrebleu = _sacrebleu()
    texts = [str(record.reply["text"]) for record in records]
    rights = [[str(text) for text in record.notes["right"]] for record in records]
    most = max(map(len, rights))
    streams = [[right[min(number, len(right) - 1)] for right in rights] for number in range(most)]
    score: float = sacrebleu.corpus_bleu(texts, streams).score
    return score


def bleu_values(records: Sequence[Record]) -> dict[int, float]:
    """Return the values of BLEU, as `Scorer.values` has them: what it changes by without each text (the jackknife).

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    bleu = _sacrebleu().metrics.BLEU(effective_order=True)
    parts = []
    for record in records:
        part = bleu.sentence_score(str(record.reply["text"]), [str(text) for text in record.notes["right"]])
        parts.append([*part.counts, *part.totals, part.sys_len, part.ref_len])
    sums, count = [sum(column) for column in zip(*parts, strict=True)], len(records)

    def score(totals: Sequence[float]) -> float:
        half = (len(totals) - 2) // 2
        matches, grams, *lengths = totals[:half], totals[half:-2], *totals[-2:]
        value: float = bleu.compute_bleu(matches, grams, *lengths, smooth_method="exp").score
        return value

    without = [score([of - own for of, own in zip(sums, part, strict=True)]) for part in parts]
    middle, all_of_them = sum(without) / count, score(sums)
    values = (all_of_them + (count - 1) * (middle - value) for value in without)
    return {record.number: value for record, value in zip(records, values, strict=True)}


def _sacrebleu() -> Any:
    try:
        import sacrebleu  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MissingExtra("sacrebleu", "eval", "BLEU") from None
    return sacrebleu
