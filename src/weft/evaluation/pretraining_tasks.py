"""Held-out rows of the tasks of pre-training: middles that are filled in, and suffixes that follow a prefix.

Each measure is of every held-out row that is long enough, cut at places that follow from its content alone: all rounds,
clients and runs with one tokenizer and seq_length are measured on the same cuts. The loss of plain next tokens is
measured beside them, as without tasks.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weft.core.declarations import Metric
from weft.core.objective import HeldOutRows
from weft.evaluation.heldout import HeldOut

if TYPE_CHECKING:
    import numpy as np

    from weft.core.types import Metrics
    from weft.federation.clients import View
    from weft.models.layout import Row
    from weft.models.resident import Resident

SPAN = 8
"""Tokens of a middle at most whose exact text is asked for: a whole one, of a third of a row, is nearly never met."""

FIM_LOSS = Metric("fim_loss", "loss of middles", "fim_tokens", ("fim_loss_sum",), better="lower")
"""Nats a token of a middle and its end, after prefix and suffix."""
MIDDLE_BITS = Metric(
    "middle_bits_per_byte",
    "bits per byte of middles",
    "middle_bytes",
    ("fim_loss_sum",),
    better="lower",
    derive=lambda sums: sums["fim_loss_sum"] / math.log(2) / sums["middle_bytes"],
)
"""The same loss over the bytes of the middles in UTF-8."""
INFILL_EXACT = Metric(
    "infill_exact",
    "middles filled in exactly",
    "infills",
    ("infills_exact",),
    better="higher",
    share=True,
    sums_are_counts=True,
    format=".1%",
)
"""The share of spans of 1 to `SPAN` tokens that greedy decoding gives back to the last token, with their end."""
PREFIX_LOSS = Metric("prefix_loss", "loss of suffixes", "prefix_tokens", ("prefix_loss_sum",), better="lower")
"""Nats a token of a suffix, after its prefix."""


@dataclass(frozen=True)
class PretrainingHeldOut(HeldOut):
    """Evaluates plain rows as `HeldOut` does, and then those of the run's other tasks."""

    objective: Any = None
    """The run's tasks (`weft.objectives.pretraining.PretrainingTasks`)."""
    metrics: ClassVar[tuple[Metric, ...]] = (*HeldOut.metrics, FIM_LOSS, MIDDLE_BITS, INFILL_EXACT, PREFIX_LOSS)

    @classmethod
    def make(cls, objective: object, batch_size: int, rows: HeldOutRows) -> Self:
        """Return the evaluator of a run with tasks."""
        return cls(batch_size, rows.questions, rows.text_bytes, objective)

    def evaluate(self, model: Resident, rows: View) -> Metrics:
        """Return the counts and sums of `HeldOut.evaluate`, and those of the run's other tasks."""
        metrics, shares = super().evaluate(model, rows), self.objective.shares
        plain = [rows[place] for place in range(len(rows))]
        with model.evaluating():
            if "fim" in shares:
                metrics |= self._middles(model, plain)
            if "prefix" in shares:
                suffixes = [self.objective.with_prefix(row, cuts(row, "prefix")) for row in plain if row[1].any()]
                metrics |= self._sums(model, suffixes, "prefix")
        return metrics

    def _sums(self, model: Resident, rows: list[Row], name: str) -> Metrics:
        found = self._losses(model, rows) if rows else {"loss_sum": 0.0, "loss_tokens": 0.0}
        return {f"{name}_loss_sum": found["loss_sum"], f"{name}_tokens": found["loss_tokens"]}

    def _middles(self, model: Resident, rows: list[Row]) -> Metrics:
        infilling, suffix_first = self.objective.infilling, self.objective.spm_share == 1
        whole, spans, size = [], [], 0
        for row in rows:
            begin, end = infilling.text(row)
            # One token of prefix at least: a model without a token before a text predicts no first one.
            if end - begin < 2:
                continue
            rng = cuts(row, "fim")
            first, last = sorted((rng.choice(end - begin, size=2, replace=False) + begin + 1).tolist())
            whole.append(infilling.rearranged(row, first, last, suffix_first=suffix_first, middle_only=True))
            size += text_size(model.tokenizer, row[0][first:last])
            last = min(last, first + int(rng.integers(1, SPAN, endpoint=True)))
            spans.append(infilling.rearranged(row, first, last, suffix_first=suffix_first, middle_only=True))
        metrics = self._sums(model, whole, "fim") | {"middle_bytes": float(size), "infills": float(len(spans))}
        exact = 0
        for at in range(0, len(spans), self.batch_size):
            exact += sum(greedy_is_exact(model, spans[at : at + self.batch_size]))
        return metrics | {"infills_exact": float(exact)}


def cuts(row: Row, purpose: str) -> np.random.Generator:
    """Return what the places of a held-out row are drawn from."""
    from weft.core.seeds import generator

    return generator(0, "held-out", purpose, zlib.crc32(row[0].tobytes()))


def greedy_is_exact(model: Resident, rows: list[Row]) -> list[bool]:
    """Return for each row whether greedy decoding from its unlearnt beginning gives its learnt tokens, all of them.

    It does exactly where each learnt token is the likeliest after those before it, which one pass tells.
    """
    from weft.models.layout import lay_out

    batch = lay_out(rows, pack=False, step=model.line_step).to(model.device)
    hits = (model.logits(batch).argmax(dim=-1) == batch.targets).tolist()
    counts = [int(learn[1:].sum()) for _, learn in rows]
    starts = [sum(counts[:place]) for place in range(len(counts))]
    return [all(hits[start : start + count]) for start, count in zip(starts, counts, strict=True)]


def text_size(tokenizer: Any, ids: np.ndarray) -> int:
    """Return the bytes of text in UTF-8 that some tokens stand for, also where they begin or end within a character."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None else str(backend.decoder)
    special, total = set(tokenizer.all_special_ids), 0
    for number, token in zip(ids.tolist(), tokenizer.convert_ids_to_tokens(ids.tolist()), strict=True):
        if number not in special:
            total += _size(token, byte_level="ByteLevel" in decoder)
    return total


def _size(token: str, *, byte_level: bool) -> int:
    """Return the bytes of a token: byte-level vocabularies have a sign for each, others write lone bytes as <0x0A>."""
    if byte_level:
        return len(token)
    return 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())
