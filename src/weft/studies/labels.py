"""How the values and settings of a study are called in tables, messages and folders."""

from __future__ import annotations

from collections.abc import Mapping


def label_of_value(value: object) -> str:
    """Return a value as people read it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {label_of_value(one)}" for key, one in value.items())
    return ", ".join(map(label_of_value, value)) if isinstance(value, list) else str(value)


def label_of(keys: Mapping[str, object]) -> str:
    """Return keys and values as people read them: "prox_mu 0.1, learning_rate 0.001"."""
    words = (
        label_of_value(value) if isinstance(value, Mapping) else f"{key} {label_of_value(value)}"
        for key, value in keys.items()
    )
    return ", ".join(filter(None, words))
