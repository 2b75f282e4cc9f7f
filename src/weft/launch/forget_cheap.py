"""Cheaper ways to forget a client than to compute its rounds once more, and the scores by which they are judged.

`update` takes back what the client's kept updates added to the mean of each round, as if the others had sent the same
without it. `ascent` makes steps up the loss of the client's rows until the model knows them no better than rows that it
never saw (Halimi et al. 2022, arXiv 2207.05521, has the same steps within a ball). Neither equals a run without the
client; the exact run is what both are measured by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from weft.aggregation.mean import Mean
from weft.core import tensors
from weft.core.local_rule import LocalRule
from weft.core.parts import Algorithm
from weft.core.types import DELTA, ServerState, Tensors
from weft.errors import ConfigError, warn
from weft.federation.clients import ClientData
from weft.federation.state import to_use
from weft.json_types import JsonObject
from weft.launch.forget import Forgetting
from weft.launch.kept_updates import read_update
from weft.launch.recorder import FORGOTTEN
from weft.launch.replay import Bench, bench
from weft.launch.run import Run
from weft.runs import checkpoint
from weft.runs.chain import head_of
from weft.runs.metrics import read
from weft.training.loop import GradientSteps

METHODS = ("exact", "update", "ascent")
MOST_ROUNDS = 20
"""Local rounds of relearning at most."""
MOST_STEPS, SHARE = 200, 0.1
"""Steps of ascent at most, and their learning rate as a share of the run's: whole local rounds overshoot by far, and
what they leave is no model any more."""


def cheap_state(bench: Bench, state: ServerState, method: str, clients: Sequence[str]) -> ServerState:
    """Return the state of a finished run after a cheap way to forget clients.

    Args:
        bench: the parts of the run, with the rows of the clients.
        state: after its last round.
        method: `update` or `ascent`.
        clients: whom to forget.

    Raises:
        ConfigError: the run has not what the method needs.
    """
    _check(bench, state, method)
    if method == "update":
        return replace(state, params=_taken_back(bench, state.params, clients))
    return replace(state, params=_ascended(bench, state.params, clients))


def _check(bench: Bench, state: ServerState, method: str) -> None:
    """Raise ConfigError for a run that the method is not for."""
    plan, algorithm = bench.plan, bench.plan.algorithm
    params, extra = to_use(algorithm, state)
    exact = "write --method exact"
    if extra or len(params) != len(state.params) or algorithm.personal is not None:
        raise ConfigError(f"--method {method} changes one shared set of parameters, and the run has more: {exact}.")
    if not isinstance(plan.local, GradientSteps) or plan.local.kind != "gradients":
        raise ConfigError(f"--method {method} needs a model that is trained by gradients: {exact}.")
    if method == "update":
        means = type(algorithm).step is Algorithm.step and isinstance(plan.aggregator, Mean)
        plain = bench.config.codec == "none"
        plain = plain and bench.config.client_weight in ("size", "uniform")
        if not (means and plain and bench.config.lora_aggregation == "average" and plan.max_client_share == 1.0):
            raise ConfigError(
                "--method update takes updates out of plain means (fedavg or fedprox, aggregator mean, no codec, "
                f"lora_aggregation average): {exact} or ascent."
            )


def _taken_back(bench: Bench, params: Tensors, clients: Sequence[str]) -> Tensors:
    """Return parameters to which each round has added the mean of the others' updates instead."""
    folder = bench.run.path
    for line in read(bench.run.metrics_file):
        if line.get("event") != "round" or not set(line["clients"]) & set(clients):
            continue
        kept = {name: read_update(folder, line["round"], name, DELTA) for name in line["clients"]}
        missing = [name for name, update in kept.items() if update is None]
        if missing:
            raise ConfigError(
                f"The update of '{missing[0]}' in round {line['round']} was not kept: a run keeps them with "
                "--keep_updates; for this one write --method exact or ascent."
            )
        updates = {name: update for name, update in kept.items() if update is not None}
        others = {name: update for name, update in updates.items() if name not in clients}
        params = tensors.subtract(params, _mean(list(updates.values())))
        if others:
            params = tensors.add(params, _mean(list(others.values())))
    return params


def _mean(updates: Sequence[tuple[Tensors, float]]) -> Tensors:
    total = sum(weight for _, weight in updates)
    mean = tensors.zeros(updates[0][0])
    for values, weight in updates:
        mean = tensors.add(mean, values, weight / total)
    return mean


class _Up(LocalRule):
    """Steps that make the loss larger."""

    def adjust_grads(self, params: Tensors) -> None:
        """Turn the gradients round."""
        for value in params.values():
            if value.grad is not None:
                value.grad.neg_()


def _ascended(bench: Bench, params: Tensors, clients: Sequence[str]) -> Tensors:
    """Return parameters with which the clients' rows have no smaller loss than rows that nobody trained on."""
    own = [bench.population.trained.find(name) for name in clients]
    unseen = _mean_loss(bench, params, [client.held_out for client in bench.population.evaluated])
    for number in range(MOST_STEPS):
        client = own[number % len(own)]
        if _mean_loss(bench, params, [one.train for one in own]) >= unseen:
            if not number:
                warn(
                    f"The loss of {' and '.join(clients)} is that of held-out rows already: ascent made no step, and "
                    "the model is what it was."
                )
            break
        params = _steps(bench, params, client, _Up(), number, steps=1, share=SHARE)
    return params


def _steps(
    bench: Bench,
    params: Tensors,
    client: ClientData,
    rule: LocalRule,
    number: int,
    *,
    steps: int | None = None,
    share: float = 1.0,
) -> Tensors:
    """Return parameters after a local round of a client, or so many steps, at a share of the largest learning rate."""
    local = bench.plan.local
    peak = share * local.schedule.peak
    schedule = replace(local.schedule, kind="constant", peak=peak, warmup_steps=0, warmup_ratio=0.0)
    local = replace(local, schedule=schedule, steps=local.steps if steps is None else steps)
    model = bench.host.model
    job = client.job(model.initial, params, {*params, *model.initial}, number)
    done = local.work(model, bench.plan.objective, client.train, rule, job)
    return tensors.add(params, done.finished.streams[DELTA])


def _row_losses(bench: Bench, params: Tensors, rows: Sequence[object]) -> np.ndarray:
    """Return (rows,): the mean loss of each row."""
    model, objective = bench.host.model, bench.plan.objective
    model.load(model.initial | params)
    return np.array([objective.assess(model, [row], 1, 0) for row in rows])


def _mean_loss(bench: Bench, params: Tensors, views: Sequence[object]) -> float:
    losses = _row_losses(bench, params, _rows(views))
    return float(losses.mean()) if len(losses) else math.inf


def _rows(views: Sequence[object]) -> list[object]:
    return [view[number] for view in views for number in range(len(view))]  # type: ignore[index,arg-type]


class Scores(NamedTuple):
    """What a model is like after it has forgotten."""

    loss: float
    """On held-out rows of the other clients."""
    membership: float
    """AUC of the loss: how well it tells rows that are forgotten from rows that nobody trained on; 0.5: not at all."""
    relearning: int | None
    """Local rounds on the forgotten rows until their loss is that of the run before; None: more than MOST_ROUNDS."""

    def as_json(self) -> JsonObject:
        """Return it as plain data."""
        return dict(self._asdict())


def scores(bench: Bench, params: Tensors, clients: Sequence[str], target: float) -> Scores:
    """Return the scores of parameters.

    Args:
        bench: the parts of the run, with the rows of the clients.
        params: to score.
        clients: who is forgotten.
        target: mean loss on their rows before.
    """
    own = [bench.population.trained.find(name) for name in clients]
    rest = [client.held_out for client in bench.population.evaluated if client.name not in clients]
    # Rows of the same clients, where they hold some out: rows of others may differ for other reasons.
    unseen = _rows([bench.population.evaluated.find(name).held_out for name in clients]) or _rows(rest)
    forgotten = _row_losses(bench, params, _rows([client.train for client in own]))
    membership = auc(-forgotten, -_row_losses(bench, params, unseen))
    rounds, now = 0, params
    while (loss := _mean_loss(bench, now, [client.train for client in own])) > target and rounds < MOST_ROUNDS:
        now = _steps(bench, now, own[rounds % len(own)], LocalRule(), rounds)
        rounds += 1
    return Scores(_mean_loss(bench, params, rest), membership, rounds if loss <= target else None)


def loss_of(bench: Bench, params: Tensors, clients: Sequence[str]) -> float:
    """Return the mean loss on the rows of clients."""
    return _mean_loss(bench, params, [bench.population.trained.find(name).train for name in clients])


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Return the probability that a member scores higher than another, ties counted half; 0.5 without others."""
    if not len(members) or not len(others):
        return 0.5
    above = (members[:, None] > others[None, :]).mean() + 0.5 * (members[:, None] == others[None, :]).mean()
    return float(above)


def forget_cheaply(forgetting: Forgetting, method: str, exact: Run | None = None) -> Forgetting:
    """Return a forgetting whose state a cheap method made, with the scores of the run before and after it.

    Args:
        forgetting: of whole clients.
        method: `update` or `ascent`.
        exact: a run that `weft forget` made without them by its exact method, which is scored too; None: there is none.

    Raises:
        ConfigError: the run is not finished, has not what the method needs, or no held-out rows, or `exact` is
            another's.
    """
    run = forgetting.run
    if not run.finished:
        raise ConfigError(f"The run in '{run.path}' is not finished, and --method {method} changes a finished model.")
    if exact is not None:
        _check_exact(forgetting, exact)
    last = run.summary["rounds"]
    with bench(run) as parts:
        _check_held_out(parts, method, forgetting.clients)
        before = checkpoint.at(run.directory, last)
        after = cheap_state(parts, before, method, forgetting.clients)
        models = {"before": before.params, method: after.params}
        if exact is not None:
            models["exact"] = checkpoint.at(exact.directory, max(exact.rounds)).params
        target = loss_of(parts, before.params, forgetting.clients)
        found = {name: scores(parts, params, forgetting.clients, target).as_json() for name, params in models.items()}
    return replace(forgetting, start=last, method=method, state=after, scores=found)


def _check_held_out(bench: Bench, method: str, clients: Sequence[str]) -> None:
    """Raise ConfigError where nobody else held rows out: ascent would not know where to stop."""
    views = [client.held_out for client in bench.population.evaluated if client.name not in clients]
    if not _rows(views):
        raise ConfigError(
            f"No client but {' and '.join(clients)} has held-out rows, by which --method {method} is measured: write "
            "--method exact, or begin with a larger --eval_fraction."
        )


def _check_exact(forgetting: Forgetting, exact: Run) -> None:
    """Raise ConfigError where a run is not the exact one without the clients."""
    origin_file = exact.path / FORGOTTEN
    origin = json.loads(origin_file.read_text(encoding="utf-8")) if origin_file.exists() else {}
    same = sorted(exact.config.forgotten) == sorted(forgetting.keys["forgotten"])
    if (
        origin.get("method") != "exact"
        or origin.get("head") != head_of(forgetting.run.directory.chain_file)
        or not same
    ):
        raise ConfigError(
            f"'{exact.path}' is not what `weft forget --method exact` made of this run for the same clients: make it "
            "first, or leave out --exact."
        )
