"""Reconstruction of a row by optimisation: vectors and soft labels whose gradient is that of the update.

Deng et al. 2021, TAG (arXiv 2103.06819): the distance of two gradients is the sum of squares and alpha times that of
absolute values. Here both are scaled to a norm of 1, since the attacker does not know the learning rate. A vector found
is read as the token whose embedding points most nearly its way. LAMP's language prior (2202.08827) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from weft.audits.audit import Audit, Findings
from weft.audits.recall import own_and_next
from weft.audits.scene import Scene
from weft.audits.sent import Row, Station
from weft.audits.settings import CannotAudit
from weft.core.types import Tensors
from weft.json_types import JsonObject
from weft.models.resident import Resident

ROWS = 3
ITERATIONS = 200
LONGEST = 48
"""Tokens of a row that is tried: the search grows with it, and finds less."""
ALPHA = 0.01
RATE = 0.05


class Inversion(Audit):
    """Share of a row's own words that a search for its gradient finds."""

    title: ClassVar[str] = "Reconstruction by optimisation (TAG)"
    means: ClassVar[str] = (
        "Share of a row's own words among the tokens that a short search reconstructs from its update; a longer search "
        "finds more."
    )
    defence: ClassVar[str] = "Larger batches and more steps make it harder; differential privacy bounds it."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Reconstruct a few rows, and compare with the words of others."""
        station = Station(scene)
        model, table = station.host.model, station.host.train_clients.table
        if not model.one_process or model.front is not None:
            raise CannotAudit("The search needs a whole model without a learnt prompt: audit a run of weights.")
        rows = [row for row in station.drawn(16) if len(table[row.number][0]) <= LONGEST][:ROWS]
        if len(rows) < 2:
            raise CannotAudit(
                f"Fewer than two rows have at most {LONGEST} tokens, and longer ones take hours: `span` reads them."
            )
        words = [station.tokens([row]) for row in rows]
        found = [self._reconstructed(station, row, len(table[row.number][0]), place) for place, row in enumerate(rows)]
        step, control = own_and_next(words, found)
        numbers: JsonObject = {"one_step": step.as_json(), "control": control.as_json(), "rows": len(rows)}
        cells = [["one row, one step", str(step)], ["another row's update (control)", str(control)]]
        note = f"{ITERATIONS} iterations for each of {len(rows)} rows, whose lengths the attacker is told."
        return Findings(numbers, ["update of", "words found (95 %, Clopper-Pearson)"], cells, [note])

    def _reconstructed(self, station: Station, row: Row, length: int, place: int) -> frozenset[int]:
        delta = station.one_step(row).delta
        model = station.host.model
        model.load({name: value for name, value in station.state.params.items() if name in model.masters})
        return search(model, delta, length, seed=station.scene.settings.seed + place)


def search(model: Resident, delta: Tensors, length: int, *, seed: int) -> frozenset[int]:
    """Return the tokens of the row whose gradient comes nearest to an update.

    Args:
        model: with the values that the update began from.
        delta: of one step.
        length: tokens of the row.
        seed: of the start.
    """
    table = model.base.get_input_embeddings().weight.detach().float()
    shared = {id(model.base.get_input_embeddings().weight)}
    wanted = {name: p for name, p in model.params.items() if name in delta and id(p) not in shared}
    observed = _unit({name: -delta[name].float().to(model.device) for name in wanted})
    chance = torch.Generator().manual_seed(seed)
    vectors = (torch.randn(length, table.shape[1], generator=chance) * table.std().cpu()).to(model.device)
    labels = torch.randn(length, len(table), generator=chance).to(model.device) * 0.1
    vectors.requires_grad_()
    labels.requires_grad_()
    optimizer = torch.optim.Adam([vectors, labels], lr=RATE)
    model.model.eval()
    model.train_only(None)
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for _ in range(ITERATIONS):
            optimizer.zero_grad(set_to_none=True)
            lines = vectors.to(next(iter(wanted.values())).dtype)[None]
            logits = model.base(inputs_embeds=lines, use_cache=False).logits[0, :-1].float()
            loss = -(labels[1:].softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
            gradients = torch.autograd.grad(loss, list(wanted.values()), create_graph=True, allow_unused=True)
            made = {name: grad.float() for name, grad in zip(wanted, gradients, strict=True) if grad is not None}
            distance = _distance(_unit(made), observed)
            distance.backward(inputs=[vectors, labels])  # type: ignore[no-untyped-call]
            optimizer.step()
    directions = torch.nn.functional.normalize(vectors.detach(), dim=1)
    nearest = (directions @ torch.nn.functional.normalize(table, dim=1).T).argmax(1)
    return frozenset(nearest.tolist()) | frozenset(labels.detach()[1:].argmax(1).tolist())


def _unit(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norm = torch.stack([value.square().sum() for value in values.values()]).sum().sqrt().clamp(min=1e-20)
    return {name: value / norm for name, value in values.items()}


def _distance(made: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Tensor:
    parts = [made[name] - observed[name] for name in made]
    return torch.stack([part.square().sum() + ALPHA * part.abs().sum() for part in parts]).sum()
