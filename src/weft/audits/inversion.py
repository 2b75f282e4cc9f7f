"""Reconstruction of a row by optimisation: vectors and soft labels whose gradient is that of the update (TAG, arXiv
2103.06819). `sequence` goes on from here."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.matching import Guess, Matching
from weft.audits.recall import above, own_and_next, under_masks
from weft.audits.scene import Scene
from weft.audits.sent import Station, values_of
from weft.audits.settings import CannotAudit
from weft.json_types import JsonObject

ROWS = 3
ITERATIONS = 200
LONGEST = 48
"""Tokens of a row that is tried: the search grows with it, and finds less."""


class Searched(NamedTuple):
    """A row, and what a search for its gradient found."""

    ids: np.ndarray
    """(T,) of the row."""
    own: frozenset[int]
    """Its tokens that something is predicted from."""
    matching: Matching
    guess: Guess


def searched(scene: Scene) -> list[Searched]:
    """Search for a few rows by their updates; a second call computes nothing.

    Raises:
        CannotAudit: no update of single rows can be had, or all rows are long.
    """
    found: list[Searched] = scene.once("searched", lambda: _searched(scene))
    found[0].matching.load()  # all began from the same values
    return found


def _searched(scene: Scene) -> list[Searched]:
    station = Station(scene)
    model, table = station.host.model, station.host.train_clients.table
    if not model.one_process or model.front is not None:
        raise CannotAudit("The search needs a whole model without a learnt prompt: audit a run of weights.")
    rows = [row for row in station.drawn(16) if len(table[row.number][0]) <= LONGEST]
    rows = rows[: min(scene.settings.few(ROWS), scene.settings.limit)]
    if len(rows) < 2:
        raise CannotAudit(
            f"Fewer than two rows have at most {LONGEST} tokens, and longer ones take hours: `span` reads them."
        )
    found = []
    for place, row in enumerate(rows):
        ids, learn = table[row.number]
        matching = Matching(model, values_of(model, station.state.params), station.one_step(row).delta, learn)
        guess = matching.improved(matching.start(scene.settings.seed + place), scene.settings.few(ITERATIONS))
        found.append(Searched(ids, station.tokens([row]), matching, guess))
    return found


class Inversion(Audit):
    """Share of a row's own words that a search for its gradient finds."""

    title: ClassVar[str] = "Reconstruction by optimisation (TAG)"
    means: ClassVar[str] = (
        "Share of a row's own words among the tokens that a short search reconstructs from its update; a longer search "
        "finds more."
    )
    defence: ClassVar[str] = "Larger batches and more steps make it harder; differential privacy bounds it."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Reconstruct a few rows, and compare with the words of others."""
        rows = searched(scene)
        found = [
            frozenset(one.matching.read(one.guess)[:, 0].tolist()) | frozenset(one.guess.labels[1:].argmax(1).tolist())
            for one in rows
        ]
        step, control = own_and_next([one.own for one in rows], found)
        numbers: JsonObject = {"one_step": step.as_json(), "control": control.as_json(), "rows": len(rows)}
        cells = [["one row, one step", str(step)], ["another row's update (control)", str(control)]]
        note = (
            f"{scene.settings.few(ITERATIONS)} iterations for each of {len(rows)} rows; the attacker is told their "
            "lengths, and where the answers are."
        )
        return Findings(
            numbers,
            ["update of", "words found (95 %, Clopper-Pearson)"],
            cells,
            [note, *above(step, control), *under_masks(scene)],
        )
