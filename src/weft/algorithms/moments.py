"""The optimizer's moments, which a client continues from round to round."""

from __future__ import annotations

from weft.core import tensors
from weft.core.parts import LocalRule
from weft.core.types import DELTA, LocalWork, RuleResult, Streams


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


def merged(previous: Streams, now: Streams) -> Streams:
    """Return the new moments, and the previous ones of parameters that were not trained."""
    return previous | {key: previous.get(key, {}) | values for key, values in now.items()}
