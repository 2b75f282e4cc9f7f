"""New-token canaries: whether the model knows tokens that occur in no other row (Panda et al. 2025, 2503.06808)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.epsilon import bounded
from weft.audits.exposure import copies_text, grouped
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.audits.statistics import Estimate, auc, share, tpr_at
from weft.audits.tokens import readable
from weft.evaluation.heldout import rank
from weft.json_types import JsonObject
from weft.launch.canaries import Canary
from weft.launch.canary_tokens import KIND
from weft.models.layout import Question
from weft.models.resident import Resident

QUANTILE = 3.2905
"""Of the normal distribution: the interval of the control is one of 99.9 %."""


class NewTokens(Audit):
    """Membership of canaries by the log-probability of their tokens."""

    title: ClassVar[str] = "New-token canaries"
    means: ClassVar[str] = (
        "AUC: how well records that are in the rows are told from those that coins kept out, by the log-probability of "
        "their tokens, which no other row has; 0.5 by chance, and by the model before training (control)."
    )
    defence: ClassVar[str] = "Fewer copies and passes, and differential privacy of the unit that the copies are of."
    needs: ClassVar[tuple[str, ...]] = ("canaries", "rows")

    def check(self, scene: Scene) -> None:
        """Refuse a run without such canaries, too."""
        if scene.config.canaries and not scene.config.canary_tokens:
            raise CannotAudit(
                f"The run in '{scene.run.path}' has no new-token canaries: train it with --canary_tokens 32, or write "
                "--tests exposure."
            )
        super().check(scene)

    def findings(self, scene: Scene) -> Findings:
        """Score every canary by the run's model, and by the one that it began from."""
        canaries = [one for one in scene.population.canaries if one.kind == KIND and scene.taught(one.client)]
        inside = np.array([canary.planted for canary in canaries], dtype=bool)
        if not 0 < inside.sum() < len(canaries):
            raise CannotAudit(
                f"Of {len(canaries)} new-token canaries {inside.sum()} are in the rows, so that there is nothing to "
                "compare: train with more --canary_tokens."
            )
        after = _logps(scene, scene.model, canaries)
        numbers: JsonObject = {"canaries": len(canaries), "planted": int(inside.sum())}
        rows = [_line("log-probability", after, inside, numbers)]
        scores = after
        if scene.reference is not None:
            before = _logps(scene, scene.reference, canaries)
            _check_control(auc(before[inside], before[~inside], QUANTILE))
            scores = after - before
            rows.append(_line("what it rose by", scores, inside, numbers))
            rows.append(_line("before training (control)", before, inside, numbers))
        notes = [self._written(scene, canaries, numbers)]
        if auc(scores[inside], scores[~inside]).low <= 0.5:
            notes.append(
                "The AUC is not above chance: nothing shows that the model knows which records are in the rows."
            )
        try:
            lower = bounded(scene, list(zip(canaries, scores.tolist(), strict=True)))
            numbers["epsilon"] = lower.numbers
            notes += [f"Epsilon from below: {lower.heads[2]} {lower.rows[0][2]}, by {lower.rows[0][1]} right guesses."]
            notes += lower.notes
        except CannotAudit as error:
            notes.append(f"No bound of epsilon. {error}")
        return Findings(numbers, ["score", "AUC (95 %, DeLong)", "TPR at 1 % FPR"], rows, notes)

    def _written(self, scene: Scene, canaries: Sequence[Canary], numbers: JsonObject) -> str:
        """Ask for every token, and return in a sentence how many are written."""
        prompts = [prompt for prompt, _ in _questions(scene, canaries)]
        hits = zip(canaries, scene.write(prompts, 4), strict=True)
        groups = grouped((canary, text.split()[:1] == [canary.answer]) for canary, text in hits)
        rates = {copies: share(sum(found), len(found)) for copies, found in groups.items()}
        numbers["written"] = {str(copies): rate.as_json() for copies, rate in rates.items()}
        shown = (f"{copies_text(copies)} {sum(found)} of {len(found)}" for copies, found in groups.items())
        return f"Tokens that the model writes when it is asked: {', '.join(shown)}."


def _questions(scene: Scene, canaries: Sequence[Canary]) -> list[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Return the ids of every canary's question, and of its own answer and that of the next canary."""
    others = [*canaries[1:], canaries[0]]
    return [scene.question(one, [one.answer, other.answer]) for one, other in zip(canaries, others, strict=True)]


def _logps(scene: Scene, model: Resident, canaries: Sequence[Canary]) -> np.ndarray:
    """Return (canaries,): the log-probability (nats) of each answer."""
    questions = [Question(readable(model, prompt), choices) for prompt, choices in _questions(scene, canaries)]
    with model.evaluating():
        return np.array([logps[0] for _, logps in rank(model, questions, scene.settings.batch_size)])


def _line(name: str, scores: np.ndarray, inside: np.ndarray, numbers: JsonObject) -> list[str]:
    """Add what a score tells to the numbers, and return its cells of the table."""
    area: Estimate = auc(scores[inside], scores[~inside])
    rate = tpr_at(scores[inside], scores[~inside], 0.01)
    numbers[name] = {"auc": area.as_json(), "tpr_at_0.01": rate and rate.as_json()}
    return [name, str(area), "too few kept out" if rate is None else str(rate)]


def _check_control(before: Estimate) -> None:
    """Refuse where a model that was not trained on any tells them apart: raise CannotAudit."""
    if not before.holds(0.5):
        raise CannotAudit(
            f"The control failed: the model before training tells the canaries in the rows from the others with an "
            f"AUC of {before} (99.9 %), so that the number says nothing; train with another secret: another run."
        )
