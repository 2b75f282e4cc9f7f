"""DiLoCo: AdamW inside, Nesterov momentum outside (Douillard et al. 2023, arXiv 2311.08105).

Fragments and a delay are those of Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from weft.algorithms.moments import KeepMoments, merged
from weft.algorithms.outer import OuterSchedule, nesterov, outer_defaults
from weft.core import tensors
from weft.core.capabilities import EarlyStart, TurnTaking
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total
from weft.errors import ConfigError

MOMENTUM, WEIGHT, FIRST, SECOND, COUNT = "momentum", "momentum_weight", "exp_avg", "exp_avg_sq", "step"
LOCAL, ANCHOR, TRAINED, LAST_USED = "local", "anchor", "trained", "seen"
"""Memory of a client with fragments or a delay: LOCAL are its own values, ANCHOR the server's as it last received them,
TRAINED the round that it trained last. The server's memory LAST_USED: the round in which each client's update was last
used."""
MIX = 0.5
"""Share of a client's own values where the server's arrive late (arXiv 2501.18512)."""


class _Inner(KeepMoments):
    """Continue AdamW's moments, of the client or of the cohort."""

    def __init__(self, former: Streams, send: bool, params: Tensors) -> None:
        super().__init__(former)
        self.send, self.params = send, params

    def finish(self, work: LocalWork) -> RuleResult:
        if not self.send:
            return super().finish(work)
        zeros = tensors.zeros(self.params)
        moments = {key: zeros | work.moments.get(key, {}) for key in (FIRST, SECOND)}
        counts = [count for name, count in work.moments.get(COUNT, {}).items() if name in self.params]
        count = counts[0] if counts else torch.tensor(float(work.steps))
        delta = tensors.subtract(work.end, work.start)
        return RuleResult({DELTA: delta, SCALARS: {COUNT: count.clone()}, **moments})


class _Streaming(_Inner):
    """Continue from the client's own values, except for the fragment in the task; send the delta of one fragment."""

    def __init__(self, memory: Streams, keeps_moments: bool, turns: TurnTaking, round: int) -> None:
        moments = {key: values for key, values in memory.items() if key not in (LOCAL, ANCHOR, TRAINED)}
        super().__init__(moments if keeps_moments else {}, False, {})
        self.memory, self.turns, self.round, self.wants_moments = memory, turns, round, keeps_moments
        self.anchor: Tensors = {}

    def begin(self, params: Tensors) -> Tensors:
        self.anchor = self.memory.get(ANCHOR, {}) | params
        return self.memory.get(LOCAL, {}) | params

    def finish(self, work: LocalWork) -> RuleResult:
        part = self.turns.part(work.end, self.round)
        memory = {LOCAL: work.end, ANCHOR: self.anchor} | merged(self.former, work.moments)
        return RuleResult({DELTA: tensors.subtract(part, self.anchor)}, memory)


class _Delayed(_Streaming):
    """Train from the client's own values alone; mix what the task brings into them after the last step.

    The task of round t has the server's values after round t - 1, whose update the client sent before it went on. A
    client that missed a round, or whose update was not used, begins at the task's values as it would without a delay.
    """

    def __init__(self, memory: Streams, keeps_moments: bool, turns: TurnTaking, round: int, alpha: float) -> None:
        super().__init__(memory, keeps_moments, turns, round)
        self.alpha = alpha
        self.goes_on = int(memory.get(TRAINED, {}).get(TRAINED, _NEVER)) == round - 1
        self.arrived: Tensors = {}

    def begin(self, params: Tensors) -> Tensors:
        start, self.arrived = super().begin(params), params
        return self.memory[LOCAL] if self.goes_on else start

    def finish(self, work: LocalWork) -> RuleResult:
        done = super().finish(work)
        memory = done.memory | {TRAINED: {TRAINED: torch.tensor(self.round)}}
        if self.goes_on:
            own = {name: work.end[name] for name in self.arrived}
            mixed = tensors.add(tensors.scale(own, self.alpha), self.arrived, 1 - self.alpha)
            memory[LOCAL] = work.end | mixed
        if self.turns.period == 1:  # everything comes with every task
            del memory[ANCHOR]
        return RuleResult(done.streams, memory)


class _Ahead(_Delayed):
    """The same before the task has come, by which alone it can be finished."""

    def finish(self, work: LocalWork) -> RuleResult:
        return RuleResult({})


class _Fragments(TurnTaking):
    """With n fragments, each travels in every n-th round."""

    def part(self, params: Tensors, round: int) -> Tensors:
        return _part(params, self.period, round)


@dataclass(frozen=True)
class _Delay(EarlyStart):
    """The delay of an algorithm: clients that take part in every round go on from their own values."""

    algorithm: DiLoCo

    def rule(self, memory: Streams, round: int) -> LocalRule | None:
        rule = _Ahead(*self.algorithm.delayed(memory, round))
        return rule if rule.goes_on and round < self.algorithm.rounds else None


@dataclass(frozen=True)
class DiLoCo(Algorithm):
    """g = -D, m <- momentum m + g, w <- w - outer_lr (g + momentum m), as torch's SGD with nesterov.

    outer_lr, momentum: by the number of clients where they are not given (`weft.algorithms.outer.outer_defaults`). With
    one client and momentum 0 this is Lookahead (Zhang et al. 2019, arXiv 1907.08610) with alpha = outer_lr and kept
    moments; at outer_lr 1, the default for one client, it is the identity: the inner training, uninterrupted.
    bias_correction: m is scaled to the weight that it has after many rounds, from the first round on.
    outer_warmup, outer_decay: shares of the rounds (`weft.algorithms.outer.OuterSchedule`).
    inner_state: the inner optimizer's moments (SGD has none) between rounds: keep (they stay at the client, the
    paper's), reset (to zero), average (AdamW's travel and are averaged, at three times the bytes; those of parameters
    that do not travel are reset). Parameters that are not trained in a round (RoLoRA) keep their moments and their step
    count.
    fragments: parts in which the parameters travel, one in a round.
    delay: 1 lets an update travel while its client makes the steps of the next round. What the server makes of round t
    reaches the clients after the steps of round t + 1, and what they then have is alpha of their own values and
    1 - alpha of the server's (arXiv 2501.18512, with tau = one round).
    """

    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    outer_lr: float | None = None
    momentum: float | None = None
    inner_state: Literal["keep", "reset", "average"] = "keep"
    fragments: int = 1
    delay: int = 0
    alpha: float = MIX
    bias_correction: bool = False
    outer_warmup: float = 0.0
    outer_decay: float = 0.0
    clients: int = field(default=2, metadata={"key": "sample_clients", "value": "cohort_size"})
    rounds: int = field(default=1, metadata={"key": "num_rounds"})

    def __post_init__(self) -> None:
        lr, momentum = self.rates
        if lr < 0 or not 0 <= momentum < 1:
            raise ConfigError(
                f"outer_lr={lr:g} and momentum={momentum:g} cannot be: a learning rate is 0 or more, and a momentum "
                "from 0 to below 1; write such as outer_lr=0.6 momentum=0.9."
            )
        if self.bias_correction and not momentum:
            raise ConfigError(
                "bias_correction corrects an outer momentum, and there is none here: leave it out, or write "
                "momentum=0.9."
            )
        # Refuses shares that are none before anything is trained.
        OuterSchedule(self.rounds, self.outer_warmup, self.outer_decay)
        if self.fragments < 1 or (self.fragments > 1 and self.inner_state == "average"):
            raise ConfigError(
                f"fragments={self.fragments} with inner_state={self.inner_state} cannot be: fragments are 1 or more; "
                "beyond 1 the inner state is kept or reset."
            )

        if self.delay not in (0, 1) or (self.delay and self.inner_state == "average"):
            raise ConfigError(
                f"delay={self.delay} with inner_state={self.inner_state} cannot be: an update travels during one "
                "round, so the delay is 0 or 1; with 1 the inner state is kept or reset."
            )
        if not 0 <= self.alpha < 1 or (self.alpha != MIX and not self.delay):
            raise ConfigError(
                f"alpha={self.alpha:g} cannot be: it is a client's share in what it mixes with the server's late "
                "values, from 0 to below 1; write such as delay=1 alpha=0.5."
            )

    @property
    def rates(self) -> tuple[float, float]:
        """Outer learning rate and momentum, before the schedule."""
        return outer_defaults(self.clients, self.outer_lr, self.momentum)

    @property
    def turns(self) -> TurnTaking | None:
        """Fragments, where there is more than one."""
        return _Fragments(self.fragments) if self.fragments > 1 else None

    @property
    def early(self) -> EarlyStart | None:
        """The next round's steps, where there is a delay."""
        return _Delay(self) if self.delay else None

    def init(self, params: Tensors) -> ServerState:
        """Refuse more fragments than the model has blocks."""
        if self.fragments > len(blocks := _blocks(params)):
            raise ConfigError(
                f"fragments is {self.fragments}, but the model has only {len(blocks)} blocks to send apart: write "
                f"fragments={len(blocks)} in --fed_args, or less."
            )
        return super().init(params)

    @property
    def stateful_clients(self) -> bool:  # type: ignore[override]
        """Clients remember their moments where they keep them."""
        return self.inner_state == "keep" or self.fragments > 1 or self.delay > 0

    @property
    def uses_moments(self) -> bool:  # type: ignore[override]
        """Only AdamW's moments can be averaged."""
        return self.inner_state == "average"

    def like(self, params: Tensors) -> Streams:
        """Return the moments too, where they are averaged."""
        like = super().like(params)
        if self.inner_state == "average":
            like |= {FIRST: params, SECOND: params, SCALARS: {COUNT: torch.zeros(())}}
        return like

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send averaged moments, and only one fragment to a client that has the rest."""
        extra = {key: state.memory[key] for key in (FIRST, SECOND, COUNT) if key in state.memory}
        params = state.params
        # A client of the last round has everything but the fragment that changed in it; others may lack more.
        if self.turns is not None and int(state.memory.get(LAST_USED, {}).get(client, _NEVER)) == state.round - 1:
            params = self.turns.part(params, state.round - 1)
        return Task(client, state.round, version, params, extra)

    def task_like(self, params: Tensors) -> Streams:
        """Return the moments, where they are averaged."""
        if self.inner_state != "average":
            return {}
        return {FIRST: params, SECOND: params, COUNT: {name: torch.zeros(()) for name in params}}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Continue the moments."""
        if self.delay:
            return _Delayed(*self.delayed(memory, task.round))
        if self.turns is not None:
            return _Streaming(memory, self.inner_state == "keep", self.turns, task.round)
        if self.inner_state == "reset":
            return LocalRule()
        if self.inner_state == "keep":
            return _Inner(memory, False, task.params)
        moments = {key: task.extra[key] for key in (FIRST, SECOND, COUNT) if key in task.extra}
        return _Inner(moments, True, task.params)

    def delayed(self, memory: Streams, round: int) -> tuple[Streams, bool, TurnTaking, int, float]:
        """Return what the rule of a client with a delay is made of."""
        return memory, self.inner_state == "keep", _Fragments(self.fragments), round, self.alpha

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Take the outer step."""
        delta = total.streams[DELTA]
        lr, momentum = OuterSchedule(self.rounds, self.outer_warmup, self.outer_decay).at(state.round, *self.rates)
        # Parameters that are trained together have the same weight.
        former = max((float(value) for value in state.memory.get(WEIGHT, {}).values()), default=0.0)
        weight = momentum * former + 1 if self.bias_correction else None
        direction, sum_of_updates = nesterov(delta, state.memory.get(MOMENTUM), momentum, weight)
        params = tensors.add(state.params, direction, lr)
        memory = {MOMENTUM: sum_of_updates}
        if weight is not None:
            memory[WEIGHT] = {name: torch.tensor(weight, dtype=torch.float64) for name in delta}
        if self.inner_state == "average":
            memory |= {FIRST: total.streams[FIRST], SECOND: total.streams[SECOND]}
            # The mean of counts need not be whole where clients made different numbers of steps.
            memory[COUNT] = dict.fromkeys(delta, total.streams[SCALARS][COUNT].round())
        if self.fragments > 1:
            memory[LAST_USED] = {client: torch.tensor(state.round) for client in total.clients}
        return ServerState(params, memory, state.round + 1)


_NEVER = torch.tensor(-2)


def _blocks(params: Tensors) -> dict[str, list[str]]:
    """Return parameter names by block: a block has the same first number in its names; others are blocks alone."""
    names_of: dict[str, list[str]] = {}
    for name in params:
        number = next((part for part in name.split(".") if part.isdigit()), None)
        names_of.setdefault(name if number is None else number, []).append(name)
    return names_of


def _part(params: Tensors, parts: int, round: int) -> Tensors:
    """Return the fragment of a round: blocks are dealt out, the largest first, each to the smallest fragment so far."""
    sizes = {block: sum(params[name].numel() for name in names) for block, names in _blocks(params).items()}
    loads, part_of = [0] * parts, dict[str, int]()
    for block in sorted(sizes, key=lambda block: (-sizes[block], block)):
        part_of[block] = loads.index(min(loads))
        loads[part_of[block]] += sizes[block]
    names = {name for block, names in _blocks(params).items() if part_of[block] == round % parts for name in names}
    return {name: value for name, value in params.items() if name in names}
