"""Batches made ready while the step before them is computed on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from weft.core.objective import Objective
from weft.models.layout import Batch
from weft.models.resident import Resident


def prepared(model: Resident, objective: Objective, windows: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """Return the windows, each made one step ahead on a GPU where they do not depend on the step before.

    They depend on it where the model itself answers (`Objective.act`). On a CPU a thread would take its time from the
    step.
    """
    acts = type(objective).act is not Objective.act
    return windows if acts or model.device.type != "cuda" else ahead(windows)


def ahead(windows: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """Yield windows in their order, each laid out and pinned in a thread while the caller has the one before."""

    def following() -> list[Batch] | None:
        window = next(windows, None)
        # Batches of pairs and of answers are laid out in the step: they have nothing to pin.
        return window and [batch.pinned() if isinstance(batch, Batch) else batch for batch in window]

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        coming = pool.submit(following)
        while (window := coming.result()) is not None:
            coming = pool.submit(following)
            yield window
