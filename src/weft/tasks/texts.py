"""Scorers of texts by their log-probability: bits for each byte, and pairs of a preferred answer and another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from weft.json_types import JsonObject
from weft.tasks import statistics
from weft.tasks.expressions import render
from weft.tasks.requests import ChoiceLogps, Choices, Item, Record, Reply, Text, TextLogp
from weft.tasks.scorer import Measures, Scorer, ratio_values


class BitsPerByte(Scorer):
    """The model's surprise at texts, in bits for each byte of UTF-8: models of different tokenizers compare."""

    main: ClassVar[str] = "bits_per_byte"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"bits_per_byte", "perplexity"})
    asks_questions: ClassVar[bool] = False

    text: str
    """Template of the text."""

    def request(self, item: Item) -> Text:
        """Ask for the log-probability of the whole text."""
        return Text(render(self.text, item.row))

    def scores(self, item: Item, reply: Reply) -> Mapping[str, float]:
        """Return the bits, bytes and tokens of the text."""
        assert isinstance(reply, TextLogp)
        size = len(render(self.text, item.row).encode())
        return {"bits": -reply.logp / math.log(2), "bytes": float(size), "tokens": float(reply.tokens)}

    def perfect(self, item: Item) -> TextLogp:
        """Return a reply by which the text is certain."""
        return TextLogp(0.0, 1)

    def measures(self, records: Sequence[Record]) -> Measures:
        """Return the bits over the bytes of all texts, and the perplexity of a token."""
        bits, size, tokens = (sum(record.scores[name] for record in records) for name in ("bits", "bytes", "tokens"))
        if not size or not tokens:
            return {}
        ratio = bits / size
        # The error of a ratio of sums: that of the mean of what each text deviates from it (the delta method).
        clusters = [record.cluster or str(record.number) for record in records]
        rest = [record.scores["bits"] - ratio * record.scores["bytes"] for record in records]
        error = statistics.mean(rest, clusters).error
        measure = statistics.Measure(ratio, error and error * len(records) / size, len(records), len(set(clusters)))
        nats = bits * math.log(2) / tokens
        perplexity = math.exp(nats) if nats < 700 else math.inf
        return {"bits_per_byte": measure, "perplexity": statistics.Measure(perplexity, None, len(records))}

    def values(self, records: Sequence[Record]) -> dict[str, dict[int, float]]:
        """Return those of the bits over the bytes of all texts."""
        bits, sizes = ([record.scores[name] for record in records] for name in ("bits", "bytes"))
        if not sum(sizes):
            return {}
        values = ratio_values(bits, sizes)
        return {"bits_per_byte": {record.number: value for record, value in zip(records, values, strict=True)}}


class Preference(Scorer):
    """Whether the preferred answer is likelier than the other one, after the same prompt."""

    main: ClassVar[str] = "preference_accuracy"

    chosen: str
    """Template of the preferred answer."""
    rejected: str
    """Template of the other one."""
    delimiter: str = ""

    def answer_text(self, row: JsonObject) -> str:
        """Return the preferred answer."""
        return render(self.chosen, row)

    def request(self, item: Item) -> Choices:
        """Ask for the log-probabilities of both answers."""
        return Choices(item.prompt, (render(self.chosen, item.row), render(self.rejected, item.row)), self.delimiter)

    def scores(self, item: Item, reply: Reply) -> Mapping[str, float]:
        """Return whether the preferred answer is likelier, in sum and for each token, and by how much (nats); with a
        reference model also by how much more than there, which is DPO's reward margin over beta."""
        assert isinstance(reply, ChoiceLogps)
        chosen, rejected = reply.logps
        each = [logp / max(1, count) for logp, count in zip(reply.logps, reply.tokens, strict=True)]
        scores = {
            "preference_accuracy": _won(chosen, rejected),
            "preference_accuracy_norm": _won(*each),
            "margin": chosen - rejected,
        }
        if reply.reference:
            # As trl has it: what the model prefers more strongly than its reference does; a tie is no preference.
            reward = (chosen - reply.reference[0]) - (rejected - reply.reference[1])
            scores |= {"reward_accuracy": float(reward > 0), "reward_margin": reward}
        return scores

    def perfect(self, item: Item) -> ChoiceLogps:
        """Return a reply by which the preferred answer alone is likely."""
        return ChoiceLogps((-1.0, -1e4), (1, 1))


def _won(chosen: float, rejected: float) -> float:
    """Return 1 where the preferred answer is likelier, 1/2 where both are equally likely."""
    return 0.5 if chosen == rejected else float(chosen > rejected)
