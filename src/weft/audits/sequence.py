"""Reconstruction of a row's text: a search for its gradient, and a language prior for the order of the words.

Balunovic et al. 2022, LAMP (arXiv 2202.08827): between searches by the gradient, tokens are exchanged, moved and
replaced, and what fits the update better and is likelier as language is kept. The prior is the shared model itself,
which a curious server has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.inversion import Searched, searched
from weft.audits.matching import Guess, Matching
from weft.audits.recall import own_and_next, under_masks
from weft.audits.scene import Scene
from weft.audits.statistics import Estimate, mean_of
from weft.audits.subsequence import rouge_l
from weft.json_types import JsonObject

CYCLES = 2
MOVES = 150
"""Changes that are tried in each cycle."""
ITERATIONS = 40
"""Of the search by the gradient between cycles."""
PRIOR = 0.01
"""Weight of a token's mean loss (nats) beside the distance of gradients, which is at most about 4."""
NEAREST = 3
"""Tokens that each vector may be read as."""


class Texts(Audit):
    """ROUGE-L of reconstructed rows, beside other rows and random tokens."""

    title: ClassVar[str] = "Reconstruction of texts (LAMP)"
    means: ClassVar[str] = (
        "ROUGE-L of a row and what is reconstructed from its update, tokens and their order; the control compares with "
        "another row's update, chance with as many random tokens of the rows."
    )
    defence: ClassVar[str] = "Larger batches and more steps make it harder; differential privacy bounds it."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Reconstruct a few rows from their updates."""
        rows = searched(scene)
        texts = [_reconstructed(one, scene, scene.chance("sequence", place)) for place, one in enumerate(rows)]
        wanted = [one.ids.tolist() for one in rows]
        after = [*texts[1:], texts[0]]
        step, control = (_mean(wanted, some) for some in (texts, after))
        chance = _mean(wanted, [_random(scene, place, wanted) for place in range(len(rows))])
        words, misled = own_and_next([one.own for one in rows], [frozenset(text) for text in texts])
        numbers: JsonObject = {
            "rouge_l": step.as_json(), "control": control.as_json(), "chance": chance.as_json(),
            "words": words.as_json(), "words_control": misled.as_json(), "rows": len(rows),
        }  # fmt: skip
        cells = [
            ["one row, one step", str(step), str(words)],
            ["another row's update (control)", str(control), str(misled)],
            ["random tokens of other rows (chance)", str(chance), ""],
        ]
        return Findings(numbers, ["update of", "ROUGE-L (95 %)", "words found (95 %)"], cells, _notes(scene, numbers))


def _notes(scene: Scene, numbers: JsonObject) -> list[str]:
    rows = numbers["rows"]
    moves = scene.settings.few(MOVES)
    notes = [f"{CYCLES} cycles of {moves} changes for each of {rows} rows, behind the search of `inversion`."]
    if numbers["rouge_l"]["value"] <= 1.5 * max(numbers["control"]["value"], numbers["chance"]["value"]):
        notes.append("ROUGE-L is hardly above its control: no text was read that is the row's own.")
    return notes + under_masks(scene)


def _mean(wanted: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> Estimate:
    return mean_of([rouge_l(one, other) for one, other in zip(wanted, found, strict=True)], 0, 1)


def _random(scene: Scene, place: int, rows: Sequence[Sequence[int]]) -> list[int]:
    """Return as many tokens as a row has, drawn from the other rows."""
    others = np.concatenate([row for number, row in enumerate(rows) if number != place])
    drawn: list[int] = scene.chance("random tokens", place).choice(others, len(rows[place])).tolist()
    return drawn


def _reconstructed(row: Searched, scene: Scene, chance: np.random.Generator) -> list[int]:
    """Return the tokens (T,) that fit the update best, of all that were tried."""
    matching, guess = row.matching, row.guess
    best, least = _better_reading(matching, guess)
    for cycle in range(CYCLES):
        pool = _pool(matching, guess)
        for _ in range(scene.settings.few(MOVES)):
            tried = moved(best, pool, chance)
            score = _score(matching, tried)
            if score < least:
                best, least = tried, score
        if cycle + 1 < CYCLES:
            guess = matching.improved(matching.of(best), scene.settings.few(ITERATIONS))
            read, score = _better_reading(matching, guess)
            if score < least:
                best, least = read, score
    return best


def _score(matching: Matching, tokens: Sequence[int]) -> float:
    distance, loss = matching.distance(tokens)
    return distance + PRIOR * loss


def _better_reading(matching: Matching, guess: Guess) -> tuple[list[int], float]:
    """Return a guess as tokens, by its vectors or by its labels, whichever fits better, and how well it does."""
    vectors = matching.read(guess)[:, 0].tolist()
    labels = [vectors[0], *guess.labels[1:].argmax(1).tolist()]
    return min(((tokens, _score(matching, tokens)) for tokens in (vectors, labels)), key=lambda pair: pair[1])


def _pool(matching: Matching, guess: Guess) -> list[int]:
    """Return the tokens that a guess may be read as, at whatever place."""
    labels = guess.labels[1:].topk(NEAREST, dim=1).indices.flatten().tolist()
    return [*matching.read(guess, NEAREST).flatten().tolist(), *labels]


def moved(tokens: Sequence[int], pool: Sequence[int], chance: np.random.Generator) -> list[int]:
    """Return tokens with one change: two exchanged, one or several moved, the beginning put last, or one replaced.

    Args:
        tokens: (T,), at least two.
        pool: tokens that may take the place of one.
        chance: draws the change.
    """
    changed, many = list(tokens), len(tokens)
    kind = int(chance.integers(5))
    first, second = sorted(int(place) for place in chance.choice(many, 2, replace=False))
    if kind == 0:
        changed[first], changed[second] = changed[second], changed[first]
    elif kind == 1:
        changed.insert(second, changed.pop(first))
    elif kind == 2:
        part, rest = changed[first:second], [*changed[:first], *changed[second:]]
        at = int(chance.integers(len(rest) + 1))
        changed = [*rest[:at], *part, *rest[at:]]
    elif kind == 3:
        changed = [*changed[second:], *changed[:second]]
    else:
        changed[int(chance.integers(many))] = pool[int(chance.integers(len(pool)))]
    return changed
