"""Clients' own models at the end of a run: personal steps, what they are worth, and their weights.

Each is measured on its client's rows and on everybody's, beside the shared model, so that the price of either is seen.
What is here goes beyond a federation's messages: it is for simulations, where all rows are at one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from weft.core.declarations import scores
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
"""Clients up to which everybody's rows are tried by every model, unless it is asked for."""


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
            if client.name not in self.population.names:  # the public rows are nobody's own
                continue
            self.put(client)
            yield client

    def put(self, client: ClientData) -> None:
        """Put the own model of a client into the resident model, after its personal steps."""
        self._show(client, own=True)
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
            `shared` (on everybody's rows), `own` (own rows, over all clients), `own_on_everybody` (the mean over
            clients), each of the metrics that are for comparing models; `clients`: the same for each.
        """
        asked = len(self.population.names) <= FEW if everybody is None else everybody
        clients: dict[str, JsonObject] = {name: {} for name in self.population.names}
        shared: Metrics = {}
        own: Metrics = {}
        if self.plan.algorithm.shares and self.plan.algorithm.choice is None:
            for client in self._tested():
                self._show(client, own=False)
                found = self.evaluator.evaluate(self.model, client.held_out)
                clients[client.name]["shared"] = self._short(found)
                shared = plus(shared, found)
        abroad = []
        for client in self.each():
            keep(client)
            mine: Metrics = {}
            for other in self._tested() if asked else [client] if len(client.held_out) else []:
                found = self.evaluator.evaluate(self.model, other.held_out)
                mine = plus(mine, found)
                if other.name == client.name:
                    own = plus(own, found)
                    clients[client.name]["own"] = self._short(found)
            if asked and mine:
                clients[client.name]["own_on_everybody"] = self._short(mine)
                abroad.append(self._short(mine))
        result: JsonObject = {"own": self._short(own), "clients": clients}
        if shared:
            result["shared"] = self._short(shared)
        if abroad:
            result["own_on_everybody"] = {key: _mean([one[key] for one in abroad]) for key in abroad[0]}
        return result

    def _tested(self) -> Iterator[ClientData]:
        return (client for client in self.population.evaluated if len(client.held_out))

    def _short(self, sums: Metrics) -> JsonObject:
        """Return the metrics by which models are compared."""
        record = summarise(self.evaluator.metrics, [sums])
        return {one.name: record[one.name] for one in scores() if one.shown == "models" and one.name in record}

    def _show(self, client: ClientData, *, own: bool) -> None:
        probe = Probe(client.name, self.state.round, *to_use(self.plan.algorithm, self.state), own)
        load_probe_model(probe, self.plan, client, self.model)


def words_of(model: Resident) -> bytes:
    """Return the text that the parameters in place say, as a file's bytes."""
    return (instruction_text(model.model) + "\n").encode()


def result_of(state: ServerState, initial: Tensors) -> Tensors:
    """Return all that the shared adapter or model consists of: what travelled, what never changed, what is aside."""
    return initial | state.memory.get(FIXED, {}) | state.memory.get(SIDE, {}) | state.params


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
