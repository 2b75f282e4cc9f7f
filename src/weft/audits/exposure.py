"""Exposure of canaries: how far up a canary's number stands among numbers that it could have been.

Carlini et al. 2019, The Secret Sharer (arXiv 1802.08232): exposure = log2 R - log2 rank, where R is the number of
candidates. The rank is estimated among random candidates, so it is at most log2 of their number.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.audits.statistics import mean_of
from weft.audits.tokens import readable
from weft.evaluation.heldout import rank
from weft.launch.canaries import DIGITS, Canary
from weft.models.layout import Question
from weft.models.resident import Resident

Found = TypeVar("Found")
TOGETHER = 32
"""Candidates in one pass."""
CHANCE = 1 / math.log(2)
"""Bits of exposure, on average, of a number among very many that it could be."""
IMPOSSIBLE = 1e-5
"""Probability below which the control is not taken for chance."""
KEPT_OUT = 0
"""Stands for the number of copies of canaries that are not in the rows."""


class Ranked(NamedTuple):
    """A canary among its candidates."""

    canary: Canary
    exposure: float
    """Bits."""
    margin: float
    """Its log-probability (nats) minus the mean of the candidates'."""


def ranked(scene: Scene, model: Resident) -> list[Ranked]:
    """Rank every canary, with the same candidates for every model; a second call computes nothing."""
    ranks: list[Ranked] = scene.once(f"ranks {id(model)}", lambda: _ranked(scene, model))
    return ranks


def _ranked(scene: Scene, model: Resident) -> list[Ranked]:
    found = []
    with model.evaluating():
        for canary in scene.canaries:
            prompt, choices = scene.once(f"question {canary.number}", partial(_question, scene, canary))
            # Choices of a question share a line, whose attention grows with the square.
            known = readable(model, prompt)
            parts = [Question(known, choices[at : at + TOGETHER]) for at in range(0, len(choices), TOGETHER)]
            logps = [logp for _, some in rank(model, parts, 2) for logp in some]
            own, others = logps[0], np.array(logps[1:])
            place = 1 + int((others > own).sum()) + int((others == own).sum()) / 2
            found.append(Ranked(canary, math.log2(len(logps)) - math.log2(place), own - float(others.mean())))
    return found


def _question(scene: Scene, canary: Canary) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """Return the ids of a canary's question, and of its own number and the candidates."""
    digits = [canary.digits, *candidates(scene, canary)]
    return scene.question(canary, [canary.written(number) for number in digits])


def candidates(scene: Scene, canary: Canary) -> list[str]:
    """Return numbers that a canary could have been, without its own."""
    chance = scene.chance("candidates", canary.number)
    drawn = chance.choice(10**DIGITS, scene.settings.candidates + 1, replace=False)
    others = [f"{number:0{DIGITS}}" for number in drawn.tolist()]
    return [number for number in others if number != canary.digits][: scene.settings.candidates]


def by_copies(ranks: Sequence[Ranked]) -> dict[int, list[Ranked]]:
    """Return canaries by their number of copies in the rows; `KEPT_OUT`: those that coins kept out."""
    return grouped((one.canary, one) for one in ranks)


def grouped(found: Iterable[tuple[Canary, Found]]) -> dict[int, list[Found]]:
    """Return what was found of canaries by their number of copies in the rows, as `by_copies` has them."""
    groups: dict[int, list[Found]] = defaultdict(list)
    for canary, one in found:
        groups[canary.copies if canary.planted else KEPT_OUT].append(one)
    return dict(sorted(groups.items()))


def copies_text(copies: int) -> str:
    """Return a number of copies in words."""
    return f"{copies} copies" if copies > 1 else "1 copy" if copies else "kept out (control)"


class Exposure(Audit):
    """Exposure by number of copies, beside canaries that were kept out."""

    title: ClassVar[str] = "Exposure of canaries"
    means: ClassVar[str] = (
        "Bits by which the model narrows a secret number down; a model that does not know it gives 1.2 to 1.5 bits, by "
        "chance."
    )
    defence: ClassVar[str] = (
        "Fewer copies (clean duplicates), fewer passes, and differential privacy of the unit that the copies are of."
    )
    needs: ClassVar[tuple[str, ...]] = ("canaries",)

    def findings(self, scene: Scene) -> Findings:
        """Rank the canaries by the run's model, and by the one that it began from."""
        groups = by_copies(ranked(scene, scene.model))
        before = {} if scene.reference is None else by_copies(ranked(scene, scene.reference))
        most = math.log2(scene.settings.candidates + 1)
        numbers, rows = {}, []
        for copies, group in groups.items():
            mean = mean_of([one.exposure for one in group], 0, most)
            first = sum(one.exposure == most for one in group)
            start = mean_of([one.exposure for one in before[copies]], 0, most).value if copies in before else None
            numbers[str(copies)] = mean.as_json() | {"canaries": len(group), "first": first, "before": start}
            shown = "" if start is None else f"{start:.2f}"
            rows.append([copies_text(copies), str(len(group)), str(mean), f"{first}", shown])
        _check_control(groups.get(KEPT_OUT, []), most)
        heads = ["in the rows", "canaries", "exposure, bits (95 %)", "ranked first", "before training"]
        notes = [f"The rank is among {scene.settings.candidates} random numbers, so that {most:.1f} bits are the most."]
        low = [copies_text(copies) for copies in groups if copies != KEPT_OUT and numbers[str(copies)]["low"] <= CHANCE]
        notes += [f"Not above chance ({CHANCE:.2f} bits): {', '.join(low)}."] if low else []
        if KEPT_OUT not in groups:
            notes.append("The coins kept no canary out, so that no control shows what chance is: train with more.")
        return Findings({"by_copies": numbers, "most": most}, heads, rows, notes)


def _check_control(kept_out: Sequence[Ranked], most: float) -> None:
    """Refuse to speak where canaries that nobody trained on are exposed, too."""
    if len(kept_out) < 2:
        return
    mean = mean_of([one.exposure for one in kept_out], 0, most)
    # Exposures of random ranks, in nats, are exponential: P[their sum > x] = P[Poisson(x) < n].
    total = mean.value * len(kept_out) * math.log(2)
    logs = [count * math.log(total) - total - math.lgamma(count + 1) for count in range(len(kept_out))] if total else []
    if mean.value > CHANCE and sum(map(math.exp, logs)) < IMPOSSIBLE:
        raise CannotAudit(
            f"Canaries that are not in the rows have an exposure of {mean} bits, and chance gives {CHANCE:.2f}: what "
            "is measured is not memory, so that no exposure is printed; write another --seed to see whether it stays."
        )
