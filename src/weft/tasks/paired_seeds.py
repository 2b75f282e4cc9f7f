"""Runs side by side over the seeds that both have: the paired differences of what they measured on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from weft.keys.data import DataKeys
from weft.runs.comparison import KINDS, ComparisonRow, Outcome, compared_metrics, scores_of
from weft.tasks.paired import verdict
from weft.tasks.statistics import Difference, difference

TEXT_KEYS = frozenset(
    {
        "template",
        "prompt_template",
        "template_date",
        "seq_length",
        "truncation_side",
        "instruction_column",
        "response_column",
        "instruction_prefix",
        "local_data_dir",
        "tokenizer",
        "eval_dataset_name",
        "eval_dataset_split",
        "eval_rows",
    }
)
"""Keys that decide what a held-out row is, wherever it comes from."""
DATA_KEYS = (TEXT_KEYS | DataKeys.model_fields.keys() | {"eval_fraction", "num_clients"}) - {
    "token_cache",
    "split_seed",
    "public_share",
}
"""Keys that decide which rows are held out, and what they are, where they are taken from the clients' own rows."""


class SeedDifference(NamedTuple):
    """The second row of runs less the first one, on one metric."""

    kind: str
    """Which model was measured on whose rows."""
    metric: str
    difference: Difference
    seeds: tuple[int, ...]

    @property
    def verdict(self) -> str:
        """What the interval says of the second one."""
        better = next(metric.better for metric in compared_metrics() if metric.name == self.metric)
        return verdict(self.difference, None if better is None else better == "lower")


def seed_differences(
    first: ComparisonRow, second: ComparisonRow, digests: Mapping[str, Mapping[str, str]]
) -> tuple[list[SeedDifference], str]:
    """Return the differences over common seeds, none where there are fewer than two, and why there are none, or "".

    Args:
        first: a run, or runs that differ in nothing but their seed.
        second: the others.
        digests: of the data of every run, by the run's path and the data's name.
    """
    one, two = ({int(run.config["seed"]): run for run in row.outcomes} for row in (first, second))
    seeds = tuple(sorted(one.keys() & two.keys()))
    if len(seeds) < 2:
        return [], ""
    why = next((why for seed in seeds if (why := other_rows(one[seed], two[seed], digests))), "")
    if why:
        return [], why
    found: list[SeedDifference] = []
    for kind in KINDS:
        for metric in (metric.name for metric in compared_metrics()):
            one_values, two_values = (_values(runs, seeds, kind, metric) for runs in (one, two))
            if len(one_values) == len(two_values) == len(seeds):
                found.append(SeedDifference(kind, metric, difference(one_values, two_values), seeds))
    return found, ""


def _values(runs: Mapping[int, Outcome], seeds: Sequence[int], kind: str, metric: str) -> dict[int, float]:
    """Return a score of runs by their seed, of those that have it."""
    values = {seed: scores_of(runs[seed]).get(kind, {}).get(metric) for seed in seeds}
    return {seed: float(value) for seed, value in values.items() if value is not None}


def split_seed_of(run: Outcome) -> int:
    """Return the seed that dealt a run's rows to its clients, and chose those that are held out."""
    given = run.config.get("split_seed")
    return int(run.config["seed"] if given is None else given)


def in_common(first: ComparisonRow, second: ComparisonRow) -> tuple[Outcome, Outcome]:
    """Return a run of each whose rows were dealt alike; the first ones where no two were."""
    pairs = [(one, two) for one in first.outcomes for two in second.outcomes]
    return next((pair for pair in pairs if split_seed_of(pair[0]) == split_seed_of(pair[1])), pairs[0])


def other_rows(first: Outcome, second: Outcome, digests: Mapping[str, Mapping[str, str]]) -> str:
    """Return why two runs were not measured on the same rows, client by client; "": nothing says so."""
    own = first.config.get("eval_dataset_name") is None or second.config.get("eval_dataset_name") is None
    keys = sorted(DATA_KEYS if own else TEXT_KEYS)
    differing = [key for key in keys if first.config.get(key) != second.config.get(key)]
    if differing:
        return f"{', '.join(differing)} differ{'s' * (len(differing) == 1)}"
    one_seed, two_seed = (split_seed_of(run) for run in (first, second))
    if one_seed != two_seed:
        return f"the rows were dealt by seed {one_seed} and by seed {two_seed}"
    one, two = digests.get(first.path, {}), digests.get(second.path, {})
    changed = [name for name in one if name in two and one[name] != two[name]]
    if changed:
        return f"{changed[0]} changed between them"
    rows = [
        {name: one.get("rows") for name, one in (run.summary.get("clients") or {}).items()} for run in (first, second)
    ]
    sealed = [(run.summary.get("members"), run.summary.get("held_out_rows")) for run in (first, second)]
    if sealed[0] != sealed[1] and not (rows[0] and rows[1]):
        if None in sealed[0] + sealed[1]:
            return "the scores of one came as a sum, so that its clients' numbers of held-out rows are not known"
        return "their clients have other numbers of held-out rows"
    return "" if rows[0] == rows[1] else "their clients have other numbers of held-out rows"
