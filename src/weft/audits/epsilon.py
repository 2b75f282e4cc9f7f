"""A bound of epsilon from below by one run, beside what the ledger claims (`weft.privacy.audit` has the statistics)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.exposure import ranked
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.json_types import JsonObject
from weft.keys.privacy import CLIENT, ROW, is_private
from weft.launch.budgets import statement_of
from weft.launch.canaries import Canary
from weft.privacy.audit import epsilon_bound, guess

MADE = 0.4
"""Share of the canaries about which a guess is made; fixed before the scores are seen."""
DELTA = 1e-5


class Epsilon(Audit):
    """What guesses about the coins of canaries refute."""

    title: ClassVar[str] = "Epsilon from below"
    means: ClassVar[str] = (
        "No guarantee with a smaller epsilon can be true (95 %); a small bound proves nothing, it is no estimate."
    )
    defence: ClassVar[str] = "Differential privacy (--privacy_unit); a bound above the claim would be a fault of Weft."
    needs: ClassVar[tuple[str, ...]] = ("canaries",)

    def findings(self, scene: Scene) -> Findings:
        """Guess which canaries are in the rows, and count what is right."""
        before = {}
        if scene.reference is not None:
            before = {one.canary.number: one.margin for one in ranked(scene, scene.reference)}
        # What the model learnt of a canary beyond what made it likely before.
        ranks = ranked(scene, scene.model)
        return bounded(scene, [(one.canary, one.margin - before.get(one.canary.number, 0.0)) for one in ranks])


def bounded(scene: Scene, scores: Sequence[tuple[Canary, float]]) -> Findings:
    """Guess by scores which canaries are in the rows, and return what that refutes.

    Args:
        scene: the run.
        scores: of every canary, larger for those that seem to be in the rows.

    Raises:
        CannotAudit: there are too few canaries.
    """
    of, unit = _units(scene, scores)
    made = int(MADE * len(of)) // 2 * 2
    if made < 4:
        raise CannotAudit(
            f"{len(of)} canaries are units of the guarantee ({unit}), too few for guesses: train with more "
            "--canaries, and --canary_repetitions 1."
        )
    planted = np.array([canary.planted for canary, _ in of])
    guesses = guess(np.array([score for _, score in of]), planted, made)
    claim = statement_of(scene.config, scene.run.path, None) if is_private(scene.config) else {}
    delta = claim.get("delta", DELTA)
    bound = epsilon_bound(guesses, delta)
    numbers: JsonObject = {
        "bound": bound, "claimed": claim.get("epsilon"), "delta": delta, "unit": unit, "canaries": len(of),
        "guesses": made, "right": guesses.right,
    }  # fmt: skip
    claimed = "none" if not claim or claim["epsilon"] is None else f"{claim['epsilon']:.3g}"
    rows = [[unit, f"{guesses.right} of {made}", f"{bound:.3g}", claimed]]
    heads = ["unit", "right guesses", f"epsilon is at least (delta {delta:g})", "claimed: at most"]
    return Findings(numbers, heads, rows, _notes(scene, numbers))


def _units(scene: Scene, scores: Sequence[tuple[Canary, float]]) -> tuple[Sequence[tuple[Canary, float]], str]:
    """Return the canaries whose coin turns one unit of the guarantee, and the unit."""
    unit = scene.config.privacy_unit
    if unit in (ROW, CLIENT):
        return [one for one in scores if one[0].copies == 1], f"{unit}: canaries of one copy"
    return scores, "a person: all copies of a canary"


def _notes(scene: Scene, numbers: JsonObject) -> list[str]:
    notes = []
    if scene.config.privacy_unit == CLIENT:
        notes.append(
            "A canary is one row of a client, and the claim is of a whole client: turning a coin replaces what one "
            "client has, which is worth up to twice the claimed epsilon."
        )
    if numbers["claimed"] is not None and numbers["bound"] > numbers["claimed"] * (
        2 if scene.config.privacy_unit == CLIENT else 1
    ):
        notes.append(
            "THE CLAIM IS REFUTED: more guesses are right than the guarantee allows. Report this, with the run's keys."
        )
    return notes
