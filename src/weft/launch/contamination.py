"""Contamination of a run: how many items of evaluation tasks are among the rows that each client trains on.

A client counts against its own copy of the tasks' data, and nothing but its counts leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.data.pairs import Pair
from weft.data.prompts import Prompt
from weft.errors import ConfigError
from weft.federation.clients import Clients, RowTable
from weft.json_types import JsonObject
from weft.tasks.catalogue import select
from weft.tasks.contamination import ItemGrams, grams_of
from weft.tasks.rows import folders_of, missing, rows_of

MOST = 1 << 31
"""Limit for the items that a site may claim."""


def read_items(config: RunConfig) -> dict[str, ItemGrams]:
    """Return the n-grams of the tasks that `contamination` names, by task; those whose data is not here are left out.

    Raises:
        ConfigError: there is no such task, or no data of any.
        DataError: a row does not fit its task.
    """
    if not config.contamination:
        return {}
    folders = folders_of(config.task_data)
    items, lacks = _read(config, folders, config.contamination)
    if not items:
        name, why = next(iter(lacks.items()))
        raise ConfigError(f"The data of the task '{name}', which contamination names, is not at hand: {why}.")
    return items


def items_of(config: RunConfig, names: list[str]) -> dict[str, ItemGrams]:
    """Return the n-grams of these tasks and suites, by task; those whose data is not here are left out."""
    return _read(config, folders_of(config.task_data), names)[0]


def _read(config: RunConfig, folders: list[Path], names: list[str]) -> tuple[dict[str, ItemGrams], dict[str, str]]:
    """Return the n-grams of the tasks whose data is in these folders, and how to get that of the others."""
    tasks = select(names, config.include_path)
    lacks = {task.name: why for task in tasks if (why := missing(task, folders)) is not None}
    here = [task for task in tasks if task.name not in lacks]
    return {task.name: grams_of(rows_of(task, folders, 0).asked) for task in here}, lacks


def counts_of(items: Mapping[str, ItemGrams], clients: Clients, tokenizer: Tokenizer) -> JsonObject:
    """Return of every task what each client counts.

    Args:
        items: of the tasks.
        clients: whose training rows count.
        tokenizer: turns their rows back into text: what was cut off, or is not trained on, does not count.

    Returns:
        By task and client `items`, `compared` (those long enough) and `found` (those among the client's rows).
    """
    found: JsonObject = {name: {} for name in items}
    for client in clients if items else ():
        shared: dict[str, set[int]] = {name: set() for name in items}
        for row in client.train.index:
            texts = list(texts_of(client.train.table, int(row), tokenizer))
            for name, grams in items.items():
                shared[name] |= grams.shared(texts)
        for name, grams in items.items():
            counts = {"items": grams.items, "compared": grams.compared, "found": len(shared[name])}
            found[name][client.name] = counts
    return found


def counts_at_site(
    config: RunConfig, clients: Clients, tokenizer: Tokenizer, folders: list[str] | None, least: int
) -> JsonObject:
    """Return by task what a site sends: the counts of its own data, without those of few rows or items.

    Args:
        config: by which the site trains.
        clients: the site as the only client.
        tokenizer: of the model.
        folders: with the site's own data of tasks; None: it counts nothing.
        least: rows below which nothing is sent; of fewer items than that, `found` is null and not 0.
    """
    if not config.contamination or folders is None or len(clients.train[0]) < least:
        return {}
    items, _ = _read(config, [Path(folder) for folder in folders], config.contamination)
    sent: JsonObject = {}
    for name, by_client in counts_of(items, clients, tokenizer).items():
        (counts,) = by_client.values()
        sent[name] = counts | {"found": None if 0 < counts["found"] < least else counts["found"]}
    return sent


def asked_counts(asked: list[str], answers: Mapping[str, object]) -> JsonObject:
    """Return by task and site what sites answered, as far as it was asked and can be true.

    Args:
        asked: the tasks and suites that the run names.
        answers: of the sites, whatever they are.
    """
    found: JsonObject = {}
    names = [task.name for task in select(asked)] if asked else []
    for name in names:
        for site, answer in answers.items():
            counts = answer.get(name) if isinstance(answer, dict) else None
            if isinstance(counts, dict) and _possible(counts):
                kept = {key: counts[key] for key in ("items", "compared", "found")}
                found.setdefault(name, {})[site] = kept
    return found


def _possible(counts: JsonObject) -> bool:
    """Say whether counts can be those of a task: whole numbers, each at most the one before."""
    values = [counts.get(key) for key in ("items", "compared", "found")]
    if values[2] is None:
        values[2] = 0
    whole = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    return len(whole) == 3 and MOST > whole[0] >= whole[1] >= whole[2] >= 0


def texts_of(table: RowTable, row: int, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield what is trained on in a row, as text."""
    content: Any = table[row]
    if isinstance(content, Pair):
        yield from (text_of(tokenizer, np.concatenate([content.prompt, answer])) for answer in content.answers)
    elif isinstance(content, Prompt):
        yield text_of(tokenizer, content.ids)
        yield content.answer
    else:
        yield text_of(tokenizer, content[0])


def text_of(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Return ids as text, without special tokens."""
    # Ids below 0 stand for the vectors of a learnt prompt.
    return str(tokenizer.decode(ids[ids >= 0], skip_special_tokens=True))
