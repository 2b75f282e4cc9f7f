"""Answers before and after the training: to the items of evaluation tasks, which are the server's own prompts."""

from __future__ import annotations

from weft.json_types import JsonObject
from weft.pages.html import lines_of, text

LONGEST = 1500
"""Letters of a prompt or of an answer."""


def answers_part(answers: JsonObject) -> str:
    """Return the answers that a run kept of evaluation tasks, "" where it kept none.

    Args:
        answers: of summary.json: `round`, and by task a list of `prompt`, `before`, `after`.
    """
    parts = []
    for task, items in (answers.get("tasks") or {}).items():
        parts.append(f"<h3>{text(task)}</h3>")
        for item in items:
            parts.append(f'<pre class="wrap">{lines_of(item["prompt"], LONGEST)}</pre><div class="answers">')
            for head, key in (("before training", "before"), (f"after round {answers.get('round')}", "after")):
                answer = item.get(key)
                body = "&ndash;" if answer is None else lines_of(answer, LONGEST) or "(empty)"
                parts.append(f'<div><div class="note">{head}</div><pre class="wrap">{body}</pre></div>')
            parts.append("</div>")
    return "".join(parts)
