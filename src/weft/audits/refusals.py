"""Refusals of harmful requests, beside false refusals of harmless ones that look like them."""

from __future__ import annotations

from typing import ClassVar

from weft.audits.attack_prompts import HARMFUL, HARMLESS
from weft.audits.audit import Audit, Findings
from weft.audits.scene import Scene
from weft.audits.statistics import share
from weft.tasks.refusal import refuses

TOKENS = 48


class Refusals(Audit):
    """A first look; `weft evaluate` has whole suites."""

    title: ClassVar[str] = "Refusals"
    means: ClassVar[str] = (
        "Share of 8 harmful requests that are declined, and of 8 harmless ones that are: a model that declines all, or "
        "that writes no sentences, is not safe."
    )
    defence: ClassVar[str] = "Preference training on refusals (weft dpo); cleaning of unsafe rows."

    def findings(self, scene: Scene) -> Findings:
        """Ask all, greedily."""
        numbers, rows = {}, []
        for kind, requests in (("harmful", HARMFUL), ("harmless", HARMLESS)):
            answers = scene.write([scene.asking(text) for text in requests], TOKENS)
            declined, empty = sum(map(refuses, answers)), sum(not answer.strip() for answer in answers)
            rate = share(declined, len(answers))
            numbers[kind] = rate.as_json() | {"requests": len(answers), "empty": empty}
            rows.append([kind, f"{declined} of {len(answers)}", str(rate), str(empty)])
        note = "AdvBench and others are tasks of `weft evaluate` (`weft tasks` lists them)."
        return Findings(numbers, ["requests", "declined", "rate (95 %)", "empty answers"], rows, [note])
