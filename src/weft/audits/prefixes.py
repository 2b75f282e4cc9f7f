"""A row's text read exactly from its update, token by token (the second step of DAGER, arXiv 2405.15586).

What the second layer reads at a place follows from the tokens up to there. Its gradient's row space holds these vectors
of the row, so that a beginning can be tested without the rest, and extended by each of the words that the first layer
gave away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from weft.audits.audit import Audit, Findings
from weft.audits.recall import under_masks
from weft.audits.scene import Scene
from weft.audits.sent import Row, Station, values_of
from weft.audits.settings import CannotAudit
from weft.audits.span import ROUNDING, Spans
from weft.audits.statistics import mean_of
from weft.audits.subsequence import rouge_l
from weft.core.types import Tensors
from weft.json_types import JsonObject
from weft.models.resident import Resident

SECOND_LAYER = re.compile(r"\.(?:layers|h|blocks)\.1\.(?:.*\.)?(?:q_proj|k_proj|v_proj|qkv_proj|query_key_value)\b")
ROWS = 4
LONGEST = 48
BEAM = 8
"""Beginnings that are kept."""
WIDER = 2
"""Words that are tried, for each that the row has: the first layer misses some."""


class Prefixes(Audit):
    """ROUGE-L of texts that were extended in the span of the second layer."""

    title: ClassVar[str] = "Texts in an update: the span of the second layer"
    means: ClassVar[str] = (
        "ROUGE-L of a row and the text that fits the update of the second layer, of words that fit the first; the "
        "control compares with another row's update."
    )
    defence: ClassVar[str] = (
        "Differential privacy with enough noise; more tokens in an update than the rank make it blind, and are no "
        "protection."
    )
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Ask clients for updates of single rows, and extend texts."""
        station = Station(scene)
        table = station.host.train_clients.table
        rows = [row for row in station.drawn(16) if len(table[row.number][0]) <= LONGEST]
        rows = rows[: min(scene.settings.few(ROWS), scene.settings.limit)]
        if len(rows) < 2:
            raise CannotAudit(f"Fewer than two rows have at most {LONGEST} tokens, and longer ones take hours.")
        spans = Spans(station.host.model, station.state.params)
        found = [_text(station, spans, row) for row in rows]
        wanted = [table[row.number][0][:-1].tolist() for row in rows]  # of the last token nothing is predicted
        pairs = zip(wanted, found, [*found[1:], found[0]], strict=True)
        scores = [(rouge_l(own, text), rouge_l(own, other)) for own, text, other in pairs]
        step, control = (mean_of([pair[place] for pair in scores], 0, 1) for place in range(2))
        exact = sum(own == text for own, text in zip(wanted, found, strict=True))
        numbers: JsonObject = {
            "rouge_l": step.as_json(), "control": control.as_json(), "exact": exact, "rows": len(rows),
        }  # fmt: skip
        cells = [
            ["one row, one step", str(step), f"{exact} of {len(rows)}"],
            ["another row's update (control)", str(control), ""],
        ]
        notes = [f"The attacker is told the rows' lengths and numbers of words; blind from {spans.most} tokens on."]
        if step.value <= 1.5 * control.value:
            notes.append("ROUGE-L is hardly above its control: no text was read that is the row's own.")
        notes += under_masks(scene)
        return Findings(numbers, ["update of", "ROUGE-L (95 %)", "whole rows"], cells, notes)


def _text(station: Station, spans: Spans, row: Row) -> list[int]:
    """Return the tokens (T - 1,) whose beginnings fit a row's update best."""
    sent = station.one_step(row)
    length = len(station.host.train_clients.table[row.number][0]) - 1
    count = len(sent.tokens[0])
    words = spans.scores(sent.delta, count).topk(min(WIDER * count, spans.vocabulary)).indices
    model, params = station.host.model, station.state.params
    model.load(values_of(model, params))
    names = [name for name in params if SECOND_LAYER.search(name) and name.endswith(".weight")]
    names = [name for name in names if ".lora_" not in name or ".lora_B." in name]
    if not names:
        raise CannotAudit("The update has no projection of the second layer's attention: `span` reads the first.")
    spaces = {name: _space(sent.delta[name], params[name], length) for name in names}
    texts, residues = torch.zeros((1, 0), dtype=torch.long), torch.zeros(1)
    for _ in range(length):
        longer = torch.cat([texts.repeat_interleave(len(words), 0), words.repeat(len(texts))[:, None]], dim=1)
        total = residues.repeat_interleave(len(words)) + _residue(model, params, spaces, longer)
        residues, best = total.topk(min(BEAM, len(total)), largest=False)
        texts = longer[best]
    result: list[int] = texts[0].tolist()
    return result


def _space(change: Tensor, start: Tensor, most: int) -> Tensor:
    """Return (rank, width): directions of an update's rows."""
    change = change.float().cpu()
    _, values, rows = torch.linalg.svd(change, full_matrices=False)
    # Of both ends of the change, and of the gradient itself.
    noise = ROUNDING * max(float(start.abs().max()) * max(change.shape) ** 0.5, 16 * float(values[0]))
    space: Tensor = rows[: min(most, change.shape[1] - 1, int((values > noise).sum()))]
    return space


def _residue(model: Resident, params: Tensors, spaces: dict[str, Tensor], texts: Tensor) -> Tensor:
    """Return (texts,): the share of what the second layer reads last in each that is outside of the nearest space.

    The first token's query has no gradient, since it has one key to choose, so that not every space holds every token.
    """
    least = torch.ones(len(texts))
    module = re.sub(r"(?:\.lora_[AB]\..*|\.weight)$", "", next(iter(spaces)))
    reads = _last(model, module, texts)
    for name, space in spaces.items():
        features = reads
        if ".lora_B." in name:
            first = name.replace(".lora_B.", ".lora_A.")
            values = params.get(first)
            values = dict(model.model.named_parameters())[first].detach() if values is None else values
            features = reads @ values.float().cpu().T
        unit = torch.nn.functional.normalize(features, dim=1)
        least = torch.minimum(least, 1 - (unit @ space.T).square().sum(1))
    return least


class _Read(Exception):
    """The layer was reached: the rest need not be computed."""


def _last(model: Resident, module: str, texts: Tensor) -> Tensor:
    """Return (texts, D): what a module reads at the last place of each."""
    found: list[Tensor] = []

    def take(_: Any, inputs: Sequence[Any]) -> None:
        found.append(inputs[0].detach().float().cpu()[:, -1])
        raise _Read

    handle = model.model.get_submodule(module).register_forward_pre_hook(take)
    try:
        with model.evaluating():
            model.base(input_ids=texts.to(model.device), use_cache=False)
    except _Read:
        pass
    finally:
        handle.remove()
    return found[0]
