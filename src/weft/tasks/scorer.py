"""The base class of scorers: what they ask of an item, and what they make of the reply."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from weft.evaluation.heldout import macro_f1
from weft.json_types import JsonObject
from weft.tasks import statistics
from weft.tasks.expressions import fault_of
from weft.tasks.requests import Item, Record, Reply, Request
from weft.tasks.statistics import Measure

Measures = dict[str, Measure]
FLAWS = ("unparsable", "unended", "unrated", "undecided", "split_verdicts", "empty_rate", "stopped")
"""Beginnings of the metrics that count what could not be scored as it should."""
SHARES = (
    "accuracy",
    "rate",
    "win_rate",
    "undecided",
    "split_",
    "exact_match",
    "majority",
    "unparsable",
    "unended",
    "pass",
)
"""What the names of metrics that are shares begin with, or end with."""
Expression = str
"""Text of a task file that is evaluated over a row."""


class Scorer(BaseModel):
    """How a task is asked and scored; its fields are what a task file says under the scorer's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    main: ClassVar[str]
    """The metric that stands for the task."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    expressions: ClassVar[tuple[str, ...]] = ()
    """Fields that are expressions over a row."""
    needs: ClassVar[str] = ""
    """What beside the model it takes: "code", a sandbox that runs what the model wrote, or "judge"; "": nothing."""
    asks_questions: ClassVar[bool] = True
    """Whether the task has a prompt."""

    def faults(self) -> list[str]:
        """Return what is wrong with the expressions."""
        values = ((name, getattr(self, name)) for name in self.expressions)
        texts = [(name, value) for name, value in values if isinstance(value, str) and value]
        return [f"{name}: {fault}" for name, text in texts if (fault := fault_of(text, expression=True))]

    @property
    def main_metric(self) -> str:
        """The metric that stands for the task with these settings."""
        return self.main

    def better(self, metric: str) -> Literal["lower", "higher"] | None:
        """Return which values of a metric are better; None: of what says nothing of the model."""
        if metric == "majority" or metric.endswith("_stderr"):
            return None
        return "lower" if metric in self.lower_is_better or metric.startswith(FLAWS) else "higher"

    def notes(self, item: Item) -> JsonObject:
        """Return what is written down beside an item's scores, such as the right answer."""
        return {}

    def request(self, item: Item) -> Request:
        """Return what the model is asked."""
        raise TypeError(f"{type(self).__name__} must define request")

    def answer_text(self, row: JsonObject) -> str:
        """Return the right answer as a text, as a worked example shows it."""
        raise TypeError(f"{type(self).__name__} must define answer_text")

    def follow_up(self, item: Item, reply: Reply) -> Request | None:
        """Return what is asked after a reply, in a conversation of its own; None: the reply is what is scored."""
        return None

    def scores(self, item: Item, reply: Reply) -> Mapping[str, float]:
        """Return the item's numbers."""
        raise TypeError(f"{type(self).__name__} must define scores")

    def perfect(self, item: Item) -> Reply:
        """Return the reply that scores full marks."""
        raise TypeError(f"{type(self).__name__} must define perfect")

    def measures(self, records: Sequence[Record]) -> Measures:
        """Return the task's metrics over records: by default the mean of every score that is not a label."""
        names = dict.fromkeys(name for record in records for name in record.scores if name not in LABELS)
        clusters = [record.cluster or str(record.number) for record in records]
        return {
            name: statistics.mean([record.scores[name] for record in records], clusters, bounds_of(name))
            for name in names
            if all(name in record.scores for record in records)
        }

    def values(self, records: Sequence[Record]) -> dict[str, dict[int, float]]:
        """Return of each metric a value for every item, by number; their mean is the metric.

        A metric that is no mean has the values of its first-order change with each item (the delta method), so that the
        differences of two models' values say how sure the difference of the metric is.
        """
        names = dict.fromkeys(name for record in records for name in record.scores if name not in LABELS)
        return {
            name: {record.number: record.scores[name] for record in records}
            for name in names
            if all(name in record.scores for record in records)
        }


def is_share(name: str) -> bool:
    """Return whether a metric is a share of items, which people read in per cent."""
    return name.startswith(SHARES) or name.endswith(("_rate", "_accuracy"))


def bounds_of(metric: str) -> tuple[float, float] | None:
    """Return the least and the largest score that an item has by a metric; None: there is none."""
    return (0.0, 1.0) if is_share(metric) or metric.startswith("f1") else None


LABELS = ("right", "given")
"""Scores that are numbers of labels: of the right one, and of the one that was given (-1: none could be read)."""


def label_measures(records: Sequence[Record]) -> Measures:
    """Return macro-F1 over the labels, and the share of the most common right one, from the records' labels."""
    pairs = Counter((int(record.scores["right"]), int(record.scores["given"])) for record in records)
    rights = Counter(int(record.scores["right"]) for record in records)
    f1 = macro_f1({(str(right), str(given)): count for (right, given), count in pairs.items()}, unread="-1")
    count = len(records)
    majority = Measure(max(rights.values()) / count, None, count, count)
    return {"macro_f1": Measure(f1, None, count, count), "majority": majority}


def f1_values(records: Sequence[Record]) -> dict[int, float]:
    """Return the values of macro-F1, as `Scorer.values` has them."""
    pairs = [(record.scores["right"], record.scores["given"]) for record in records]
    labels = sorted({label for pair in pairs for label in pair if label >= 0})
    values = [0.0] * len(pairs)
    for label in labels:
        hits = [2.0 * (right == given == label) for right, given in pairs]
        named = [float(right == label) + float(given == label) for right, given in pairs]
        for place, value in enumerate(ratio_values(hits, named)):
            values[place] += value / len(labels)
    return {record.number: value for record, value in zip(records, values, strict=True)}


def ratio_values(tops: Sequence[float], bottoms: Sequence[float]) -> list[float]:
    """Return values whose mean is the ratio of two sums, and which vary as it does with each item."""
    ratio, average = math.fsum(tops) / math.fsum(bottoms), math.fsum(bottoms) / len(bottoms)
    return [ratio + (top - ratio * bottom) / average for top, bottom in zip(tops, bottoms, strict=True)]
