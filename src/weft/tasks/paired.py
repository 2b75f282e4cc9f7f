"""Evaluations side by side: the paired differences of two models' scores over the items that both were asked.

Reads the folders of evaluations, and writes nothing. Source: Miller 2024 (arXiv 2411.00640), section 4.2.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from weft import registry
from weft.core.files import whole_lines
from weft.errors import ConfigError, MissingExtra
from weft.json_types import JsonObject
from weft.tasks.requests import Record
from weft.tasks.results import FILE
from weft.tasks.scorer import Measures, Scorer, bounds_of
from weft.tasks.statistics import Difference, difference
from weft.tasks.store import ITEMS, SETTINGS, task_digest

FORM = ("num_fewshot", "apply_chat_template", "system_instruction", "max_new_tokens", "seed")
"""Settings of an evaluation that are not its model."""


@dataclass(frozen=True)
class Answered:
    """A task that was put to a model."""

    digest: str
    """Of the task's declaration."""
    scorer: Scorer
    records: Mapping[int, Record]

    @property
    def measures(self) -> Measures:
        """The scores of all items."""
        return self.scorer.measures(list(self.records.values()))


@dataclass(frozen=True)
class Evaluation:
    """What the folder of an evaluation holds."""

    name: str
    settings: JsonObject
    tasks: Mapping[str, Answered]


@dataclass(frozen=True)
class TaskDifference:
    """The second evaluation less the first one, on one metric of a task."""

    task: str
    metric: str
    main: bool
    """Whether the metric stands for the task."""
    lower_is_better: bool
    difference: Difference
    items: tuple[int, int]
    """How many items each was asked; the difference is over those that both were."""

    @property
    def verdict(self) -> str:
        """What the interval says of the second one: "better", "worse" or "no difference shown".

        Whether more is better is known of the metric that stands for the task alone; others are "higher" or "lower".
        """
        return verdict(self.difference, self.lower_is_better if self.main else None)


def verdict(found: Difference, lower_is_better: bool | None) -> str:
    """Return what a difference shows in words; `lower_is_better`: None where neither is."""
    if not found.shown:
        return "no difference shown"
    if lower_is_better is None:
        return "lower" if found.value < 0 else "higher"
    return "better" if (found.value < 0) == lower_is_better else "worse"


def is_evaluation(folder: Path) -> bool:
    """Return whether a folder is that of an evaluation."""
    return (folder / SETTINGS).is_file() and (folder / ITEMS).is_dir()


def read_evaluation(folder: Path, name: str) -> Evaluation:
    """Return what an evaluation's folder holds of the tasks that are finished.

    Raises:
        ConfigError: a file cannot be read, or no task is finished.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        results = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if is_of_harness(folder):
            raise ConfigError(
                f"The evaluation in '{folder}' is of lm-eval's tasks, whose items are not paired: put Weft's tasks to "
                "both models, or compare the scores in their results.json."
            )
        tasks = {task: _answered(folder, task, config) for task, config in results["configs"].items()}
        counts = {task: results["n-samples"][task]["effective"] for task in tasks}
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise ConfigError(
            f"The evaluation in '{folder}' has no {missing}: run its `weft evaluate` command again to finish it."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"The evaluation in '{folder}' cannot be read ({type(error).__name__}): run its `weft evaluate` command "
            "again with --overwrite."
        ) from None
    for task, one in tasks.items():
        if len(one.records) < counts[task]:
            raise ConfigError(
                f"The evaluation in '{folder}' has {len(one.records)} of {counts[task]} records of {task}: run its "
                "`weft evaluate` command again to finish it."
            )
    return Evaluation(name, settings, tasks)


def is_of_harness(folder: Path) -> bool:
    """Return whether the evaluation in a folder is of lm-eval's tasks, whose items cannot be paired."""
    with suppress(OSError, ValueError, TypeError):
        return "harness" in json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return False


def _answered(folder: Path, task: str, config: JsonObject) -> Answered:
    """Return a task's records; ValueError where they are not those of the results."""
    file = folder / ITEMS / f"{task}.jsonl"
    if len(lines := whole_lines(file)) < 2:
        raise FileNotFoundError(errno.ENOENT, "no records", str(file))
    digest = str(json.loads(lines[0])["task"])
    if digest != task_digest(config):
        raise ValueError("records of another task file")
    try:
        scorer = registry.load(registry.SCORERS, config["kind"], "scorer").model_validate(config[config["kind"]])
    except ValidationError as error:
        raise ValueError(str(error)) from None
    records = [Record.of(json.loads(line)) for line in lines[1:]]
    return Answered(digest, scorer, {record.number: record for record in records})


def compare(first: Evaluation, second: Evaluation) -> tuple[list[TaskDifference], list[str]]:
    """Return the differences of all tasks that both have, and sentences on what is not compared, or not alike."""
    found: list[TaskDifference] = []
    notes = [
        f"{key} differs: {json.dumps(first.settings.get(key))} and {json.dumps(second.settings.get(key))}."
        for key in FORM
        if first.settings.get(key) != second.settings.get(key)
    ]
    for task in first.tasks:
        if task not in second.tasks:
            continue
        why = _apart(first.tasks[task], second.tasks[task])
        if why:
            notes.append(f"{task} is not compared: {why}.")
            continue
        try:
            found += _differences(task, first.tasks[task], second.tasks[task])
        except MissingExtra as error:
            notes.append(f"{task} is not compared: {error}")
    for here, there in ((first, second), (second, first)):
        lacking = [task for task in here.tasks if task not in there.tasks]
        if lacking:
            notes.append(f"{there.name} was not asked: {', '.join(lacking)}.")
    return found, notes


def _apart(first: Answered, second: Answered) -> str:
    """Return why the items of a task cannot be paired; "": they can."""
    if first.digest != second.digest:
        return "the task's file is not the same"
    common = sorted(first.records.keys() & second.records.keys())
    if not common:
        return "no item was asked of both"
    for number in common:
        one, two = first.records[number], second.records[number]
        if one.notes.get("judge") != two.notes.get("judge"):
            return f"the judges are {one.notes.get('judge')} and {two.notes.get('judge')}"
        # Items that were written before they had a digest are compared by what is known of them.
        known = one.row != two.row if one.row and two.row else _signs(one) != _signs(two)
        if known:
            return f"its data is not the same (item {number})"
    return ""


def _signs(record: Record) -> tuple[object, ...]:
    """Return what does not depend on the model."""
    return record.group, record.cluster, record.scores.get("right"), record.notes.get("right")


def _differences(task: str, first: Answered, second: Answered) -> list[TaskDifference]:
    common = sorted(first.records.keys() & second.records.keys())
    one, two = _values(first, common), _values(second, common)
    found = []
    for metric in (name for name in one if name in two):
        ones, twos = one[metric], two[metric]
        numbers = [number for number in common if number in ones and number in twos]
        if len(numbers) < len(common):  # over what both have, which a metric that is no mean must know
            ones, twos = _values(first, numbers)[metric], _values(second, numbers)[metric]
        clusters = {number: first.records[number].cluster or str(number) for number in numbers}
        main, lower = metric == first.scorer.main_metric, first.scorer.better(metric) == "lower"
        counts = (len(first.records), len(second.records))
        paired = difference(ones, twos, clusters, bounds_of(metric))
        found.append(TaskDifference(task, metric, main, lower, paired, counts))
    return found


def _values(side: Answered, numbers: Sequence[int]) -> dict[str, dict[int, float]]:
    return side.scorer.values([side.records[number] for number in numbers])
