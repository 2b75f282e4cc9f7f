"""Statistics of a cohort, collected while its updates stream by: products of LoRA factors, holders of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from weft.core import tensors
from weft.core.exchange import Aggregator, Gathering, Party
from weft.core.types import AGGREGATOR, DELTA, FIXED, ServerState, Task, Total, Update
from weft.federation.plan import Plan
from weft.federation.products import CPU, Products
from weft.federation.sharing import Holders


class CohortWatch:
    """Watches the updates of one round; collects nothing where neither statistic is needed."""

    def __init__(self, plan: Plan, state: ServerState, tasks: Mapping[str, Task], asked: int) -> None:
        """Begin a round.

        Args:
            plan: the parts.
            state: before the round.
            tasks: by client.
            asked: updates that are used where all clients answer.
        """
        self.plan, self.state, self.tasks, self.asked = plan, state, tasks, asked
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
        state, sharing = self.state, self.plan.sharing
        params = state.params | state.memory.get(FIXED, {})
        return self.plan.aggregator.for_round(Gathering(server(AGGREGATOR), self.asked, params, sharing.scale))

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
