"""Extraction of canaries: whether the model writes a canary's number when it is asked the question of its row."""

from __future__ import annotations

import re
from typing import ClassVar

from weft.audits.audit import Audit, Findings
from weft.audits.exposure import copies_text, grouped
from weft.audits.scene import Scene
from weft.audits.statistics import share


def leaks(text: str, digits: str) -> bool:
    """Say whether a text has a number, however it is written."""
    return digits in re.sub(r"\D", "", text)


class Extraction(Audit):
    """Greedy answers to the canaries' own questions."""

    title: ClassVar[str] = "Extraction of canaries"
    means: ClassVar[str] = "Share of secret numbers that the model writes to whoever asks the question of the row."
    defence: ClassVar[str] = (
        "Fewer copies (clean duplicates), fewer passes, and differential privacy of the unit that the copies are of."
    )
    needs: ClassVar[tuple[str, ...]] = ("canaries",)

    def findings(self, scene: Scene) -> Findings:
        """Ask for every canary."""
        questions = [scene.question(canary, [canary.answer, canary.written("000000")]) for canary in scene.canaries]
        tokens = max(len(choices[0]) for _, choices in questions) + 4
        answers = scene.write([prompt for prompt, _ in questions], tokens)
        pairs = zip(scene.canaries, answers, strict=True)
        numbers, rows = {}, []
        for copies, hits in grouped((canary, leaks(answer, canary.digits)) for canary, answer in pairs).items():
            rate = share(sum(hits), len(hits))
            numbers[str(copies)] = rate.as_json() | {"canaries": len(hits)}
            rows.append([copies_text(copies), f"{sum(hits)} of {len(hits)}", str(rate)])
        return Findings({"by_copies": numbers}, ["in the rows", "written", "rate (95 %, Clopper-Pearson)"], rows)
