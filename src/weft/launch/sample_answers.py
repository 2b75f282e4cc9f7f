"""A few answers to evaluation tasks, kept of the start and of the newest round: the server's own prompts and no row of
a client."""

from __future__ import annotations

from collections.abc import Sequence

from weft.json_types import JsonObject
from weft.tasks.declaration import EvalTask
from weft.tasks.requests import ChoiceLogps, Choices, Item, Reply, Texts

ITEMS = 3
"""Items of a task whose answers are kept."""
LONGEST = 2000
"""Letters of a prompt, its end, and of an answer, its beginning."""


def samples_of(task: EvalTask, items: Sequence[Item], replies: Sequence[Reply]) -> list[JsonObject]:
    """Return the first items of a task with the model's answers, as plain data; none where it only reads texts."""
    found = []
    for item, reply in list(zip(items, replies, strict=True))[:ITEMS]:
        answer = _answer(task, item, reply)
        if answer is not None:
            found.append({"prompt": item.prompt.text[-LONGEST:], "answer": answer[:LONGEST]})
    return found


def _answer(task: EvalTask, item: Item, reply: Reply) -> str | None:
    """Return what the model wrote, or the choice that it found the likeliest."""
    if isinstance(reply, Texts):
        return reply.first
    request = task.scorer.request(item)
    if isinstance(reply, ChoiceLogps) and isinstance(request, Choices):
        best = max(range(len(reply.logps)), key=lambda place: reply.logps[place])
        return request.choices[best]
    return None


def before_and_after(first: JsonObject | None, last: JsonObject | None, round: int) -> JsonObject:
    """Return what summary.json says: by task the items with both answers; `before` is None where a run has none."""
    tasks = {}
    for task, items in (last or {}).items():
        earlier = {one["prompt"]: one["answer"] for one in (first or {}).get(task, [])}
        tasks[task] = [
            {"prompt": one["prompt"], "before": earlier.get(one["prompt"]), "after": one["answer"]} for one in items
        ]
    return {"round": round, "tasks": tasks}
