"""The answers of another evaluation, with which a judge compares those of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.core.digests import digest_of
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.tasks.declaration import EvalTask, as_json
from weft.tasks.paired import Evaluation, is_evaluation, read_evaluation
from weft.tasks.requests import Item, Record
from weft.tasks.runner import row_digest
from weft.tasks.store import task_digest

Answers = Mapping[str, Mapping[int, tuple[str, ...]]]
"""By task and the item's number, the answer to every question of the conversation."""


def read_answers(folder: Path, asked: Sequence[tuple[EvalTask, Sequence[Item]]]) -> tuple[Answers, JsonObject]:
    """Return the answers of an evaluation, and what identifies them.

    Args:
        folder: of the evaluation.
        asked: the tasks that are compared, and their items.

    Raises:
        ConfigError: it is no folder of an evaluation, or its model was not asked the same.
    """
    if not is_evaluation(folder):
        raise ConfigError(
            f"'{folder}' is no folder of an evaluation: write the one that `weft evaluate` made for the other model."
        )
    other = read_evaluation(folder, str(folder))
    answers = {task.name: _of_task(folder, other, task, items) for task, items in asked}
    texts = [text for name in sorted(answers) for _, turns in sorted(answers[name].items()) for text in turns]
    return answers, {"model": other.settings.get("model"), "answers": digest_of(texts)}


def _of_task(folder: Path, other: Evaluation, task: EvalTask, items: Sequence[Item]) -> dict[int, tuple[str, ...]]:
    answered = other.tasks.get(task.name)
    if answered is None:
        raise ConfigError(
            f"The evaluation in '{folder}' has no answers to {task.name}: put the task to that model first."
        )
    if answered.digest != task_digest(as_json(task)):
        raise ConfigError(
            f"The evaluation in '{folder}' is of {task.name} as it was before its file changed: put it to that model "
            "again with --overwrite."
        )
    found = {}
    for item in items:
        record = answered.records.get(item.number)
        if record is None:
            raise ConfigError(
                f"The evaluation in '{folder}' has answers to {len(answered.records)} items of {task.name} and not to "
                f"item {item.number}: write its --limit, or put all of them to that model."
            )
        if record.row != row_digest(item):
            raise ConfigError(
                f"Item {item.number} of {task.name} is another one in '{folder}': put the same data to both models."
            )
        found[item.number] = _turns(record)
    return found


def _turns(record: Record) -> tuple[str, ...]:
    """Return the texts of all turns of the first sample."""
    reply = record.reply
    turns: Sequence[object] = reply["samples"][0] if "samples" in reply else [reply["text"]]
    return tuple(map(str, turns))
