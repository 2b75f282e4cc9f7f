"""Statistics of a cohort, collected while its updates stream by: products of LoRA factors, holders of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from weft import registry
from weft.core import tensors
from weft.core.exchange import Aggregator, Runtime
from weft.core.metrics import summarise
from weft.core.party import Gathering, Party
from weft.core.types import AGGREGATOR, DELTA, FIXED, Probe, ServerState, Task, Tensors, Total, Update
from weft.errors import ClientFailed
from weft.federation.admission import admit_score
from weft.federation.own_aggregator import checked
from weft.federation.plan import Plan
from weft.federation.products import CPU, Products
from weft.federation.sharing import Holders
from weft.federation.state import to_use


class CohortWatch:
    """Watches the updates of one round; collects nothing where neither statistic is needed."""

    def __init__(self, plan: Plan, state: ServerState, tasks: Mapping[str, Task], asked: int, runtime: Runtime) -> None:
        """Begin a round.

        Args:
            plan: the parts.
            state: before the round.
            tasks: by client.
            asked: updates that are used where all clients answer.
            runtime: carries probes, where an aggregator tries updates on the server's own rows.
        """
        self.plan, self.state, self.tasks, self.asked, self.runtime = plan, state, tasks, asked, runtime
        algorithm, sharing = plan.algorithm, plan.sharing
        self.holders = Holders(state.params) if sharing.layers else None
        self.products: Products | None = None
        # The products of factors need single updates: they are not available under secure aggregation, and not
        # covered by the budget of differential privacy; and their mean is what a robust rule does not trust.
        single = not plan.protection.sum_only and not plan.privacy.bounded and plan.aggregator.additive
        one_model = algorithm.shares and algorithm.turns is None and algorithm.choice is None
        exact = sharing.lora.single_updates
        self.averages = one_model and DELTA in algorithm.streams and self.holders is None
        if sharing.scale is not None and self.averages and single and (exact or plan.error_device):
            fixed = state.memory.get(FIXED, {})
            self.products = Products(sharing.scale, fixed, exact=exact, device=plan.error_device or CPU)

    def watch(self, updates: Iterable[Update]) -> Iterable[Update]:
        """Return the same updates, each recorded as it passes."""
        if self.holders is not None:
            return self.holders.watch(updates)
        if self.products is not None:
            return self.products.watch(updates, {client: task.params for client, task in self.tasks.items()})
        return updates

    def aggregator(self, server: Callable[[str], Party]) -> Aggregator:
        """Return the plan's aggregator for this round; `server` returns the server as one part sees it, by prefix."""
        plan, state = self.plan, self.state
        params, loss = state.params | state.memory.get(FIXED, {}), self._loss if plan.trusted else None
        gathering = Gathering(
            server(AGGREGATOR), plan.updates_of(self.asked), params, plan.sharing.scale, plan.trusted, loss
        )
        return checked(plan.aggregator, gathering)

    def _loss(self, changed: Tensors) -> float:
        """Return the loss on the server's own rows with some parameters replaced; infinite where it cannot be had."""
        plan, state = self.plan, self.state
        use = to_use(plan.algorithm, replace(state, params=state.params | changed))
        metrics = registry.load(registry.EVALUATORS, plan.objective.evaluator, "evaluator").metrics
        for reply in self.runtime.exchange([Probe(plan.trusted, state.round, *use, personal=False)]):
            with suppress(ClientFailed):
                values = summarise(metrics, [admit_score(reply).metrics])
                for metric in metrics:
                    value = values.get(metric.name)
                    if value is not None and metric.better is not None:
                        return float(value) if metric.better == "lower" else -float(value)
        return math.inf

    def combine(self, total: Total) -> tuple[Total, float | None]:
        """Return the total after the LoRA aggregation, and its error relative to the mean product.

        The error is None where the server does not know the products, or nobody wants it.
        """
        if self.holders is not None:
            total = self.holders.mean(total)
        lora, products = self.plan.sharing.lora, self.products
        if self.averages and self.plan.sharing.scale is not None:
            total = lora.combine(total, self.state, products.mean() if products and lora.single_updates else {})
        if products is None or self.plan.error_device is None:
            return total, None
        params = self.state.params | tensors.add(total.streams[DELTA], self.state.params)
        return total, products.error(params, self.state.memory, total.streams)
