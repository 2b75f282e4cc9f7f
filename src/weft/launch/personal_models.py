"""Clients' personal models at the end of a run: personal steps, scores and weights.

Each is measured on its client's rows and on everybody's, beside the shared model, so that they can be compared.
What is here goes beyond a federation's messages: it is for simulations, where all rows are at one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from weft.core.declarations import scores
from weft.core.fairness import fairness
from weft.core.metrics import plus, summarise
from weft.core.objective import Evaluator
from weft.core.types import FIXED, SIDE, Metrics, Probe, ServerState, Tensors
from weft.federation.client_model import load_probe_model, personal_steps
from weft.federation.clients import ClientData
from weft.federation.plan import Plan
from weft.federation.state import to_use
from weft.json_types import JsonObject
from weft.launch.population import Population
from weft.models.instruction import instruction_text
from weft.models.resident import Resident

FEW = 50
"""The most clients with which every model is evaluated on all rows by default."""


@dataclass(frozen=True)
class PersonalModels:
    """The clients' own models of a run that has come to its end."""

    plan: Plan
    state: ServerState
    model: Resident
    population: Population
    evaluator: Evaluator

    @property
    def exist(self) -> bool:
        """Whether clients have models of their own."""
        return self.plan.own_models

    def each(self) -> Iterator[ClientData]:
        """Put the own model of one client after the other into the resident model, after its personal steps."""
        for client in self.population.trained:
            # The public rows are nobody's own, and a client that was left out learns nothing.
            apart = (*self.population.left_out, *self.population.forgotten_names())
            if client.name not in self.population.names or client.name in apart:
                continue
            self.put(client)
            yield client

    def put(self, client: ClientData) -> None:
        """Put the own model of a client into the resident model, after its personal steps."""
        self._load(client, personal=True)
        personal_steps(self.plan, self.model, client, self.state.round)

    def whole(self) -> Tensors:
        """Return all that the adapter or model in place consists of, beside what the base has."""
        return self.model.values() | self.model.fixed | self.state.memory.get(SIDE, {})

    def compare(self, everybody: bool | None, keep: Callable[[ClientData], None]) -> JsonObject:
        """Measure the shared model and each client's own.

        Args:
            everybody: also measure own models on everybody's rows; None: where there are at most `FEW` clients.
            keep: called with every client while its own model is in place.

        Returns:
            `shared` (on everybody's rows), `own_sums` (own rows, over all clients), `own_on_everybody` (the mean over
            clients), each of the metrics that are for comparing models; `clients`: the same for each; `groups`: how
            unlike clients are, by the same names. Clients that were left out are in none of it. Nothing where clients
            report no scores.
        """
        if not self.plan.reports:
            for client in self.each():
                keep(client)
            return {}
        everywhere = len(self.population.names) <= FEW if everybody is None else everybody
        names = [name for name in self.population.names if name not in self.population.left_out]
        clients: dict[str, JsonObject] = {name: {} for name in names}
        shared: Metrics = {}
        own_sums: Metrics = {}
        if self.plan.algorithm.shares and self.plan.algorithm.choice is None:
            for client in self._with_test_rows():
                self._load(client, personal=False)
                sums = self.evaluator.evaluate(self.model, client.held_out)
                clients[client.name]["shared"] = self._comparable(sums)
                shared = plus(shared, sums)
        on_all = []
        for client in self.each():
            keep(client)
            client_sums: Metrics = {}
            for other in self._with_test_rows() if everywhere else [client] if len(client.held_out) else []:
                sums = self.evaluator.evaluate(self.model, other.held_out)
                client_sums = plus(client_sums, sums)
                if other.name == client.name:
                    own_sums = plus(own_sums, sums)
                    clients[client.name]["own"] = self._comparable(sums)
            if everywhere and client_sums:
                clients[client.name]["own_on_everybody"] = self._comparable(client_sums)
                on_all.append(self._comparable(client_sums))
        result: JsonObject = {"own": self._comparable(own_sums), "clients": clients}
        if shared:
            result["shared"] = self._comparable(shared)
        for kind in ("shared", "own", "own_on_everybody"):
            by_client = {name: one[kind] for name, one in clients.items() if kind in one}
            if groups := fairness(self.evaluator.metrics, by_client):
                result.setdefault("groups", {})[kind] = groups
        if on_all:
            result["own_on_everybody"] = {key: _mean([one[key] for one in on_all]) for key in on_all[0]}
        return result

    def _with_test_rows(self) -> Iterator[ClientData]:
        apart = self.population.left_out
        return (client for client in self.population.evaluated if len(client.held_out) and client.name not in apart)

    def _comparable(self, sums: Metrics) -> JsonObject:
        """Return the metrics by which models are compared."""
        record = summarise(self.evaluator.metrics, [sums])
        return {one.name: record[one.name] for one in scores() if one.shown == "models" and one.name in record}

    def _load(self, client: ClientData, *, personal: bool) -> None:
        probe = Probe(client.name, self.state.round, *to_use(self.plan.algorithm, self.state), personal)
        load_probe_model(probe, self.plan, client, self.model)


def words_of(model: Resident) -> bytes:
    """Return the instruction that the model's parameters encode, as the bytes of a text file."""
    return (instruction_text(model.model) + "\n").encode()


def result_of(state: ServerState, initial: Tensors) -> Tensors:
    """Return all that the shared adapter or model consists of: what travelled, what never changed, what is aside."""
    return initial | state.memory.get(FIXED, {}) | state.memory.get(SIDE, {}) | state.params


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
