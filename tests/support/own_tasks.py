"""Task files of a user's own, about the colours of invented things."""

from __future__ import annotations

PROMPT = "Which colour is {{ thing }}?"


def own_task(name: str, scorer: str, *, file: str, prompt: str = PROMPT) -> str:
    """Return a task file.

    Args:
        name: of the task.
        scorer: the lines of its scorer, and others of its own.
        file: name of its rows' file, without the suffix.
        prompt: of an item.
    """
    head = f"name: {name}\ntitle: Invented\nsource: invented\nlicense: CC0\ndata: {{file: {file}}}\n"
    return f'{head}prompt: "{prompt}"\n{scorer}\n'
