"""What the vectors of a learnt prompt say: each is read as the token whose embedding points most nearly its way.

Khashabi et al. 2022, Prompt Waywardness (2112.08348), find that such a reading need not say what the prompt does. Here
it is asked whether it gives away words of the training rows, or the text that the prompt began from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.audits.audit import Audit, Findings
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.audits.statistics import Estimate, share
from weft.json_types import JsonObject

DRAWS = 200
"""Sets of random vectors, each of as many as the prompt has."""
TEMPLATE = 0.9
"""Share of the rows from which on a token is of their template."""
START = "prompt_encoder.default.embedding.weight"


class SoftPrompt(Audit):
    """Nearest tokens of a prompt's vectors, beside those of random vectors."""

    title: ClassVar[str] = "Words in a learnt prompt"
    means: ClassVar[str] = (
        "Share of the prompt's vectors whose nearest token is a word of the training rows; random vectors of the same "
        "mean and spread show what is chance (control)."
    )
    defence: ClassVar[str] = (
        "Random tokens to begin from (no --prompt_init_text that is secret), and differential privacy of the rows."
    )
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Read the vectors, and what they began from."""
        front = scene.model.front
        if front is None or front.length:
            raise CannotAudit(
                "The run has no vectors among the embeddings to read: audit one of `weft prompt --prompt_method soft` "
                "(or p_tuning, black_box)."
            )
        table = scene.model.base.get_input_embeddings().weight.detach().float().cpu()
        vectors = front.vectors().detach().float().cpu()
        words = own_words([row[0] for row in scene.rows(members=True)])
        read = nearest(vectors, table)
        chance = torch.Generator().manual_seed(scene.settings.seed)
        drawn = nearest(_like(vectors, DRAWS * len(vectors), chance), table)
        found, control = _share(read, words), _share(drawn, words)
        numbers: JsonObject = {"vectors": len(vectors), "words": found.as_json(), "control": control.as_json()}
        rows = [["learnt vectors", str(found)], ["random vectors (control)", str(control)]]
        rows += self._start(scene, read, drawn, table, words, numbers)
        notes = [f"The vectors are read as: {scene.text(np.array(read))}"]
        if found.low <= control.value:
            notes.append("The share is not above that of random vectors: nothing of the rows was read.")
        return Findings(numbers, ["vectors", "read as words of the rows (95 %, Clopper-Pearson)"], rows, notes)

    def _start(
        self,
        scene: Scene,
        read: Sequence[int],
        drawn: Sequence[int],
        table: Tensor,
        words: frozenset[int],
        numbers: JsonObject,
    ) -> list[list[str]]:
        """Compare with the vectors that the prompt began from, where it began from tokens; return cells."""
        if scene.config.prompt_method == "p_tuning":  # its start is what an encoder reads, and no vectors of the model
            return []
        values = [value for name, value in scene.begun[2].items() if name.endswith(START)]
        if not values:
            return []
        began = nearest(values[0].detach().float().cpu(), table)
        kept = share(sum(map(int.__eq__, began, read)), len(began))
        guessed = share(sum(map(int.__eq__, began * DRAWS, drawn)), len(began) * DRAWS)
        first = _share(began, words)
        numbers["before"] = first.as_json()
        numbers["start_read"], numbers["start_control"] = kept.as_json(), guessed.as_json()
        return [
            ["before training", str(first)],
            ["read as the token that it began from", str(kept)],
            ["the same of random vectors (control)", str(guessed)],
        ]


def nearest(vectors: Tensor, table: Tensor) -> list[int]:
    """Return for each of (n, width) vectors the row of a (tokens, width) table with the largest cosine."""
    unit = torch.nn.functional.normalize(table, dim=1)
    ids: list[int] = (torch.nn.functional.normalize(vectors, dim=1) @ unit.T).argmax(1).tolist()
    return ids


def own_words(rows: Sequence[np.ndarray]) -> frozenset[int]:
    """Return the tokens of rows, without those of their template, which nearly all of them have."""
    counts = Counter(int(token) for row in rows for token in np.unique(row) if token >= 0)
    return frozenset(token for token, count in counts.items() if count < TEMPLATE * len(rows))


def _like(vectors: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """Return random vectors with the mean and the deviation of these."""
    noise = torch.randn(count, vectors.shape[1], generator=chance)
    return vectors.mean() + vectors.std() * noise


def _share(tokens: Sequence[int], words: frozenset[int]) -> Estimate:
    return share(sum(token in words for token in tokens), len(tokens))
