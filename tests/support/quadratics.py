"""A federation whose optimum is known: every client's loss is a quadratic, and all else is what real runs use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from weft.aggregation.mean import Mean
from weft.compression.identity import Identity
from weft.core.exchange import Codec, Privacy, Protection, Weighting
from weft.core.objective import Evaluator, Loss, Objective
from weft.core.parts import Algorithm
from weft.core.secret import Secret
from weft.core.types import ServerState
from weft.federation.client_host import ClientHost
from weft.federation.clients import Clients, InMemory
from weft.federation.compatibility import check
from weft.federation.conditions import Conditions
from weft.federation.loop import Rounds, run_rounds
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.sampling import Selection
from weft.federation.sharing import Sharing
from weft.federation.state import begin
from weft.lora.average import Average
from weft.models.resident import Resident
from weft.privacy.none import NoPrivacy
from weft.protection.plain import Plain
from weft.runtimes.inprocess import InProcess
from weft.training.loop import GradientSteps
from weft.training.optimizers import Optimizer
from weft.training.schedules import Schedule
from weft.weighting.size import Size

WIDTH = 3


class Point(nn.Module):
    """A model that is one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(WIDTH))
        self.config = SimpleNamespace()
        self._nothing = [nn.Identity()]

    def get_output_embeddings(self) -> nn.Module:
        return self._nothing[0]


@dataclass(frozen=True)
class Ownership:
    """A table whose rows say only which client they are of."""

    owners: np.ndarray

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, row: int) -> int:
        return int(self.owners[row])


@dataclass(frozen=True)
class Owned:
    """Some rows of one client."""

    owner: int
    rows: int

    @property
    def targets(self) -> range:
        return range(self.rows)

    @property
    def tokens(self) -> int:
        return self.rows

    def to(self, device: torch.device) -> Owned:
        return self


@dataclass(frozen=True)
class Quadratics(Objective):
    """f_i(w) = (w - b_i)' H_i (w - b_i) / 2 for every row of client i."""

    centres: torch.Tensor
    """(clients, WIDTH): the b_i."""
    curvatures: torch.Tensor
    """(clients, WIDTH, WIDTH): the H_i."""

    def collate(self, rows) -> Owned:
        return Owned(rows[0], len(rows))

    def loss(self, model, batch: Owned) -> Loss:
        apart = model.model.w - self.centres[batch.owner]
        return Loss(batch.rows * (apart @ self.curvatures[batch.owner] @ apart) / 2, batch.rows)

    def optimum(self, weights: np.ndarray) -> torch.Tensor:
        """Return where the weighted mean of all f_i is least."""
        shares = torch.from_numpy(weights / weights.sum())
        curvatures = self.curvatures.double()
        mean = torch.einsum("i,ijk->jk", shares, curvatures)
        return torch.linalg.solve(mean, torch.einsum("i,ijk,ik->j", shares, curvatures, self.centres.double()))


@dataclass
class Federation:
    """Ten clients of 1 to 89 rows, of which five are asked in a round."""

    clients: int = 10
    cohort: int = 5
    seed: int = 0
    failure_rate: float = 0.0
    speeds: tuple[float, ...] = ()
    over: float = 0.0
    rows: np.ndarray = field(init=False)
    objective: Quadratics = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.rows = np.linspace(1, 89, self.clients).round().astype(int)
        turned = [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(self.clients)]
        curvatures = [q @ np.diag(rng.uniform(0.2, 2.0, WIDTH)) @ q.T for q in turned]
        self.objective = Quadratics(
            torch.tensor(rng.normal(0, 3, (self.clients, WIDTH)), dtype=torch.float32),
            torch.tensor(np.array(curvatures), dtype=torch.float32),
        )

    def run(
        self,
        algorithm: Algorithm,
        rounds: int,
        *,
        weighting: Weighting = Size(),  # noqa: B008
        optimizer: str = "sgd",
        lr: float = 0.1,
        kind: str = "constant",
        steps: int = 5,
        batch_size: int = 16,
        max_grad_norm: float = 0.0,
        weight_decay: float = 0.0,
        privacy: Privacy = NoPrivacy(),  # noqa: B008
        codec: Codec = Identity(),  # noqa: B008
        codec_down: Codec = Identity(),  # noqa: B008
        protection: Protection = Plain(),  # noqa: B008
        quorum: int = 0,
        secret: Secret | None = None,
        memory: InMemory | None = None,
        start: ServerState | None = None,
        records: list[RoundRecord] | None = None,
    ) -> ServerState:
        """Return the state after some rounds, those of `start` among them."""
        plan = Plan(
            algorithm,
            Mean(),
            privacy,
            codec,
            protection,
            self.objective,
            GradientSteps(
                Schedule(kind, lr, 0.0, rounds),
                self.seed,
                steps,
                batch_size=batch_size,
                max_grad_norm=max_grad_norm,
                optimizer=Optimizer(optimizer, weight_decay=weight_decay),
            ),
            Sharing(Average()),
            weighting=weighting,
            over_selected=self.over > 0,
            codec_down=codec_down,
            quorum=quorum,
        )
        check(plan)
        names = [f"client_{number}" for number in range(self.clients)]
        ends = np.cumsum(self.rows)
        own = [np.arange(end - count, end) for end, count in zip(ends, self.rows, strict=True)]
        table = Ownership(np.repeat(np.arange(self.clients), self.rows))
        sites = Clients(names, own, [[]] * self.clients, table, InMemory() if memory is None else memory)
        model = Resident(Point(), None, torch.device("cpu"), torch.float32)
        if codec_down.remembers:
            model.store_reference()
        conditions = Conditions(self.seed, self.failure_rate, self.speeds)
        runtime = InProcess(ClientHost(plan, model, Evaluator(), sites, sites, conditions))
        how = Rounds(rounds, Selection(self.seed, self.cohort, self.over), 0, conditions=conditions, rows=self.rows)
        how = how if secret is None else replace(how, secret=lambda: secret)
        state = begin(plan, model.values(), {}) if start is None else start
        for done in run_rounds(plan, state, runtime, how, clients=names, eval_clients=[]):
            state = done.state
            if records is not None:
                records.append(done.record)
        return state

    def distance(self, state: ServerState, *, by_rows: bool = True) -> float:
        """Return how far the server's parameters are from the optimum."""
        weights = self.rows.astype(float) if by_rows else np.ones(self.clients)
        return float((state.params["w"].double() - self.objective.optimum(weights)).norm())
