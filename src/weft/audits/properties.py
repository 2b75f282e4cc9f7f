"""Property inference: whether a client's rows of a step speak of something, told by a probe of its update.

Melis et al. 2019, Exploiting Unintended Feature Leakage in Collaborative Learning (arXiv 1805.04049). The property is a
word that about a third of the rows have. The attacker has rows of its own, here those that the run held out, makes
updates with and without the word, and learns to tell them apart; it is tested on updates of training rows.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from weft.audits.audit import Audit, Findings
from weft.audits.recall import under_masks
from weft.audits.scene import Scene
from weft.audits.sent import Row, Station, flat
from weft.audits.settings import CannotAudit
from weft.audits.statistics import Estimate, auc, mean_of
from weft.json_types import JsonObject

UPDATES = 24
"""Updates of each kind, with and without the word, to learn from, and as many to be tested on."""
FEWEST = 12
SHUFFLES = 40
WIDTH = 64
"""Numbers that an update is projected to."""
WANTED = 0.35
"""Share of the rows that have the word."""


class Properties(Audit):
    """A ridge regression on projected updates."""

    title: ClassVar[str] = "Property inference"
    means: ClassVar[str] = (
        "AUC: how well updates of rows with a word are told from those without, by somebody with rows of the same "
        "kind; 0.5 by chance, and with labels that were shuffled (control)."
    )
    defence: ClassVar[str] = "Masks (for more than a few clients), and differential privacy of a client."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Make updates, learn from half of them, and tell the others apart."""
        station, chance = Station(scene), scene.chance("property")
        table = station.host.train_clients.table
        known = _rows(station, scene, held_out=True)
        asked = _rows(station, scene, held_out=False)
        words = {row: frozenset(table[row.number][0].tolist()) for row in (*known, *asked)}
        word = _word([words[row] for row in known])
        sets = [_both(rows, words, word, chance) for rows in (known, asked)]
        few = min(len(part) for pair in sets for part in pair)
        if few < FEWEST:
            raise CannotAudit(
                f"{few} rows with or without a word are at hand, and {FEWEST} of each kind are needed, of rows that "
                "were held out and of rows that were trained on: write a larger --eval_fraction."
            )
        features = [[_features(station, rows) for rows in pair] for pair in sets]
        found = _told(features[0], features[1])
        known_ones = np.concatenate(features[0])
        # A single random probe is right or wrong by luck, where the updates differ: the mean of many must not be.
        shuffled = [np.array_split(chance.permutation(known_ones), 2) for _ in range(SHUFFLES)]
        control = mean_of([_told(pair, features[1]).value for pair in shuffled], 0, 1)
        if not control.holds(0.5) and abs(control.value - 0.5) > 0.1:
            raise CannotAudit(
                f"The control failed: a probe of shuffled labels has an AUC of {control}, so that the number says "
                "nothing; write another --seed."
            )
        name = scene.text(np.array([word]))
        numbers: JsonObject = {"word": name, "auc": found.as_json(), "control": control.as_json(), "updates": few}
        rows = [
            ["updates of one row, one step", str(found)],
            [f"mean of {SHUFFLES} shuffles of the labels (control)", str(control)],
        ]
        told = found.low > max(0.5, control.value)
        notes = [] if told else ["The AUC is not above that of shuffled labels: nothing was read of the rows."]
        return Findings(numbers, [f"rows with '{name}'", "AUC (95 %, DeLong)"], rows, notes + under_masks(scene))


def _rows(station: Station, scene: Scene, *, held_out: bool) -> list[Row]:
    """Return rows of all clients, at random; of one client after the other."""
    people = station.host.eval_clients if held_out else station.host.train_clients
    names = set(station.host.train_clients.names)
    found = [
        Row(client.name, int(number))
        for client in people
        if client.name in names
        for number in (client.held_out if held_out else client.train).index
    ]
    return [found[int(place)] for place in scene.chance("rows", str(held_out)).permutation(len(found))]


def _word(rows: list[frozenset[int]]) -> int:
    """Return the token whose share of the rows is nearest to what is wanted."""
    counts: dict[int, int] = {}
    for row in rows:
        for token in row:
            counts[token] = counts.get(token, 0) + 1
    if not counts:
        raise CannotAudit("The run held out no rows, from which an attacker could learn: write --eval_fraction 0.2.")
    return min(counts, key=lambda token: (abs(counts[token] / len(rows) - WANTED), token))


def _both(
    rows: list[Row], words: dict[Row, frozenset[int]], word: int, chance: np.random.Generator
) -> tuple[list[Row], list[Row]]:
    """Return as many rows with a word as without."""
    inside = [row for row in rows if word in words[row]][:UPDATES]
    outside = [row for row in rows if word not in words[row]][:UPDATES]
    many = min(len(inside), len(outside))
    return inside[:many], outside[:many]


def _features(station: Station, rows: list[Row]) -> np.ndarray:
    """Return (rows, width): updates of one step, projected at random, each of norm 1."""
    results = []
    for row in rows:
        delta = flat(station.one_step(row).delta)
        # The same projection every time, made anew, as it is as large as WIDTH models.
        chance = torch.Generator().manual_seed(0)
        places = torch.randint(WIDTH, (len(delta),), generator=chance)
        signs = torch.randint(2, (len(delta),), generator=chance) * 2.0 - 1.0
        sketch = torch.zeros(WIDTH).index_add(0, places, signs * delta)
        results.append((sketch / sketch.norm().clamp(min=1e-12)).numpy())
    return np.array(results, dtype=np.float64)


def _told(known: list[np.ndarray], asked: list[np.ndarray]) -> Estimate:
    """Return the area of a ridge regression that learnt from updates with and without, on others."""
    both = np.concatenate(known)
    middle = both.mean(axis=0)
    labels = np.repeat([1.0, -1.0], [len(known[0]), len(known[1])])
    centred = both - middle
    weights = np.linalg.solve(centred.T @ centred + 0.1 * np.eye(WIDTH), centred.T @ labels)
    return auc((asked[0] - middle) @ weights, (asked[1] - middle) @ weights)
