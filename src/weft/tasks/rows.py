"""The rows of evaluation tasks: found in folders of task data or on the hub, chosen, and completed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from weft.core.seeds import generator
from weft.data.load import COMPRESSED_SUFFIXES, SUFFIXES, whole_rows
from weft.errors import ConfigError, DataError
from weft.json_types import JsonObject
from weft.tasks.declaration import Data, EvalTask
from weft.tasks.expressions import evaluate, render
from weft.tasks.prompts import Prompt, Shot
from weft.tasks.requests import Item

VARIABLE = "WEFT_TASK_DATA"
"""Environment variable with folders of task data, separated as those of PATH."""


def folders_of(flags: Sequence[str]) -> list[Path]:
    """Return the folders of task data: those of the flags, then those of the environment.

    Raises:
        ConfigError: a folder of the flags is not there.
    """
    for name in flags:
        if not Path(name).expanduser().is_dir():
            raise ConfigError(f"There is no folder of task data '{name}': check the path after --task_data.")
    names = [*flags, *filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))]
    return [Path(name).expanduser() for name in names]


def local_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the file of a name in the first folder that has it, None where no folder has."""
    for folder in folders:
        for suffix in SUFFIXES:
            for compression in ("", *COMPRESSED_SUFFIXES):
                path = folder / f"{name}{suffix}{compression}"
                if path.is_file():
                    return path
    return None


def hub_command(task: EvalTask) -> str:
    """Return the command that gets a task's data from the hub."""
    return f"weft tasks --get {task.name} --task_data FOLDER"


def missing(task: EvalTask, folders: Sequence[Path]) -> str | None:
    """Return how to get the data of a task, None where it is at hand."""
    if local_file(task.data.file, folders) is not None:
        return None
    if task.data.hub:
        return f"run `{hub_command(task)}` ({task.license})"
    return f"get it from {task.source} ({task.license}), and put it into FOLDER/{task.data.file}.jsonl"


def read_file(name: str, task: EvalTask, folders: Sequence[Path]) -> list[JsonObject]:
    """Return all rows of a data file.

    Raises:
        DataError: it is not at hand, or broken.
    """
    path = local_file(name, folders)
    if path is None:
        places = ", ".join(f"'{folder}'" for folder in folders) or "no folder (--task_data FOLDER names one)"
        wanted = missing(task, folders) or f"put {name}.jsonl beside the task's data"
        raise DataError(f"The data of the task '{task.name}', {name}.jsonl, is not in {places}: {wanted}.")
    stat = path.stat()
    return _table(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _table(path: Path, size: int, changed: int) -> list[JsonObject]:
    """Return the rows of a file as it is; several tasks read the same one, and none changes its rows."""
    return [dict(row) for row in whole_rows(str(path))]


def from_hub(place: str) -> list[JsonObject]:
    """Return the rows of a data set of the hub.

    Args:
        place: "NAME [CONFIGURATION] [PART[+PART]]"; of several parts each row says its own as `split`, and `*` stands
            for all configurations, each of which its rows have as `task`.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets

    from weft.data.sets import first_line

    name, *rest = place.split()
    *configurations, parts = rest or ["test"]
    rows: list[JsonObject] = []
    try:
        if configurations == ["*"]:
            configurations = datasets.get_dataset_config_names(name)
        for configuration in configurations or (None,):
            for part in parts.split("+"):
                more = {"split": part} if "+" in parts else {}
                more |= {"task": str(configuration)} if len(configurations) > 1 else {}
                rows += [row | more for row in datasets.load_dataset(name, configuration, split=part)]
    except Exception as error:  # every kind of network, hub and file error comes out of this library
        raise DataError(
            f"The data set '{place}' cannot be loaded ({first_line(error)}): check the network, and whether its page "
            "asks you to accept a licence."
        ) from None
    return rows


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task: those that are asked, and those that worked examples are taken from."""

    asked: list[JsonObject]
    examples: list[JsonObject]


def completed(task: EvalTask, row: JsonObject) -> JsonObject:
    """Return a row with the task's constants and further columns."""
    values = task.constants | row
    for name, expression in task.row.items():
        values[name] = evaluate(expression, values)
    return values


def rows_of(task: EvalTask, folders: Sequence[Path], shots: int) -> TaskRows:
    """Return the rows of a task.

    Args:
        task: the task.
        folders: of task data.
        shots: worked examples before each question.

    Raises:
        DataError: the data is not at hand, or a row does not fit the task file; the message names the row.
        ConfigError: the task has no rows for worked examples.
    """
    data: Data = task.data
    rows = read_file(data.file, task, folders)
    asked = _fitting(task, rows, data.keep)
    if not asked:
        raise DataError(
            f"No row of the task '{task.name}' is kept ({data.keep or 'the file is empty'}): check its data."
        )
    if not shots:
        return TaskRows(asked, [])
    if task.shots is None:
        raise ConfigError(
            f"The task '{task.name}' has no worked examples: write --num_fewshot 0, or give its file a key 'shots'."
        )
    pool = read_file(task.shots.file, task, folders) if task.shots.file else rows
    return TaskRows(asked, _fitting(task, pool, task.shots.keep))


def _fitting(task: EvalTask, rows: Sequence[JsonObject], keep: str) -> list[JsonObject]:
    """Return the rows for which an expression is true, with the task's further columns."""
    fitting = []
    for number, row in enumerate(rows, 1):
        try:
            values = completed(task, row)
            if not keep or evaluate(keep, values):
                fitting.append(values)
        except DataError as error:
            where = f"Row {number} of '{task.data.file}'"
            raise DataError(f"{where} does not fit the task '{task.name}': {error}") from None
    return fitting


def items_of(
    task: EvalTask, rows: TaskRows, shots: int, limit: int | None, system: str = "", seed: int | None = None
) -> list[Item]:
    """Return what is asked of a task: at most `limit` rows, each with its worked examples.

    Args:
        task: says how a row becomes a question.
        rows: all that the task has.
        shots: worked examples before a question.
        limit: the first rows are asked, and of a task in parts the first of every part, so that all parts count alike.
        system: a text before everything.
        seed: draws the rows at random instead of taking the first, for files that are sorted.

    Raises:
        DataError: a row lacks a column, or there are fewer worked examples than asked for.
    """
    items = []
    for number in _chosen(task, rows.asked, limit, seed):
        try:
            items.append(_item(task, rows, number, rows.asked[number], shots, system))
        except DataError as error:
            raise DataError(f"Row {number + 1} of the task '{task.name}' cannot be asked: {error}") from None
    return items


def _chosen(task: EvalTask, rows: Sequence[JsonObject], limit: int | None, seed: int | None) -> list[int]:
    """Return the numbers of the rows that are asked, in their order."""
    numbers = list(range(len(rows)))
    if limit is None or limit >= len(rows):
        return numbers
    if seed is not None:
        numbers = generator(seed, "rows of a task", task.name).permutation(len(rows)).tolist()
    if not task.group:
        return sorted(numbers[:limit])
    places: dict[str, int] = {}
    order: list[tuple[int, int]] = []
    for rank, number in enumerate(numbers):
        name = str(evaluate(task.group, rows[number]))
        places[name] = places.get(name, -1) + 1
        order.append((places[name], rank))
    return sorted(numbers[rank] for _, rank in sorted(order)[:limit])


def _item(task: EvalTask, rows: TaskRows, number: int, row: JsonObject, shots: int, system: str) -> Item:
    group = str(evaluate(task.group, row)) if task.group else ""
    cluster = str(evaluate(task.cluster, row)) if task.cluster else group
    examples = _examples(task, rows.examples, row, shots) if shots else ()
    prompt = Prompt(
        render(task.prompt, row), render(task.description, row), examples, delimiter=task.delimiter, system=system
    )
    return Item(number, row, prompt, group, cluster)


def _examples(task: EvalTask, pool: Sequence[JsonObject], row: JsonObject, shots: int) -> tuple[Shot, ...]:
    """Return the first worked examples of the row's kind; the row itself is none."""
    assert task.shots is not None
    same = task.shots.same
    wanted = evaluate(same, row) if same else None
    found: list[Shot] = []
    for other in pool:
        if other == row or (same and evaluate(same, other) != wanted):
            continue
        found.append(Shot(render(task.prompt, other), task.scorer.answer_text(other)))
        if len(found) == shots:
            return tuple(found)
    raise DataError(
        f"{shots} worked examples are asked for, and there are {len(found)}: write --num_fewshot {len(found)}."
    )
