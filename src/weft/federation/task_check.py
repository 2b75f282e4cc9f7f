"""The check of what a message brings to a client: the run's own tensors in their shapes, and nothing else.

A client keeps some parameters to itself (a private prompt, the factors that a run does not share). A task that held a
value for one of them would have it trained and sent back; a side adapter where the run has none would have the client
train another model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from weft.core import lowrank
from weft.core.exchange import Protection
from weft.core.lowrank import SIDE_A, SIDE_B
from weft.core.texts import printable
from weft.core.types import SIDE, Task, Tensors
from weft.errors import ClientFailed
from weft.federation.plan import Plan
from weft.federation.sharing import crop_rank, with_layers
from weft.models.resident import Resident


def check_task(plan: Plan, task: Task, client: int, model: Resident) -> None:
    """Refuse a decoded task, or the model of a probe, that the run's own server cannot have sent.

    Args:
        plan: the parts of the run.
        task: decoded; its tensors have the client's rank and layers, or the whole model's.
        client: number of the client.
        model: the resident model; `initial` holds what does not travel.

    Raises:
        ClientFailed: with the name of the first tensor or stream that does not belong.
    """
    if plan.parallel != "none":  # each process holds a part of the parameters, and one person owns them all
        return
    masters = {name: value for name, value in model.masters.items() if plan.sharing.travels(name)}
    rank, layers = plan.sharing.rank_of(client), plan.sharing.layers_of(client)
    _check_values("parameters", task.params, masters, rank)
    for name, value in task.params.items():  # of another number format they would be kept, and cost memory
        if value.dtype != masters[name].dtype:
            raise ClientFailed(f"was sent '{name}' among the parameters as {value.dtype}")
    algorithm = plan.algorithm
    if algorithm.turns is None and algorithm.rebuild is None:
        missing = sorted(with_layers(masters, layers).keys() - task.params.keys())
        if missing:
            raise ClientFailed(f"was sent no value of '{missing[0]}', which the run shares")
    known = algorithm.task_like(masters) | plan.privacy.told({})
    guards = type(plan.protection).seal is not Protection.seal  # its streams have names of its own
    for stream, values in task.extra.items():
        if stream == SIDE and plan.sharing.lora.shape == "side":
            _check_side(values, {**masters, **model.fixed})
        elif stream in known:
            _check_values(stream, values, known[stream], rank)
        elif stream == SIDE or not guards:
            raise ClientFailed(f"was sent the stream '{printable(stream, 100)}', which this run has not")


def _check_values(stream: str, values: Tensors, like: Tensors, rank: int | None) -> None:
    cropped = crop_rank({name: like[name] for name in values.keys() & like.keys()}, rank)
    for name, value in values.items():
        if name not in like:
            raise ClientFailed(f"was sent '{printable(name, 100)}' among the {stream}, which this run does not send")
        if value.shape not in (like[name].shape, cropped[name].shape):
            raise ClientFailed(f"was sent '{name}' among the {stream} in the shape {tuple(value.shape)}")


def _check_side(values: Tensors, factors: Mapping[str, Tensor]) -> None:
    """Check the frozen factors beside the adapter: of its modules, in pairs, of no higher rank than their product."""
    modules = lowrank.modules(factors)
    for name, value in values.items():
        module = name.removesuffix(SIDE_A).removesuffix(SIDE_B)
        names = modules.get(module, {})
        a, b = values.get(module + SIDE_A), values.get(module + SIDE_B)
        if a is None or b is None or not {"A", "B"} <= names.keys() or name not in (module + SIDE_A, module + SIDE_B):
            raise ClientFailed(f"was sent '{printable(name, 100)}' in the side adapter, which this run has not")
        width, height = factors[names["A"]].shape[1], factors[names["B"]].shape[0]
        fits = a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1] and (b.shape[0], a.shape[1]) == (height, width)
        if not fits or a.shape[0] > min(height, width):
            raise ClientFailed(f"was sent '{name}' in the side adapter in the shape {tuple(value.shape)}")
