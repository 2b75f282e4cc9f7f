"""What the server learns of a cohort while updates stream by: products of LoRA factors, and who has which layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weft.core import tensors
from weft.core.types import DELTA, FIXED, ServerState, Task, Total, Update
from weft.federation.plan import Plan
from weft.federation.products import Products
from weft.federation.sharing import Holders


class CohortWatch:
    """Watches the updates of one round; nothing is kept where nobody asks for it."""

    def __init__(self, plan: Plan, state: ServerState, tasks: Mapping[str, Task]) -> None:
        """Begin a round with the state before it and the tasks as the clients take them."""
        self.plan, self.state, self.tasks = plan, state, tasks
        algorithm, sharing = plan.algorithm, plan.sharing
        self.holders = Holders(state.params) if sharing.layers else None
        self.products: Products | None = None
        single = not plan.protection.sum_only and not plan.privacy.bounded
        one = algorithm.shares and algorithm.turns is None and algorithm.choice is None
        if sharing.scale is not None and one and single and DELTA in algorithm.streams and self.holders is None:
            exact = sharing.lora.single_updates
            self.products = Products(sharing.scale, state.memory.get(FIXED, {}), exact=exact)

    def over(self, updates: Iterable[Update]) -> Iterable[Update]:
        """Return the updates, watched as they go by."""
        if self.holders is not None:
            return self.holders.watch(updates)
        if self.products is not None:
            return self.products.watch(updates, {client: task.params for client, task in self.tasks.items()})
        return updates

    def combine(self, total: Total) -> tuple[Total, float | None]:
        """Return the total as the aggregation of LoRA factors makes it, and the relative error of the mean product."""
        if self.holders is not None:
            total = self.holders.mean(total)
        if self.products is None:
            return total, None
        total = self.plan.sharing.lora.combine(total, self.state, self.products.mean())
        averaged = self.state.params | tensors.add(total.streams[DELTA], self.state.params)
        return total, self.products.error(averaged, self.state.memory, total.streams)
