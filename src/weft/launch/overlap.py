"""Rows both measured and trained on: refused, or taken out of the training, where each is a set of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.config import RunConfig
from weft.data.sources import Sources
from weft.errors import DataError


def separate_test_rows(
    config: RunConfig, sources: Sources, by_owner: list[np.ndarray], tests: list[np.ndarray], public: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Return what is trained on, of each owner and of everybody, when no test row is among it.

    Rows are the same if all of their content is. Repeats within one set, of which a part is held out, are not looked
    at here: see `count_repeats`.

    Raises:
        DataError: test rows are trained on, and `held_out_overlap` does not say to leave them out.
    """
    test_rows = np.concatenate(tests) if tests else np.zeros(0, dtype=np.int64)
    train_sets = [*by_owner, *([] if public is None else [public])]
    if not len(test_rows):
        return by_owner, public
    test_marks = set(sources.marks(test_rows))
    overlaps = [_rows_with_marks(sources, rows, test_rows, test_marks) for rows in train_sets]
    common_marks = set().union(*(set(sources.marks(same)) for same in overlaps))
    if not common_marks:
        return by_owner, public
    count = sum(mark in common_marks for mark in sources.marks(test_rows))
    remaining = [np.setdiff1d(rows, same, assume_unique=True) for rows, same in zip(train_sets, overlaps, strict=True)]
    text = (
        f"{count} of the {len(test_rows)} held-out rows ({_test_set_name(config)}) are also among the rows to train on"
    )
    remedy = "name other rows with --eval_dataset_name or --eval_dataset_split"
    if config.clients:
        remedy = "name other rows as eval of the clients, or with --eval_dataset_split"
    if any(len(before) and not len(rows) for before, rows in zip(train_sets, remaining, strict=True)):
        raise DataError(
            f"{text}, and without them none would be left to {_client_without_rows(config, remaining)}: {remedy}."
        )
    if config.held_out_overlap == "refuse":
        raise DataError(f"{text}: {remedy}, or write --held_out_overlap leave_out to train without them.")
    sources.drop("held out too", sum(len(same) for same in overlaps))
    return remaining[: len(by_owner)], None if public is None else remaining[-1]


def _rows_with_marks(sources: Sources, rows: np.ndarray, test_rows: np.ndarray, marks: set[bytes]) -> np.ndarray:
    """Return those of an owner's rows whose content is known."""
    likely = sources.like(rows, test_rows)
    same = [number for number, mark in zip(likely, sources.marks(likely), strict=True) if mark in marks]
    return np.array(same, dtype=np.int64)


def _test_set_name(config: RunConfig) -> str:
    if config.clients:
        return "eval of the clients"
    part = f", {config.eval_dataset_split}" if config.eval_dataset_split else ""
    return f"'{config.eval_dataset_name or config.dataset_name}'{part}"


def _client_without_rows(config: RunConfig, remaining: Sequence[np.ndarray]) -> str:
    empty = next(number for number, rows in enumerate(remaining) if not len(rows))
    clients = config.clients or []
    return f"the client '{clients[empty].name}'" if empty < len(clients) else "train on"


def count_repeats(sources: Sources, train: list[np.ndarray], held_out: list[np.ndarray]) -> int:
    """Return how many held-out rows have the content of one that is trained on, by whomever."""
    marks = set(sources.marks(np.concatenate(train)))
    return sum(mark in marks for mark in sources.marks(np.concatenate(held_out)))
