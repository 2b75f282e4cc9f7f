"""What each client added to a finished run: its rounds once more, each with and without the updates of one client.

Two values, both in nats a token of the held-out rows of all clients, summed over rounds; larger is better:

- leave-one-out: by how much the loss after the server's step is lower than after the same step without the client
  (the leave-one-out of Koh and Liang 2017, arXiv 1703.04730, round by round as in Song et al. 2019);
- gradient: -<gradient of the loss, the client's share of the mean update>, which needs no further evaluation. To first
  order it is the Shapley value of the round (Wang et al. 2024, arXiv 2406.11011), and its sum is what the step gains.

A round is repeated from its own state, so what a client changed in earlier rounds stays in it. Under sums of groups, a
group has a value, and no client has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from weft.aggregation.mean import Mean
from weft.core import tensors
from weft.core.parts import Algorithm
from weft.core.types import DELTA, ServerState, Tensors, Total, Update
from weft.core.witness import state_digest
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.federation.state import advance
from weft.json_types import JsonObject
from weft.launch import compose
from weft.launch.replay import Bench, bench
from weft.launch.run import Run
from weft.runs import checkpoint

BATCH = 32


class Added(NamedTuple):
    """What the updates of one client, or of one group, added in a round."""

    members: tuple[str, ...]
    """The client, or the clients of the group."""
    leave_one_out: float
    gradient: float | None
    """None: the server's step is more than to add the mean."""


@dataclass(frozen=True)
class Watched(Mean):
    """The mean, with a list of the updates that it was made of."""

    updates: list[Update] = field(default_factory=list)

    def combine(self, updates: Any) -> Total:
        """Return the mean, and keep the updates of this round alone."""
        self.updates[:] = updates
        return super().combine(self.updates)


def leave_one_out(updates: Sequence[Update], worth: Callable[[Sequence[Update]], float]) -> list[float]:
    """Return of each update what a round is worth with all of them, less what it is worth without this one.

    Args:
        updates: of the round.
        worth: returns the value of a round in which some updates were sent; of none: of no step.
    """
    whole = worth(updates)
    return [whole - worth([*updates[:place], *updates[place + 1 :]]) for place in range(len(updates))]


def along(updates: Sequence[Update], gradient: Tensors) -> list[float]:
    """Return -<gradient, w_i / W update_i> of each update; their sum is that of the mean."""
    total = sum(update.weight for update in updates)
    return [
        -update.weight
        / total
        * sum(float((gradient[name].double() * value.double().cpu()).sum()) for name, value in delta.items())
        for update in updates
        for delta in (update.streams[DELTA],)
    ]


def check(run: Run) -> None:
    """Refuse a run whose clients have no values of their own: raise ConfigError."""
    config, where = run.config, f"the run in '{run.path}'"
    if not run.finished:
        raise ConfigError(f"{where[0].upper()}{where[1:]} is not finished: go on with --resume first.")
    if config.runtime == "nvflare":
        raise ConfigError(
            f"The rows of {where} are at its sites, so no round of it can be repeated here: measure a simulated run of "
            "the same keys."
        )
    plan = compose.plan(config)
    protection = plan.protection
    if protection.sum_only and not protection.grouped:
        raise ConfigError(
            f"{type(protection).__name__} opens one sum of all clients of a round, so that nobody can say what one of "
            "them added to it: groups of them have values where a run has --group_size."
        )
    if plan.privacy.bounded or plan.privacy.in_steps or plan.privacy.private:
        raise ConfigError(
            f"{where[0].upper()}{where[1:]} has a bound on what anybody may learn of a client, and a value of its own "
            "would tell more: nothing is computed."
        )
    if config.objective not in ("sft", "causal_lm") or plan.local.kind != "gradients":
        raise ConfigError(
            f"A value is a fall of the loss on held-out rows, and the objective of {where} is {config.objective}, by "
            f"{plan.local.kind}: conversations and text that are trained on by gradients have one."
        )
    if why := _unlike(plan):
        raise ConfigError(f"A round without a client is repeated by its mean update alone, and {why}: no value is so.")


def _unlike(plan: Plan) -> str:
    """Return why a round cannot be had without one of its updates; "": it can."""
    algorithm = plan.algorithm
    reasons = {
        f"with {type(plan.aggregator).__name__} the step is no mean": not isinstance(plan.aggregator, Mean),
        f"{type(algorithm).__name__} sends no updates of one shared model": (
            not algorithm.shares
            or algorithm.pools_data
            or algorithm.one_step
            or DELTA not in algorithm.streams
            or algorithm.choice is not None
            or algorithm.rebuild is not None
        ),
        f"{type(algorithm).__name__} remembers more of a client than its update": (
            algorithm.adds_up or algorithm.buffer is not None or algorithm.turns is not None
        ),
        "every client has a part of the model of its own": algorithm.personal is not None or bool(plan.sharing.ranks),
        f"{type(plan.sharing.lora).__name__} combines factors in another way": not plan.sharing.lora.keeps_basis
        or plan.sharing.lora.single_updates,
        "the server changes the model that it sends": plan.attack.changes_model,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def contributions(run: Run, say: Callable[[int, int], None] = lambda *_: None) -> JsonObject:
    """Repeat the rounds of a run, and return the values of its clients, or of the groups of each round.

    Args:
        run: finished.
        say: called after every round with how many are done, and of how many.

    Raises:
        ConfigError: the run has no such values, its rows are not here, or nobody holds rows out.
    """
    check(run)
    with bench(run) as parts:
        return _measured(run, parts, say)


def _measured(run: Run, parts: Bench, say: Callable[[int, int], None]) -> JsonObject:
    views = [client.held_out for client in parts.population.evaluated]
    rows = [view[number] for view in views for number in range(len(view))]
    if not rows:
        raise ConfigError("Nobody has held-out rows, and values are measured on these: write a larger --eval_fraction.")
    watched = Watched()
    parts.plan = replace(parts.plan, aggregator=watched)
    plain = type(parts.plan.algorithm).step is Algorithm.step
    state, found = parts.start(0), list[tuple[int, Added]]()
    for done in parts.rounds(state):
        if not done.record.repeated and watched.updates:
            found += [(done.state.round, one) for one in _of_round(parts, state, watched.updates, rows, plain)]
            say(done.state.round, run.config.num_rounds)
        watched.updates.clear()
        state = done.state
    same = state_digest(checkpoint.at(run.directory, state.round)) == state_digest(state)
    head: JsonObject = {"rounds": state.round, "same_bits": same, "rows": len(rows)}
    if parts.plan.protection.sum_only:
        return head | {"groups": [{"round": round} | one._asdict() for round, one in found]}
    return head | {"clients": _by_client(found)}


def _of_round(
    parts: Bench, state: ServerState, updates: Sequence[Update], rows: Sequence[Any], plain: bool
) -> list[Added]:
    """Return what each update added to a round that began from a state."""
    plan = parts.plan

    def worth(some: Sequence[Update]) -> float:
        after = advance(plan.algorithm, state, Mean().combine(some), {}) if some else state
        return -loss_of(parts, after.params, rows)

    without = leave_one_out(updates, worth)
    slopes: Sequence[float | None] = [None] * len(updates)
    if plain:
        gradient = tensors.zeros(tensors.copy(state.params, "cpu"))
        loss_of(parts, state.params, rows, gradient)
        slopes = along(updates, gradient)
    return [Added(one.senders, value, slope) for one, value, slope in zip(updates, without, slopes, strict=True)]


def _by_client(found: Sequence[tuple[int, Added]]) -> JsonObject:
    """Return the sums over rounds, clients with the largest leave-one-out first."""
    lines: dict[str, list[Added]] = {}
    for _, one in found:
        (name,) = one.members
        lines.setdefault(name, []).append(one)
    sums = {
        name: {
            "leave_one_out": sum(one.leave_one_out for one in some),
            "gradient": None if some[0].gradient is None else sum(one.gradient or 0.0 for one in some),
            "rounds": len(some),
        }
        for name, some in lines.items()
    }
    return dict(sorted(sums.items(), key=lambda pair: -float(pair[1]["leave_one_out"] or 0.0)))


def loss_of(parts: Bench, params: Tensors, rows: Sequence[Any], slope: Tensors | None = None) -> float:
    """Return the mean loss of a token of rows (nats), without dropout.

    Args:
        parts: of the run.
        params: shared parameters to measure at.
        rows: of the held-out ones.
        slope: float32 zeros on the CPU, by the names of parameters, which the gradient is added to; None: none is
            computed.
    """
    model, objective = parts.host.model, parts.plan.objective.plain
    model.load(model.initial | params)
    model.train_only({*params})
    total, targets = 0.0, 0
    with model.evaluating(), torch.set_grad_enabled(slope is not None):
        for at in range(0, len(rows), BATCH):
            loss = objective.loss(model, objective.collate(rows[at : at + BATCH]).to(model.device))
            total, targets = total + float(loss.total.detach()), targets + loss.targets
            if slope is not None:
                loss.total.backward()  # type: ignore[no-untyped-call]
                model.collect_grads()
    if slope is not None:
        for name, master in model.trainable().items():
            if master.grad is not None and name in slope:
                slope[name] += master.grad.cpu() / max(1, targets)
            master.grad = None
    return total / max(1, targets)
