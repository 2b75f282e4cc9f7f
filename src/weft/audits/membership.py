"""Membership inference: whether a row was trained on, told by what the model says of it.

Scores, larger for members: loss (Yeom et al. 2018, 1709.01604); zlib, the loss over the compressed length (Carlini et
al. 2021, 2012.07805); Min-K%++, the mean of the lowest fifth of standardised log-probabilities (Zhang et al. 2024,
2404.02936); reference, what the loss fell by (Mireshghallah et al. 2022, 2203.03929); LiRA, a likelihood ratio by a few
shadow models (Carlini et al. 2022, 2112.03570).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.blind import blind
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.audits.shadows import passes, shadow_losses
from weft.audits.statistics import Estimate, auc, tpr_at
from weft.audits.tokens import Scored, scored
from weft.json_types import JsonObject
from weft.models.layout import Row

LOWEST = 0.2
"""Share of a row's tokens of which Min-K%++ is the mean."""
FEWEST = 10
RATES = (0.01, 0.001)
COIN = "coin (control)"


class Membership(Audit):
    """Areas and true positive rates of five scores, on a random split that the run kept aside."""

    title: ClassVar[str] = "Membership inference"
    means: ClassVar[str] = (
        "AUC: how well members are told from rows that were held out, 0.5 by chance; TPR: the share of members that "
        "are recognised where 1 % or 0.1 % of the others are taken for members."
    )
    defence: ClassVar[str] = "Fewer passes over the rows, and differential privacy of a row."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Score members and others, unless words alone tell them apart."""
        members, others = scene.rows(members=True), scene.rows(members=False)
        many = min(len(members), len(others))
        if many < FEWEST:
            raise CannotAudit(
                f"{len(others)} rows of the run were held out and are not among the training rows, too few to compare "
                f"with: train it with a larger --eval_fraction, so that there are {FEWEST} or more."
            )
        members, others = members[:many], others[:many]
        words = blind([row[0] for row in members], [row[0] for row in others], scene.chance("blind"))
        if not words.holds(0.5):
            raise CannotAudit(
                f"A bag of words, which never asks the model, tells the training rows from the held-out ones with an "
                f"AUC of {words}: the two differ by more than membership, so that no number of an attack means "
                "anything; hold out a random part of the rows themselves (--eval_fraction, no source of its own)."
            )
        scores = scores_of(scene, [*members, *others], many)
        scores[COIN] = scene.chance("coin").random(2 * many)
        numbers: JsonObject = {}
        rows: list[list[str]] = []
        for name, values in scores.items():
            inside, outside = values[:many], values[many:]
            area, rates = auc(inside, outside), [tpr_at(inside, outside, rate) for rate in RATES]
            told = {f"tpr_at_{rate:g}": one and one.as_json() for rate, one in zip(RATES, rates, strict=True)}
            numbers[name] = {"auc": area.as_json(), **told}
            rows.append([name, str(area), *map(_shown, rates)])
        heads = ["score", "AUC (95 %, DeLong)", *(f"TPR at {rate:.1%} FPR (95 %, Clopper-Pearson)" for rate in RATES)]
        low = [name for name, score in numbers.items() if name != COIN and score["auc"]["low"] <= 0.5]
        notes = _notes(many, words) + ([f"Not above chance: {', '.join(low)}."] if low else [])
        if scene.settings.shadows and not any(name.startswith("LiRA") for name in scores):
            notes.append("LiRA is left out: the run does not learn by gradients, or its shadow models diverged.")
        passed = passes(scene)
        if passed < 1:
            notes.append(
                f"The run went over {passed:.0%} of its training rows, so that many members were never trained on, and "
                "each number is nearer to chance than for those that were."
            )
        found: JsonObject = {"rows": many, "passes": passed, "blind": words.as_json(), "scores": numbers}
        return Findings(found, heads, rows, notes)


def _notes(many: int, words: Estimate) -> list[str]:
    return [
        f"{many} rows of each kind. A bag of words, which never asks the model, has an AUC of {words} (99.9 %), "
        "as it must: the split is random.",
        *([] if many >= 1000 else ["A rate at 0.1 % needs 1,000 held-out rows, one at 1 % needs 100 (--limit)."]),
    ]


def _shown(rate: Estimate | None) -> str:
    return "too few rows" if rate is None else str(rate)


def scores_of(scene: Scene, rows: Sequence[Row], members: int) -> dict[str, np.ndarray]:
    """Return every score of rows, the first so many of which are members; larger where it takes them for members."""
    size = scene.settings.batch_size
    found = scored(scene.model, rows, size)
    losses = np.array([-one.logps.mean() for one in found])
    scores = {
        "loss": -losses,
        "zlib": np.array([one.logps.sum() for one in found]) / _compressed(scene, rows),
        "Min-K%++": np.array([min_k_plus(one) for one in found]),
    }
    if scene.reference is not None:
        before = np.array([-one.logps.mean() for one in scored(scene.reference, rows, size)])
        scores["reference"] = before - losses
    shadows = shadow_losses(scene, rows)
    if shadows is not None:
        scores[f"LiRA, {len(shadows[0])} shadows"] = likelihood_ratio(-losses, *shadows)
    return scores


def min_k_plus(row: Scored) -> float:
    """Return the mean of the lowest fifth, at least one, of a row's standardised log-probabilities."""
    count = max(1, int(LOWEST * len(row.standard)))
    return float(np.sort(row.standard)[:count].mean())


def likelihood_ratio(scores: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the log of the ratio of two normal densities, with one deviation for all rows: shadows are few.

    Args:
        scores: (rows,) of the audited model.
        shadows: (shadows, rows) of the shadow models.
        inside: (shadows, rows) bool: the shadow was trained on the row; each row has both kinds.
    """
    means = [np.where(kind, shadows, 0.0).sum(axis=0) / np.maximum(kind.sum(axis=0), 1) for kind in (inside, ~inside)]
    rest = shadows - np.where(inside, means[0], means[1])
    # Of each row two means were taken, which leaves so many fewer differences.
    variance = (rest**2).sum() / max(1, rest.size - 2 * rest.shape[1]) + 1e-12
    ratio: np.ndarray = ((scores - means[1]) ** 2 - (scores - means[0]) ** 2) / (2 * variance)
    return ratio


def _compressed(scene: Scene, rows: Sequence[Row]) -> np.ndarray:
    """Return the bytes of each row's learnt text when it is compressed."""
    return np.array([len(zlib.compress(scene.text(ids[learn]).encode())) for ids, learn in rows], dtype=float)
