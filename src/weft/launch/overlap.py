"""Rows both measured and trained on: refused, or taken out of the training, where each is a set of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.config import RunConfig
from weft.data.sources import Sources
from weft.errors import DataError


def keep_apart(
    config: RunConfig, sources: Sources, owned: list[np.ndarray], tests: list[np.ndarray], public: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Return what is trained on, of each owner and of everybody, when no test row is among it.

    Rows are the same if all of their content is. Repeats within one set, of which a part is held out, are not looked
    at here: see `count_repeats`.

    Raises:
        DataError: test rows are trained on, and `held_out_overlap` does not say to leave them out.
    """
    measured = np.concatenate(tests) if tests else np.zeros(0, dtype=np.int64)
    trained = [*owned, *([] if public is None else [public])]
    if not len(measured):
        return owned, public
    known = set(sources.marks(measured))
    found = [_among(sources, own, measured, known) for own in trained]
    both = set().union(*(set(sources.marks(same)) for same in found))
    if not both:
        return owned, public
    count = sum(mark in both for mark in sources.marks(measured))
    kept = [np.setdiff1d(own, same, assume_unique=True) for own, same in zip(trained, found, strict=True)]
    said = f"{count} of the {len(measured)} held-out rows ({_measured(config)}) are also among the rows to train on"
    other = "name other rows with --eval_dataset_name or --eval_dataset_split"
    if config.clients:
        other = "name other rows as eval of the clients, or with --eval_dataset_split"
    if not all(len(own) for own in kept):
        raise DataError(f"{said}, and without them none would be left to {_who(config, kept)}: {other}.")
    if config.held_out_overlap == "refuse":
        raise DataError(f"{said}: {other}, or write --held_out_overlap leave_out to train without them.")
    sources.drop("held out too", sum(len(same) for same in found))
    return kept[: len(owned)], None if public is None else kept[-1]


def _among(sources: Sources, own: np.ndarray, measured: np.ndarray, known: set[bytes]) -> np.ndarray:
    """Return those of an owner's rows whose content is known."""
    likely = sources.like(own, measured)
    same = [number for number, mark in zip(likely, sources.marks(likely), strict=True) if mark in known]
    return np.array(same, dtype=np.int64)


def _measured(config: RunConfig) -> str:
    if config.clients:
        return "eval of the clients"
    part = f", {config.eval_dataset_split}" if config.eval_dataset_split else ""
    return f"'{config.eval_dataset_name or config.dataset_name}'{part}"


def _who(config: RunConfig, kept: Sequence[np.ndarray]) -> str:
    empty = next(number for number, own in enumerate(kept) if not len(own))
    clients = config.clients or []
    return f"the client '{clients[empty].name}'" if empty < len(clients) else "train on"


def count_repeats(sources: Sources, train: list[np.ndarray], held: list[np.ndarray]) -> int:
    """Return how many held-out rows have the content of one that is trained on, by whomever."""
    known = set(sources.marks(np.concatenate(train)))
    return sum(mark in known for mark in sources.marks(np.concatenate(held)))
