"""Keys of a run as words of a command line."""

from __future__ import annotations


def flags(keys: dict[str, object]) -> list[str]:
    """Write keys as flags."""
    words: list[str] = []
    for key, value in keys.items():
        words.append(f"--{key}")
        words += [str(part) for part in value] if isinstance(value, list) else [str(value)]
    return words
