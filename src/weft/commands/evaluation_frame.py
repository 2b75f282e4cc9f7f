"""`weft.evaluate`: the scores of `weft evaluate` as a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from weft.commands.evaluate import parsed, scored
from weft.errors import ConfigError

if TYPE_CHECKING:
    import pandas

ELSEWHERE = ("harness", "federated", "json")
"""Flags of what the command line alone does."""


def frame(model: str, tasks: Sequence[str], *, quiet: bool, flags: Mapping[str, object]) -> pandas.DataFrame:
    """Put tasks to a model, and return a row for each task and metric.

    Args:
        model: a run's directory, a hub name, or a folder.
        tasks: names or files.
        quiet: print no progress.
        flags: of `weft evaluate`, by their names.

    Raises:
        ConfigError: there is no such task, model or flag.
    """
    import pandas

    if other := next((name for name in ELSEWHERE if flags.get(name)), None):
        raise ConfigError(f"weft.evaluate has no {other}: write `weft evaluate --{other}` on the command line.")
    words = [model, "--tasks", *tasks, *(["--quiet"] if quiet else [])]
    results, _, _ = scored(parsed([*words, *(word for name, value in flags.items() for word in _words(name, value))]))
    rows = []
    for result in results:
        for metric, measure in result.measures.items():
            low, high = measure.interval or (None, None)
            row = {"task": result.task.name, "metric": metric, "score": measure.value, "low": low, "high": high}
            rows.append(row | {"n": len(result.records), "main": metric == result.task.metric})
    return pandas.DataFrame(rows)


def _words(name: str, value: object) -> list[str]:
    """Return a flag as it is written on the command line; nothing of one that is None or False."""
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name}", *map(str, values)]
