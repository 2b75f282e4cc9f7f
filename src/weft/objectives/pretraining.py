"""Tasks of pre-training: next tokens, fill-in-the-middle and prefix language modelling, each with a share of the rows.

Which task a row has, and where it is cut, is drawn anew for every step, from the step's seed and the row's content: a
resumed run draws the same, and so do several processes that share a batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from weft.core.seeds import generator
from weft.data.infilling import Infilling, after_prefix, two_places
from weft.data.tokenize import begin_and_end_ids
from weft.errors import ConfigError
from weft.models.fim_tokens import marks_of
from weft.models.layout import Row
from weft.models.resident import Resident
from weft.objectives.causal_lm import CausalLM

SHORTEST = 2
"""Tokens of text from which a row can be cut; a shorter one is learnt as it is."""


@dataclass(frozen=True)
class PretrainingTasks(CausalLM):
    """Causal rows, and rows of other tasks in their place.

    Fill-in-the-middle works on rows ("context level"), after documents were cut: no middle is torn from its prefix and
    suffix. The places are between tokens, where Bavarian et al. cut characters. Loss falls on prefix, suffix and middle
    alike, so that a share of it costs next-token prediction little (their section 4). A prefix has a uniform length, as
    in Raffel et al. 2020 (arXiv 1910.10683, section 3.1), and no loss. Attention stays causal on the prefix, too: no
    engine computes the prompts of these models in another way.
    """

    separable: ClassVar[bool] = False  # what a row becomes follows from `act`, which private steps do not call
    separable_with: ClassVar[str] = "write --pretraining_task causal"
    evaluator: ClassVar[str] = "pretraining"
    shares: dict[str, float] = field(default_factory=dict)
    """Of the tasks, by name; they add up to 1."""
    spm_share: float = 0.5
    infilling: Infilling | None = None
    """Set by `for_model`, where middles are filled in."""

    def for_model(self, model: Resident) -> Self:
        """Return the objective with the marks of the model's tokenizer."""
        found = super().for_model(model)
        return found if "fim" not in self.shares else replace(found, infilling=infilling_of(model.tokenizer))

    def act(self, model: Any, rows: Sequence[Row], seed: int) -> Sequence[Row]:
        """Return the rows, each as one of its task."""
        return [self.drawn(row, generator(seed, "task", zlib.crc32(row[0].tobytes()))) for row in rows]

    def drawn(self, row: Row, rng: np.random.Generator) -> Row:
        """Return a row as one of a task that is drawn by the shares."""
        coin, suffix_first = rng.random(), bool(rng.random() < self.spm_share)
        if coin < self.shares.get("fim", 0.0):
            assert self.infilling is not None
            begin, end = self.infilling.text(row)
            if end - begin < SHORTEST:
                return row
            return self.infilling.rearranged(row, *two_places(rng, begin, end), suffix_first=suffix_first)
        if coin < self.shares.get("fim", 0.0) + self.shares.get("prefix", 0.0):
            return self.with_prefix(row, rng)
        return row

    def with_prefix(self, row: Row, rng: np.random.Generator) -> Row:
        """Return a row of which a suffix is learnt: of one learnt token at least, of all of them at most."""
        learnt = np.flatnonzero(row[1])
        return after_prefix(row, int(learnt[rng.integers(len(learnt))])) if len(learnt) >= SHORTEST else row


def infilling_of(tokenizer: Any) -> Infilling:
    """Return how rows of a tokenizer are rearranged; ConfigError where it has no marks."""
    marks = marks_of(tokenizer)
    if marks is None:
        raise ConfigError(
            "The tokenizer has no tokens for fill-in-the-middle: write --pretraining_task causal or prefix."
        )
    begin, end = begin_and_end_ids(tokenizer)
    return Infilling(*marks, begin, end)
