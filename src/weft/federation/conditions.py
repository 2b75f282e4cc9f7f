"""The conditions of a simulation: clients that drop out, and clients that are slow."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.seeds import generator


@dataclass(frozen=True)
class Conditions:
    """Simulated drop-outs and speeds, as a function of (seed, round, attempt, client) alone."""

    seed: int = 0
    failure_rate: float = 0.0
    """Probability that a sampled client drops out of a round."""
    speeds: tuple[float, ...] = ()
    """Speeds of the clients by index, repeated cyclically; 1 makes all steps in the time of a round."""

    def fails(self, round: int, attempt: int, client: str) -> bool:
        """Say whether a client drops out."""
        if self.failure_rate <= 0:
            return False
        return bool(generator(self.seed, "drops out", round, attempt, client).random() < self.failure_rate)

    def speed(self, client: int) -> float:
        """Return the speed of a client."""
        return self.speeds[client % len(self.speeds)] if self.speeds else 1.0

    def step_fraction(self, client: int) -> float:
        """Return the share of its steps that a client makes in the time of a round."""
        return min(1.0, self.speed(client))
