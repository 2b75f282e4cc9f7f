"""Declarations of metrics: each stands beside what computes it, and all that records, shows or limits metrics reads it.

An evaluator and an objective list theirs in `metrics`. What crosses from clients to the server is counts and sums by
name, which can be added up; a declaration says which of them a metric is derived from. Imports nothing heavy, so that
finished runs are shown quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from weft import registry

if TYPE_CHECKING:
    from weft.core.types import Metrics

Format = str | Callable[[float], str]
"""How a number is written: a format specification, or a function."""
DIGITS = 9
"""Of the number of an answer or of a model, at most."""


@dataclass(frozen=True)
class Look:
    """How a metric is written, where that differs from its label and its format."""

    line: str = ""
    """Its label on a line of progress."""
    line_format: Format | None = None
    """On a line of progress."""
    report_format: Format | None = None
    """In report.html; "": as any other number there."""
    compare_format: Format | None = None
    """In the tables of `weft compare`."""
    panel: str = ""
    """The picture of report.html that its curve is drawn in; "": in none."""
    curve: str = ""
    """The name of its curve there, where that is not its label."""
    order: int = 0
    """Where it stands among others: smaller numbers first, else as the tables list what declares it."""


@dataclass(frozen=True)
class Metric:
    """A number that is recorded, and how it is derived from counts and sums."""

    name: str
    """Its key in metrics.jsonl and summary.json."""
    label: str
    """As people read it."""
    count: str
    """The name of what is counted. A `*` stands for numbers: `confusion/*/*` is a family of counts."""
    sums: tuple[str, ...] = ()
    """Names of sums over what is counted."""
    better: Literal["lower", "higher"] | None = None
    derive: Callable[[Metrics], float | None] | None = None
    """Computes it from its count, which is not 0, and its sums; None: the mean, the first sum over the count."""
    sums_are_counts: bool = False
    """Its sums are never below 0."""
    share: bool = False
    """It lies between 0 and 1."""
    always: bool = False
    """It stands in every record, as null where it is not measured."""
    shown: Literal["report", "scores", "models"] = "scores"
    """Where, each place with those before it: in records and the report; on lines of progress, in `weft compare` and
    on the model card; where the shared model is compared with clients' own at the end of a run."""
    format: Format = ".4f"
    look: Look = field(default_factory=Look)

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of all that it is derived from."""
        return (self.count, *self.sums)

    @property
    def line_label(self) -> str:
        """Its label on a line of progress."""
        return self.look.line or self.label

    def on_line(self, value: float) -> str:
        """Return a value with its label, as on a line of progress."""
        form = self.look.line_format
        return f"{self.line_label} {written(self.format if form is None else form, value)}"

    def in_report(self, value: float) -> str | None:
        """Return a value as report.html has it; None: as any other number."""
        form = self.format if self.look.report_format is None else self.look.report_format
        return written(form, value) if form else None

    def in_comparison(self, value: float) -> str:
        """Return a value as the tables of `weft compare` have it."""
        form = self.look.compare_format
        return written(self.format if form is None else form, value)

    def pick(self, part: Metrics) -> Metrics:
        """Return what it needs of the counts and sums of a client; nothing where any of it is missing."""
        picked: Metrics = {}
        for need in self.needs:
            some = _of(need, part)
            if not some:
                return {}
            picked |= some
        return picked

    def value(self, part: Metrics) -> float | None:
        """Return the metric of counts and sums; None: nothing was counted, or a part of what it needs is missing."""
        picked = self.pick(part)
        counted = sum(_of(self.count, picked).values())
        if not counted:
            return None
        try:
            return picked[self.sums[0]] / counted if self.derive is None else self.derive(picked)
        except (ArithmeticError, ValueError):  # of numbers that no honest client sends: no reason to end a run
            return None


def written(form: Format, value: float) -> str:
    """Return a number as a format writes it."""
    return form(value) if callable(form) else format(value, form)


TRAIN_LOSS = Metric(
    "train_loss",
    "training loss",
    "loss_tokens",
    ("loss_sum",),
    better="lower",
    look=Look(line="loss", panel="loss", curve="train"),
)
"""Every kind of local training counts targets, and adds up the loss over them."""
TEXTS_REFUSED = Metric(
    "texts_refused",
    "texts refused",
    "texts_scored",
    ("texts_refused",),
    derive=lambda sums: sums["texts_refused"],
    sums_are_counts=True,
    shown="report",
)
"""How many of the scored texts are no instruction, where wording is trained."""
MIXED_ROWS = Metric(
    "mixed_rows",
    "rows of the mixture",
    "mixture/*",
    derive=lambda counts: sum(counts.values()),
    shown="report",
)
"""How many rows a mixture drew, counted by the number of their domain."""

Tables = tuple[tuple[str, str], ...]
"""The lines of a table of parts, by which what was found in it is kept."""


class Names(NamedTuple):
    """What the declarations say of the names of counts and sums; a name of a family is known by its pattern."""

    counts: dict[str, tuple[Metric, ...]]
    """What is counted -> the metrics that need it."""
    nonnegative: frozenset[str]
    """Of numbers that are never below 0."""
    known: frozenset[str]
    """All that metrics are derived from."""
    patterns: dict[str, tuple[str, ...]]
    """The first part of a name -> the patterns that it may have."""

    def pattern(self, name: str) -> str | None:
        """Return the declared name or pattern that a name is one of; None: of none."""
        if name in self.known and "*" not in name:
            return name
        return next((one for one in self.patterns.get(name.partition("/")[0], ()) if fits(one, name)), None)


def scores() -> tuple[Metric, ...]:
    """Return what evaluators declare, each name once, in the order in which it is shown."""
    return _scores(tuple(registry.EVALUATORS.items()))


def training() -> tuple[Metric, ...]:
    """Return what is measured of training: the loss, and what objectives declare beside it, each name once."""
    return _training(tuple(registry.OBJECTIVES.items()))


def declared() -> tuple[Metric, ...]:
    """Return all metrics; one that several parts declare with a difference is there as often."""
    return _declared(tuple(registry.EVALUATORS.items()), tuple(registry.OBJECTIVES.items()))


def names() -> Names:
    """Return what all metrics say of the names of counts and sums."""
    return _names(tuple(registry.EVALUATORS.items()), tuple(registry.OBJECTIVES.items()))


def fits(pattern: str, name: str) -> bool:
    """Say whether a name is that of a pattern: equal to it, with a number for every `*`."""
    wanted, parts = pattern.split("/"), name.split("/")
    return len(wanted) == len(parts) and all(
        is_number(part) if want == "*" else part == want for want, part in zip(wanted, parts, strict=True)
    )


def is_number(text: str) -> bool:
    """Say whether a text is a number of an answer, or of a model."""
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS


def _of(need: str, part: Metrics) -> Metrics:
    """Return the numbers of a name, or of a pattern of names."""
    if "*" in need:
        return {name: value for name, value in part.items() if fits(need, name)}
    return {need: part[need]} if need in part else {}


@lru_cache(maxsize=8)
def _scores(evaluators: Tables) -> tuple[Metric, ...]:
    return tuple(sorted(_once(_listed(evaluators, "evaluator")), key=lambda metric: metric.look.order))


@lru_cache(maxsize=8)
def _training(objectives: Tables) -> tuple[Metric, ...]:
    return _once((TRAIN_LOSS, TEXTS_REFUSED, MIXED_ROWS, *_listed(objectives, "objective")))


@lru_cache(maxsize=8)
def _declared(evaluators: Tables, objectives: Tables) -> tuple[Metric, ...]:
    every = (
        *_listed(evaluators, "evaluator"),
        TRAIN_LOSS,
        TEXTS_REFUSED,
        MIXED_ROWS,
        *_listed(objectives, "objective"),
    )
    return tuple(dict.fromkeys(every))


@lru_cache(maxsize=8)
def _names(evaluators: Tables, objectives: Tables) -> Names:
    counts: dict[str, tuple[Metric, ...]] = {}
    patterns: dict[str, tuple[str, ...]] = {}
    metrics = _declared(evaluators, objectives)
    known = frozenset(name for metric in metrics for name in metric.needs)
    for metric in metrics:
        counts[metric.count] = (*counts.get(metric.count, ()), metric)
    for name in sorted(known):
        if "*" in name:
            kind = name.partition("/")[0]
            patterns[kind] = (*patterns.get(kind, ()), name)
    nonnegative = {name for metric in metrics if metric.sums_are_counts for name in metric.sums}
    return Names(counts, frozenset(nonnegative | counts.keys()), known, patterns)


def _listed(table: Tables, kind: str) -> list[Metric]:
    """Return the metrics of all parts of a table."""
    return [metric for name, _ in table for metric in registry.load(dict(table), name, kind).metrics]


def _once(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
    """Return of every name the first metric."""
    kept: dict[str, Metric] = {}
    for metric in metrics:
        kept.setdefault(metric.name, metric)
    return tuple(kept.values())
