"""Putting tasks to a model: in batches, with progress, written down as they are done, so that a stop loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weft.core.digests import digest_of
from weft.errors import DataError
from weft.json_types import JsonObject
from weft.tasks.declaration import EvalTask
from weft.tasks.requests import ChoiceLogps, EvaluatedModel, Item, Record, Reply, Texts, Writing
from weft.tasks.scorer import Measures
from weft.tasks.statistics import Measure
from weft.tasks.store import Store

DIGITS = 16
"""Of the digest of an item's row."""
Say = Callable[[str, int, int], None]
"""Receives a task's name, the number of items that are done, and that of all."""


@dataclass(frozen=True)
class Result:
    """The scores of one task."""

    task: EvalTask
    measures: Measures
    groups: dict[str, Measures]
    """By part of the task, such as a subject; empty where it has no parts."""
    records: list[Record]
    rows: int
    """Rows that the task has; fewer were asked if there was a limit."""
    shots: int

    @property
    def main(self) -> Measure:
        """The metric that stands for the task."""
        return self.measures[self.task.metric]

    @property
    def cut(self) -> int:
        """Items whose prompt lost its beginning."""
        return sum(bool(record.reply.get("cut")) for record in self.records)

    @property
    def refused(self) -> int:
        """Items that the endpoint refused to answer, which count as empty answers."""
        return sum(bool(record.reply.get("refused")) for record in self.records)


def put(
    task: EvalTask,
    items: Sequence[Item],
    model: EvaluatedModel,
    store: Store,
    *,
    seed: int = 0,
    say: Say | None = None,
    finish: Callable[[EvalTask, Sequence[Item], Sequence[Reply]], list[Record]] | None = None,
    prepare: Callable[[Writing], Writing] = lambda request: request,
) -> list[Record]:
    """Return the records of a task's items, in their order; those in the store are not asked again.

    Args:
        task: the task.
        items: what is asked.
        model: whom.
        store: keeps the records on disk.
        seed: of sampling.
        say: receives progress.
        finish: makes records of replies where the scorer alone cannot: a sandbox or a judge.
        prepare: changes what is asked for in writing, such as its length.
    """
    done = store.records(task)
    todo = [item for item in items if item.number not in done]
    say = say or (lambda *_: None)
    asked = len(items) - len(todo)
    say(task.name, asked, len(items))
    for chunk, replies in replies_to(task, todo, model, seed, prepare):
        records = finish(task, chunk, replies) if finish is not None else records_of(task, chunk, replies)
        store.add(task, records)
        done |= {record.number: record for record in records}
        asked += len(chunk)
        say(task.name, asked, len(items))
    return [done[item.number] for item in items]


def replies_to(
    task: EvalTask,
    items: Sequence[Item],
    model: EvaluatedModel,
    seed: int,
    prepare: Callable[[Writing], Writing] = lambda request: request,
) -> Iterator[tuple[Sequence[Item], list[Reply]]]:
    """Put items to a model, some at a time, and yield these with the replies that are scored.

    Those are the replies to the follow-ups, where the scorer has some. Arguments are those of `put`.
    """
    for at in range(0, len(items), model.chunk):
        chunk = items[at : at + model.chunk]
        requests = [task.scorer.request(item) for item in chunk]
        requests = [prepare(request) if isinstance(request, Writing) else request for request in requests]
        own = seed + chunk[0].number  # the same items get the same seed, whatever was done before a stop
        replies = model.reply(requests, own)
        more = [task.scorer.follow_up(item, reply) for item, reply in zip(chunk, replies, strict=True)]
        later = [prepare(request) for request in more if isinstance(request, Writing)]
        yield chunk, model.reply(later, own) if later else replies


def records_of(task: EvalTask, items: Sequence[Item], replies: Sequence[Reply]) -> list[Record]:
    """Return the records of items, by what the task's scorer makes of the replies."""
    return [
        record_of(task, item, reply, dict(task.scorer.scores(item, reply)))
        for item, reply in zip(items, replies, strict=True)
    ]


def record_of(task: EvalTask, item: Item, reply: Reply, scores: dict[str, float], **notes: object) -> Record:
    """Return the record of one item."""
    notes = task.scorer.notes(item) | notes
    return Record(item.number, item.group, item.cluster, scores, reply_json(reply), notes, row_digest(item))


def row_digest(item: Item) -> str:
    """Return the digest of an item's row, as records have it."""
    return digest_of([json.dumps(item.row, sort_keys=True, default=str)])[:DIGITS]


def reply_json(reply: Reply) -> JsonObject:
    """Return a reply as plain data."""
    if isinstance(reply, Texts):
        texts = [list(sample) for sample in reply.samples]
        alone = len(texts) == len(texts[0]) == 1
        result: JsonObject = {"text": texts[0][0]} if alone else {"text": texts[0][0], "samples": texts}
        marks = {"unended": not reply.ended, "cut": reply.cut, "refused": reply.refused}
        return result | {name: True for name, is_so in marks.items() if is_so}
    if isinstance(reply, ChoiceLogps):
        result = {"logps": [round(value, 6) for value in reply.logps], "tokens": list(reply.tokens)}
        result |= {"reference": [round(value, 6) for value in reply.reference]} if reply.reference else {}
        return result | ({"cut": True} if reply.cut else {})
    result = {"logp": round(reply.logp, 6), "tokens": reply.tokens}
    return result | ({"windows": reply.windows} if reply.windows > 1 else {})


def result_of(task: EvalTask, records: Sequence[Record], rows: int, shots: int) -> Result:
    """Return the scores of a task's records.

    Raises:
        DataError: the scores lack the task's metric.
    """
    measures = task.scorer.measures(records)
    if task.metric not in measures:
        raise DataError(f"The task '{task.name}' gives no {task.metric} for these rows: check its data.")
    unended = sum(bool(record.reply.get("unended")) for record in records)
    if any("text" in record.reply for record in records):
        measures["unended"] = Measure(unended / len(records), None, len(records), len(records))
    names = dict.fromkeys(record.group for record in records if record.group)
    parts = {name: [record for record in records if record.group == name] for name in names}
    groups = {name: task.scorer.measures(part) for name, part in parts.items()}
    return Result(task, measures, groups, list(records), rows, shots)
