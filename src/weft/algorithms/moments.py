"""The optimizer's moments, which a client continues from round to round."""

from __future__ import annotations

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, LocalWork, RuleResult, Streams, Task


class KeepMoments(LocalRule):
    """Continue the optimizer's moments from the client's memory, and keep them there; send the delta."""

    wants_moments = True

    def __init__(self, former: Streams) -> None:
        self.former = former

    def moments(self) -> Streams:
        """Return the moments of the client's former round."""
        return self.former

    def finish(self, work: LocalWork) -> RuleResult:
        """Return the delta, and the moments as memory."""
        return RuleResult({DELTA: tensors.subtract(work.end, work.start)}, merged(self.former, work.moments))


class ContinuesMoments(Algorithm):
    """FedAvg's client, who may continue its moments from round to round; for baselines of one client."""

    keep_moments: bool

    @property
    def stateful_clients(self) -> bool:  # type: ignore[override]
        """The client remembers its moments where it keeps them."""
        return self.keep_moments

    @property
    def remembers_coordinates(self) -> bool:  # type: ignore[override]
        """Moments are values for each coordinate."""
        return self.keep_moments

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Continue the moments where they are kept."""
        return KeepMoments(memory) if self.keep_moments else LocalRule()


def merged(previous: Streams, now: Streams) -> Streams:
    """Return the new moments, and the previous ones of parameters that were not trained."""
    return previous | {key: previous.get(key, {}) | values for key, values in now.items()}
