"""Runs side by side: what may stand in one column, seeds folded into means, and a baseline's tokens beside the others'.

A score says on whose rows which model was measured; only scores of one kind are put together. Works on what run
directories hold, and knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from weft import plugins
from weft.core.declarations import Metric, scores
from weft.json_types import JsonObject

SHARED, OWN = "shared model, everybody's rows", "own models, own rows"
ABROAD, CLUSTERS = "own models, everybody's rows", "clusters' models, rows of their clients"
KINDS = (SHARED, CLUSTERS, OWN, ABROAD)
COSTS = ("rounds", "tokens", "bytes_up", "bytes_down", "seconds", "peak_memory_bytes", "train_loss", "product_error")
VERBS = {"causal_lm": "pretrain", "preference": "dpo"}
EQUAL = 0.01
"""Share by which numbers of tokens may differ and still be called equal."""


class Outcome(NamedTuple):
    """A finished run."""

    path: str
    config: JsonObject
    summary: JsonObject
    personal: bool = False
    """Clients use models of their own, of which the summary says no more than their scores."""


class SeedSpread(NamedTuple):
    """A number of one run, or of several: their mean, and the standard deviation of a sample (n - 1)."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """A run, or runs that differ in nothing but their seed."""

    outcomes: tuple[Outcome, ...]
    keys: JsonObject
    """Those in which the lines of a table differ."""
    mark: str = ""
    """Of central: how its tokens compare with the others'."""

    @property
    def paths(self) -> list[str]:
        """The directories of its runs."""
        return [one.path for one in self.outcomes]

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [int(one.config["seed"]) for one in self.outcomes]

    def scores(self, kind: str) -> dict[str, SeedSpread]:
        """Return the scores of a kind that all of its runs have."""
        names = [metric.name for metric in compared_metrics()]
        return _spreads([scores_of(one).get(kind, {}) for one in self.outcomes], names)

    def costs(self) -> dict[str, SeedSpread]:
        """Return what its runs took."""
        return _spreads([one.summary for one in self.outcomes], COSTS)

    def rows(self) -> str:
        """Return how many held-out rows a score is of; the smallest and the largest number where runs differ."""
        counts = sorted({_rows(one) for one in self.outcomes})
        return "?" if not counts[0] else str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def compared_metrics() -> list[Metric]:
    """Return the metrics that stand in a table of runs."""
    return [metric for metric in scores() if metric.shown != "report"]


def verb_of(config: JsonObject) -> str:
    """Return the verb that a run was begun with."""
    if config.get("prompt_method") is not None and config["objective"] == "sft":
        return "prompt"
    return VERBS.get(config["objective"], plugins.public_name(str(config["objective"])))


def scores_of(outcome: Outcome) -> dict[str, JsonObject]:
    """Return a run's scores by their kind."""
    models, evaluation = outcome.summary.get("models") or {}, outcome.summary.get("eval") or {}
    candidates = {SHARED: models.get("shared"), OWN: models.get("own"), ABROAD: models.get("own_on_everybody")}
    by_kind = {kind: dict(scores) for kind, scores in candidates.items() if scores}
    kind = evaluation_kind(outcome)
    if kind is not None and any(value is not None for value in evaluation.values()):
        by_kind[kind] = {**evaluation, **by_kind.get(kind, {})}
    return by_kind


def evaluation_kind(outcome: Outcome) -> str | None:
    """Return of which kind the scores are that were measured during a run; None: of none that is known at its end."""
    models, evaluation = outcome.summary.get("models") or {}, outcome.summary.get("eval") or {}
    if not models:
        if outcome.personal:
            return OWN
        return CLUSTERS if outcome.config.get("cluster", 1) > 1 else SHARED
    # At the end everything is measured once more: what has the same loss is the same.
    kinds = {OWN: models.get("own"), SHARED: models.get("shared")}
    same = [kind for kind, scores in kinds.items() if scores and scores.get("loss") == evaluation.get("loss")]
    return same[0] if same else None


def describe_evaluation(config: JsonObject, summary: JsonObject) -> str | None:
    """Return in words what a run's own scores are of, and of how many rows."""
    outcome = Outcome("", config, summary)
    kind = evaluation_kind(outcome) if summary.get("clients") or summary.get("members") else None
    return None if kind is None else f"{kind} (n = {ComparisonRow((outcome,), {}).rows()})"


def tables(outcomes: Sequence[Outcome], ignored: frozenset[str]) -> dict[str, list[ComparisonRow]]:
    """Return the lines of each verb's table.

    Args:
        outcomes: the runs.
        ignored: keys on which no result depends.
    """
    by_verb: dict[str, list[ComparisonRow]] = {}
    for verb in dict.fromkeys(verb_of(one.config) for one in outcomes):
        of_verb = [one for one in outcomes if verb_of(one.config) == verb]
        groups = fold(of_verb, ignored)
        differ = [
            key
            for key, value in of_verb[0].config.items()
            if key not in ignored | {"seed"} and any(one.config.get(key) != value for one in of_verb)
        ]
        if any(len(group) == 1 for group in groups) and len({one.config["seed"] for one in of_verb}) > 1:
            differ.append("seed")
        marks = [_mark(group, of_verb) for group in groups]
        by_verb[verb] = [
            ComparisonRow(
                group, {key: group[0].config.get(key) for key in differ if key != "seed" or len(group) == 1}, mark
            )
            for group, mark in zip(groups, marks, strict=True)
        ]
    return by_verb


def fold(outcomes: Sequence[Outcome], ignored: frozenset[str]) -> list[tuple[Outcome, ...]]:
    """Put together the runs that differ in nothing but their seed; two of one seed say nothing of chance."""
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        # Values may be lists and dicts, which cannot be keys of a dictionary; their repr can.
        key = repr(sorted((key, repr(value)) for key, value in one.config.items() if key not in ignored | {"seed"}))
        groups.setdefault(key, []).append(one)
    folded: list[tuple[Outcome, ...]] = []
    for group in groups.values():
        distinct = len({one.config["seed"] for one in group}) == len(group)
        folded += [tuple(group)] if distinct else [(one,) for one in group]
    return folded


def _mark(group: tuple[Outcome, ...], outcomes: Sequence[Outcome]) -> str:
    """Say of a central run how many tokens it learnt from, next to the runs that it is a baseline of."""
    if group[0].config["fed_alg"] != "central":
        return ""
    others = [one.summary.get("tokens") or 0 for one in outcomes if one.config["fed_alg"] != "central"]
    tokens = [one.summary.get("tokens") or 0 for one in group]
    if not others or not all(others):
        return ""
    # The smallest and the largest ratio that any pair of runs, one of each side, could have.
    least, most = min(tokens) / max(others), max(tokens) / min(others)
    if least >= 1 - EQUAL and most <= 1 + EQUAL:
        return "equal tokens"
    if most - least <= EQUAL * most:
        return f"{most:.2g} times the others' tokens"
    return f"{least:.2g} to {most:.2g} times the others' tokens"


def _spreads(records: Sequence[JsonObject], names: Sequence[str]) -> dict[str, SeedSpread]:
    columns = {name: [one.get(name) for one in records] for name in names}
    return {
        name: spread([float(v) for v in values if v is not None])
        for name, values in columns.items()
        if None not in values
    }


def spread(values: Sequence[float]) -> SeedSpread:
    """Return the mean of numbers and, of two or more, their standard deviation as a sample's (n - 1)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return SeedSpread(mean)
    return SeedSpread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)))


def _rows(outcome: Outcome) -> int:
    clients = outcome.summary.get("clients") or {}
    if not clients and "held_out_rows" in outcome.summary:  # their scores came sealed
        return int(outcome.summary["held_out_rows"] or 0)
    return sum(int(one.get("rows") or 0) for one in clients.values())
