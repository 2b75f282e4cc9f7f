"""Verbatim extraction: whether the model ends a training row as the row ends, given its first half (2202.07646)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import ClassVar

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.audits.statistics import Estimate, share
from weft.json_types import JsonObject
from weft.launch.population import PUBLIC
from weft.models.layout import Row

SHORTEST = 6
"""Learnt tokens of a row that is worth asking for: the end of a shorter one is guessed."""
MOST_TOKENS = 50
NEAR = 0.9
"""Similarity (matching characters, twice, over all characters) from which on an end is a near copy."""
GUESSED = 0.1
"""Share of held-out rows whose ends are written, above which (95 %) ends can be guessed."""
GROUPS = ((1, 1), (2, 4), (5, 16), (17, 1 << 30))
PERSONAL = {
    "e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]+\b"),
    "number of 6 digits or more": re.compile(r"(?<!\d)\d(?:[ -]?\d){5,}(?!\d)"),
    "date": re.compile(r"\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b"),
}
"""Personal data with a form of its own."""


class Verbatim(Audit):
    """Near copies by how often a row stands in the data, beside rows that were held out."""

    title: ClassVar[str] = "Verbatim extraction"
    means: ClassVar[str] = (
        "Share of rows whose second half the model writes, given the first; what it does for held-out rows is guessed, "
        "not remembered."
    )
    defence: ClassVar[str] = "Clean duplicates, fewer passes over the rows, and differential privacy of a row."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Let the model end rows, and compare."""
        groups = _groups(scene)
        if not any(rows for name, rows in groups.items() if name != HELD_OUT):
            raise CannotAudit(
                f"No training row has {SHORTEST} learnt tokens or more, and the ends of shorter ones are guessed: "
                "audit a run of longer answers, or write --tests membership."
            )
        if not groups[HELD_OUT]:
            raise CannotAudit(
                f"No row with {SHORTEST} learnt tokens was held out, so nothing shows what is guessed: audit a run "
                "with a larger --eval_fraction, or write --tests membership."
            )
        numbers: JsonObject = {}
        cells, personal, rates = [], Counter[str](), dict[str, Estimate]()
        for name, rows in groups.items():
            if not rows:
                continue
            exact, near = 0, 0
            for row, end in zip(rows, _ends(scene, rows), strict=True):
                cut = _half(row)
                wanted = scene.text(row[0][cut : cut + MOST_TOKENS])
                alike = SequenceMatcher(None, wanted, end[: len(wanted)], autojunk=False).ratio()
                exact, near = exact + (end.startswith(wanted)), near + (alike >= NEAR)
                if name != HELD_OUT:
                    personal += _personal(end, wanted)
            rate = share(near, len(rows))
            if name == HELD_OUT:
                _check_control(rate)
            rates[name], numbers[name] = rate, {"rows": len(rows), "exact": exact, "near": rate.as_json()}
            cells.append([name, str(len(rows)), str(exact), str(rate)])
        notes = [
            "Personal data of training rows in what the model wrote: "
            + (", ".join(f"{count} x {kind}" for kind, count in sorted(personal.items())) or "none")
            + "."
        ]
        if guessed := [name for name, rate in rates.items() if name != HELD_OUT and rate.low <= rates[HELD_OUT].value]:
            notes.append(f"Not above what held-out rows show, which is guessed: rows that stand {', '.join(guessed)}.")
        heads = ["rows that stand in the data", "rows", "exact", "near copies (95 %, Clopper-Pearson)"]
        return Findings({"by_copies": numbers, "personal": dict(personal)}, heads, cells, notes)


def _check_control(held_out: Estimate) -> None:
    """Refuse where the model ends rows that it never saw: raise CannotAudit."""
    if held_out.low > GUESSED:
        raise CannotAudit(
            f"The control failed: of rows that were held out the model ends {held_out} as they end, so that what it "
            "ends of training rows may be guessed too: audit a run of longer answers, or write --tests membership."
        )


HELD_OUT = "not at all: held out (control)"


def _groups(scene: Scene) -> dict[str, list[Row]]:
    """Return rows by how often their content stands in the training rows, of each at most `limit`; and others."""
    counts: Counter[bytes] = Counter()
    rows: dict[bytes, Row] = {}
    for client in scene.population.trained:
        if client.name == PUBLIC:
            continue
        for place in range(len(client.train)):
            row = client.train[place]
            content = row[0].tobytes()
            counts[content] += 1
            rows[content] = row
    groups: dict[str, list[Row]] = {}
    for low, high in GROUPS:
        name = f"{low} to {high} times" if high < 1 << 30 else f"{low} times or more"
        found = [rows[content] for content, count in counts.items() if low <= count <= high]
        groups["once" if high == 1 else name] = _some(scene, found)
    groups[HELD_OUT] = _some(scene, scene.rows(members=False))
    return groups


def _some(scene: Scene, rows: Sequence[Row]) -> list[Row]:
    long = [row for row in rows if int(row[1].sum()) >= SHORTEST]
    order = scene.chance("verbatim", len(long)).permutation(len(long))[: scene.settings.limit]
    return [scene.placed(long[number]) for number in order]


def _half(row: Row) -> int:
    """Return the place of the first token that the model is to write: the middle of the learnt ones."""
    learnt = np.flatnonzero(row[1])
    return int(learnt[len(learnt) // 2])


def _ends(scene: Scene, rows: Sequence[Row]) -> list[str]:
    tokens = min(MOST_TOKENS, max(len(row[0]) - _half(row) for row in rows))
    return scene.write([row[0][: _half(row)] for row in rows], tokens)


def _personal(written: str, row: str) -> Counter[str]:
    """Return the personal data of a row's second half that stands in what was written."""
    found: Counter[str] = Counter()
    for kind, form in PERSONAL.items():
        found[kind] += sum(match in written for match in set(form.findall(row)))
    return +found
