"""A task file, read and checked: errors name the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from weft import registry
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.tasks.expressions import fault_of
from weft.tasks.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import Mapping


class Strict(BaseModel):
    """Plain data of a task file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shots(Strict):
    """Where worked examples come from."""

    file: str = ""
    """Name of a data file; "": the task's own, whose asked rows are left out."""
    hub: str = ""
    keep: str = ""
    """Expression over a row that is true of the rows to take them from."""
    same: str = ""
    """Expression: examples have the same value as the question, such as its subject."""


class Data(Strict):
    """Where the rows of a task come from."""

    file: str
    """Name of the file in a folder of task data, without its suffix."""
    hub: str = ""
    """Data set of the hub, as "NAME [CONFIGURATION] [PART]"."""
    keep: str = ""
    """Expression over a row that is true of the rows that are asked."""


class EvalTask(Strict):
    """An evaluation task."""

    name: str
    title: str
    suites: list[str] = []
    source: str
    """Where the data comes from, for people."""
    license: str
    data: Data
    shots: Shots | None = None
    """None: the task has no worked examples."""
    constants: dict[str, Any] = {}
    """Values that templates and expressions use beside the columns."""
    row: dict[str, str] = {}
    """Further columns: expressions, in their order, each of which sees those before."""
    group: str = ""
    """Expression: the part of the task that a row belongs to."""
    cluster: str = ""
    """Expression: rows of one value are not independent; "": the group, if the task has groups, else each row."""
    description: str = ""
    prompt: str = ""
    delimiter: str = " "
    scorer: Scorer
    kind: str
    """Name of the scorer."""
    notes: str = ""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not name or not all(c.isalnum() or c in "_-." for c in name):
            raise ValueError("a name has letters, digits, '_', '-' and '.' alone")
        return name

    @property
    def metric(self) -> str:
        """The metric that stands for the task."""
        return self.scorer.main_metric

    def faults(self) -> list[str]:
        """Return what is wrong with templates and expressions, each as "KEY: what"."""
        texts = [("group", self.group, True), ("cluster", self.cluster, True), ("data", self.data.keep, True)]
        texts += [("row", text, True) for text in self.row.values()]
        texts += [("prompt", self.prompt, False), ("description", self.description, False)]
        if self.shots is not None:
            texts += [("shots", self.shots.keep, True), ("shots", self.shots.same, True)]
        found = [(key, fault_of(text, expression=kind)) for key, text, kind in texts if text]
        return [f"{key}: {fault}" for key, fault in found if fault] + [
            f"{self.kind}: {fault}" for fault in self.scorer.faults()
        ]


def read_task(path: Path) -> EvalTask:
    """Return the task of a file.

    Raises:
        ConfigError: the file cannot be read, or a key of it is wrong; the message names its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"The task file '{path}' cannot be read ({reason}): check the path.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"'{path}'{where} is not valid YAML ({getattr(error, 'problem', error)}): correct it."
        ) from None
    lines = _lines(text)
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' holds no task: a task file is keys and values, such as 'name: my_task'.")
    kinds = [key for key in values if key in registry.SCORERS]
    if len(kinds) != 1:
        have = f"the scorers {', '.join(kinds)}" if kinds else "no scorer"
        names = ", ".join(registry.SCORERS)
        raise ConfigError(f"The task file '{path}' has {have}: write one of {names}, with its settings below it.")
    kind = kinds[0]
    settings = values.pop(kind) or {}
    try:
        scorer = registry.load(registry.SCORERS, kind, "scorer").model_validate(settings)
    except ValidationError as error:
        raise _fault(path, lines, error, (kind,)) from None
    try:
        task = EvalTask.model_validate(values | {"kind": kind, "scorer": scorer})
    except ValidationError as error:
        raise _fault(path, lines, error, ()) from None
    if task.scorer.asks_questions and not task.prompt:
        raise ConfigError(f"The task file '{path}' has no 'prompt': write what the model is asked.")
    for fault in task.faults():
        keys = fault.split(": ")
        line = lines.get((keys[0], keys[1])) or lines.get((keys[0],), 1)
        raise ConfigError(f"'{path}', line {line}: {fault}; correct the expression.")
    return task


def _fault(
    path: Path, lines: Mapping[tuple[str, ...], int], error: ValidationError, above: tuple[str, ...]
) -> ConfigError:
    """Return the first error of a file, with its line."""
    # A key that is not known explains best why another one is missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    place = (*above, *map(str, first["loc"]))
    known = next((place[:end] for end in range(len(place), 0, -1) if place[:end] in lines), ())
    line = lines.get(known, 1)
    what = {"extra_forbidden": "is not known", "missing": "is missing"}.get(first["type"], first["msg"])
    name = ".".join(place) or "the file"
    return ConfigError(f"'{path}', line {line}: {name} {what[:1].lower()}{what[1:]}; correct it (docs/evaluation.md).")


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of every key of a YAML text, by the keys above it."""
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node | None, above: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*above, str(key.value))
                lines[place] = key.start_mark.line + 1
                walk(value, place)

    walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return lines


def as_json(task: EvalTask) -> JsonObject:
    """Return a task as plain data: what decides about its scores."""
    return task.model_dump(mode="json", exclude={"scorer"}) | {task.kind: task.scorer.model_dump(mode="json")}
