"""Which words a client's rows have, read exactly from its update (the first step of DAGER, arXiv 2405.15586).

What the first layer's attention reads follows from the token alone where positions come in later (RoPE). The gradient
of its projections is a sum of outer products with what was read, so its row space holds the vectors of all tokens that
were there, and hardly any other token's. With a LoRA, that is true of B and of what A makes of these vectors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from weft.audits.audit import Audit, Findings
from weft.audits.recall import ALIKE, above, attribution, chance_of, check_control, line, others_of, recalls
from weft.audits.scene import Scene
from weft.audits.sent import Row, Station, values_of
from weft.audits.settings import CannotAudit
from weft.audits.statistics import share
from weft.core.types import Tensors
from weft.json_types import JsonObject
from weft.models.resident import Resident

FIRST_LAYER = re.compile(r"\.(?:layers|h|blocks)\.0\.(?:.*\.)?(?:q_proj|k_proj|v_proj|qkv_proj|query_key_value)\b")
ROUNDING = 2.0**-24
ROWS = 8
TOGETHER = 4
"""Clients of the sum."""
LINES = 2048


class Projection(NamedTuple):
    """A projection of the first layer, as an attacker uses it."""

    name: str
    """Of the tensor in the update."""
    features: Tensor
    """(V, D): what the tensor's columns are multiplied by for each token, of norm 1."""


class Spans:
    """Scores of all tokens, by an update."""

    def __init__(self, model: Resident, params: Tensors) -> None:
        """Compute what the first layer reads of every token.

        Args:
            model: of the run, whose layers are used.
            params: shared parameters that the update began from.

        Raises:
            CannotAudit: the update has no projection of the first layer, or what it reads depends on the position.
        """
        self.params = params
        names = [name for name in params if FIRST_LAYER.search(name) and name.endswith(".weight")]
        names = [name for name in names if ".lora_" not in name or ".lora_B." in name]
        if not names:
            raise CannotAudit(
                "The update has no projection of the first layer's attention, so that the span check has nothing to "
                "read: it would with --peft_lora_target_modules q_proj v_proj, or without --use_peft."
            )
        model.load(values_of(model, params))
        self.vocabulary = model.base.get_input_embeddings().weight.shape[0]
        module = re.sub(r"(?:\.lora_[AB]\..*|\.weight)$", "", names[0])
        reads = _reads(model, module, self.vocabulary)
        self.projections = [Projection(name, _unit(_through(model, params, name, reads))) for name in names]

    @property
    def most(self) -> int:
        """Distinct tokens from which on the check is blind."""
        widths: list[int] = [min(self.params[one.name].shape) for one in self.projections]
        return max(widths)

    def scores(self, delta: Tensors, count: int) -> Tensor:
        """Return (V,): how well each token fits into the spans of so many tokens; larger is better, 0 none at all."""
        total = torch.zeros(self.vocabulary)
        for name, features in self.projections:
            change = delta[name].float().cpu()
            _, values, rows = torch.linalg.svd(change, full_matrices=False)
            # Below it, directions are those of rounding: both ends of a change are float32.
            noise = ROUNDING * float(self.params[name].abs().max()) * max(change.shape) ** 0.5
            rank = min(count, features.shape[1] - 1, int((values > noise).sum()))
            inside = features @ rows[:rank].T
            total += rank / count * (1 - (1 - inside.square().sum(1)).clamp(min=0).sqrt())
        return total / len(self.projections)


def _unit(features: Tensor) -> Tensor:
    unit: Tensor = features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit


def _through(model: Resident, params: Tensors, name: str, reads: Tensor) -> Tensor:
    """Return what a tensor's columns are multiplied by: what the layer reads, or with a LoRA what A makes of it."""
    if ".lora_B." not in name:
        return reads
    first = name.replace(".lora_B.", ".lora_A.")
    values = params.get(first)
    if values is None:
        values = dict(model.model.named_parameters())[first].detach()
    made: Tensor = reads @ values.float().cpu().T
    return made


class _Read(Exception):
    """The layer was reached: the rest need not be computed."""


def _reads(model: Resident, module: str, vocabulary: int) -> Tensor:
    """Return (V, D) what a module of the first layer reads of every token, where that is all it depends on."""
    found: list[Tensor] = []

    def take(_: Any, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].detach().float().cpu())
        raise _Read

    handle = model.model.get_submodule(module).register_forward_pre_hook(take)
    try:
        with model.evaluating():
            lone = [torch.arange(at, min(at + LINES, vocabulary))[:, None] for at in range(0, vocabulary, LINES)]
            for lines in (*lone, torch.tensor([[1, 3], [5, 4]])):
                try:
                    model.base(input_ids=lines.to(model.device), use_cache=False)
                except _Read:
                    continue
    finally:
        handle.remove()
    later, reads = found.pop()[:, 1], torch.cat(found)[:, 0]
    if (later - reads[[3, 4]]).norm() > 1e-2 * later.norm():
        raise CannotAudit(
            "What the first layer reads depends on a token's position in this model, so that the span check is blind: "
            "it works on models with rotary positions."
        )
    return reads


class Span(Audit):
    """Recall of the tokens of a row, from one step, a round, and the mean of several clients."""

    title: ClassVar[str] = "Words in an update: the span check"
    means: ClassVar[str] = (
        "Recall: the share of a row's own words (those that other rows lack) among as many words as the row has that "
        "fit the update best; the control takes the update of another row."
    )
    defence: ClassVar[str] = (
        "Differential privacy with enough noise; masks hide whose words they are, not which; more distinct words in a "
        "round than the rank make the check blind, and an attack on other layers need not be."
    )
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Ask clients for updates, and read them."""
        station = Station(scene)
        spans = Spans(station.host.model, station.state.params)
        rows = station.drawn(ROWS)
        sent = [station.one_step(row) for row in rows]
        step, control = recalls(spans.scores, sent)
        check_control(control, chance := chance_of(sent, spans.vocabulary))
        cells = [line("one row, one step", step, sent), line("another row's update (control)", control, sent)]
        numbers: JsonObject = {
            "blind_from": spans.most, "vocabulary": spans.vocabulary, "one_step": step.as_json(),
            "control": control.as_json(), "tokens": [len(one.tokens[0]) for one in sent],
        }  # fmt: skip
        notes = [*above(step, control), _blindness(spans, chance)]
        self._round(station, spans, numbers, cells, notes)
        self._mean(station, spans, rows, numbers, cells, notes)
        return Findings(numbers, ["update of", "recall (95 %, Clopper-Pearson)", "distinct words"], cells, notes)

    def _round(
        self, station: Station, spans: Spans, numbers: JsonObject, cells: list[list[str]], notes: list[str]
    ) -> None:
        """Add a whole round of each of two clients."""
        names = station.host.train_clients.names[:2]
        sent = [station.whole_round(name) for name in names]
        if len(sent) < 2:
            return
        if sent[0].tokens == sent[1].tokens:
            notes.append(ALIKE)
            return
        recall, _ = recalls(spans.scores, sent)
        numbers["round"] = recall.as_json()
        numbers["round_tokens"] = [len(one.tokens[0]) for one in sent]
        cells.append(line("a client's whole round", recall, sent))

    def _mean(
        self,
        station: Station,
        spans: Spans,
        rows: Sequence[Row],
        numbers: JsonObject,
        cells: list[list[str]],
        notes: list[str],
    ) -> None:
        """Add the mean of several clients: what is still read, and whether it is known whose it is."""
        some = list({row.client: row for row in rows}.values())[:TOGETHER]
        if len(some) < 2:
            return
        try:
            mean = station.mean(some)
        except CannotAudit as error:
            notes.append(f"The mean of several clients is left out. {error}")
            return
        union = frozenset().union(*mean.tokens)
        own = [tokens - others_of(mean.tokens, place) for place, tokens in enumerate(mean.tokens)]
        wanted = frozenset().union(*own)
        if not wanted:
            notes.append("The mean of several clients is left out, because no row has a word that the others lack.")
            return
        scores = spans.scores(mean.delta, len(union))
        found = set(scores.topk(len(union)).indices.tolist())
        recall = share(len(found & wanted), len(wanted))
        alone = [spans.scores(station.one_step(row).delta, len(mean.tokens[place])) for place, row in enumerate(some)]
        told, mixed = attribution(alone, own), attribution([scores] * len(some), own)
        numbers["mean"] = recall.as_json() | {"clients": len(some), "tokens": len(union)}
        numbers["attribution"] = {"updates": told.as_json(), "mean": mixed.as_json()}
        cells.append([f"the mean of {len(some)} clients", str(recall), str(len(union))])
        masked = station.scene.config.protection != "none"
        seen = "sees the mean alone (masks)" if masked else "sees single updates; with --protection masks the mean"
        notes.append(
            f"Whose word is it? AUC {told} from single updates, {mixed} from the mean (0.5 is chance). The server "
            f"{seen}."
        )


def _blindness(spans: Spans, chance: float) -> str:
    return (
        f"The check is blind from {spans.most} distinct words on (the rank of what is trained), and says nothing of "
        f"other attacks there. A random choice of words finds {chance:.2f}."
    )
