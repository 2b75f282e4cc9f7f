"""The guarantee of a run: what is protected, by whom, against whom, and what it costs.

`statement` follows NIST SP 800-226 (Guidelines for Evaluating Differential Privacy Guarantees): a guarantee is epsilon,
delta, the unit and the neighbouring relation together, with who is trusted and what stands outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from weft.json_types import JsonObject
from weft.privacy.accounting import Sampling, Steps, epsilon

AGAINST = {
    "server": "everybody who sees the model or the messages to clients, the other clients among them; the server adds "
    "the noise, sees the updates and is trusted",
    "client": "everybody who sees sums of updates; each client adds a share of the noise, so the server learns "
    "no more where it sees sums only (secure aggregation), and clients that work together can take off their shares",
    "steps": "everybody outside the client, the server among them; each client adds the noise to its own gradients",
}
SAMPLED = {
    "poisson": "by a coin of its own for each {unit}, with the probability {rate:.4g}, from a secret",
    "fixed": "{size} of {population} without replacement, by a secret; accounted as that, not as Poisson sampling",
    "full": "none is assumed: each {unit} may take part in every step",
}
OUTSIDE = [
    "the choice of hyper-parameters, where it was made with the same data",
    "which clients there are, how many {units} each has, and when they answer",
    "personal models, and what else stays at a client",
    "rows of `eval_dataset_name` and of evaluation tasks, which are taken for public: clients report no number of "
    "others",
]

COMPARED = (
    "the cleaning by {names}, which leaves out a row because of others: the guarantee is one of the data after "
    "cleaning, for one unit more or less before it can change which others are left"
)


@dataclass(frozen=True)
class Guarantee:
    """What a run protects, and how."""

    unit: str
    """"client", "row", or the column whose values are units."""
    sampling: Sampling
    noise: float
    """Noise multiplier."""
    delta: float
    target: float | None = None
    """The epsilon that must not be exceeded; None: there is none."""
    bound: float | None = None
    """Of what a unit adds; None: it adapts."""
    noise_by: Literal["server", "client", "steps"] = "server"
    steps: int = 1
    """Releases that a unit may be in, in a round."""
    units: int = 0
    """Of the client that is spent most of, where the noise is in the steps."""
    cleaners: tuple[str, ...] = ()
    """Those that compare a unit with others before the training."""

    @property
    def unit_text(self) -> str:
        """One unit, in words."""
        return self.unit if self.unit in ("client", "row") else f"value of {self.unit}"

    @property
    def release(self) -> Steps:
        """What one round releases."""
        return Steps(self.sampling, self.noise, self.steps)

    def epsilon(self, rounds: int) -> float:
        """Return what is spent after so many rounds, repeated ones included; infinity without noise."""
        return epsilon(self.sampling, self.noise, rounds * self.steps, self.delta)

    def allows(self, rounds: int) -> bool:
        """Say whether so many rounds keep to the target."""
        return self.target is None or self.epsilon(rounds) <= self.target

    def statement(self, rounds: int, spent: float) -> JsonObject:
        """Return the whole guarantee after so many rounds, which spent so much, in words and numbers that JSON has."""
        words = {"unit": self.unit_text, "rate": self.sampling.rate}
        words |= {"size": self.sampling.size, "population": self.sampling.population}
        neighbours = {
            "client": "all that one client has",
            "row": "one row of one client",
        }.get(self.unit, f"all rows of one client with the same value of {self.unit}")
        changed = "replaced by others" if self.sampling.kind == "fixed" else "left out (the number of units is public)"
        return {
            "unit": self.unit,
            "neighbours": f"two data sets that differ in {neighbours}, {changed}",
            "epsilon": spent if math.isfinite(spent) else None,
            "delta": self.delta,
            "target_epsilon": self.target,
            "mechanism": f"sums of contributions, each of a norm of {self._bound}, with Gaussian noise of "
            f"{self.noise:.6g} times it",
            "noise_multiplier": self.noise,
            "protects_against": AGAINST[self.noise_by],
            "sampling": SAMPLED[self.sampling.kind].format(**words),
            "releases": rounds * self.steps,
            "accountant": "privacy loss distributions (dp-accounting)"
            if self.sampling.kind != "fixed"
            else "Renyi differential privacy of sampling without replacement (dp-accounting)",
            "not_covered": [text.format(units=self._counted) for text in self._outside],
        }

    @property
    def _outside(self) -> list[str]:
        """What the guarantee says nothing of."""
        own = {"row": ["a text of `weft pretrain` as a whole: each window of seq_length tokens is a row"]}
        if self.unit == "client" and self.sampling.kind != "full":
            own["client"] = ["the number of clients in a round, which the bytes that it sent tell"]
        cleaned = [COMPARED.format(names=" and ".join(self.cleaners))] if self.cleaners else []
        return OUTSIDE + own.get(self.unit, []) + cleaned

    @property
    def _counted(self) -> str:
        """What the client's counts tell."""
        return "rows" if self.unit in ("client", "row") else f"rows and values of {self.unit}"

    @property
    def _bound(self) -> str:
        return "at most an adaptive bound" if self.bound is None else f"at most {self.bound:g}"
