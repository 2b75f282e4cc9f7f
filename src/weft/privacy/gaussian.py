"""Privacy of clients: bounded updates and Gaussian noise on their sum (McMahan et al. 2018, arXiv 1710.06963).

A client scales its update, all streams together, to a norm of at most C. The server adds up, adds noise of the standard
deviation z C to every coordinate, and divides by the expected size of the cohort: the number that really came would
tell of a client whether it took part. With `noise_at` client the noise is added in shares, so that it is there before
the server sees anything, and adds up under secure aggregation.

The bound may follow the norms (Andrew et al. 2021, arXiv 1905.03871): clients say whether their norm was below it, this
count gets noise too, and C <- C exp(-rate (share - quantile)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from weft.core.exchange import Privacy
from weft.core.party import Party
from weft.core.tensors import digest
from weft.core.types import BOUND, Streams, Tensors, Total, Update
from weft.errors import ClientFailed, ConfigError

NORM, BELOW = "norm", "below"
"""In the stream BOUND: the bound on its way to clients, and whether a client's norm was below it on the way back."""
SHARE_NOISE = 1 / 20
"""Noise of the count of norms below the bound, over the expected cohort, as in the paper."""
MOST_OF_BUDGET = 2.5
"""This noise is at least that many times z, so that the count takes 4 % of the budget at most."""


@dataclass(frozen=True)
class Gaussian(Privacy):
    """Gaussian noise for clients."""

    bounded: ClassVar[bool] = True
    private: ClassVar[bool] = True
    bound: float | Literal["adaptive"] | None = field(default=None, metadata={"key": "clip_norm"})
    """C, in the norm of an update's streams together; "adaptive", and None, follow the norms."""
    noise: float | None = field(default=None, metadata={"key": "noise_multiplier"})
    """z, the standard deviation of the noise over the bound; None: not solved yet."""
    noise_at: Literal["server", "client"] = field(default="server", metadata={"key": "noise_at"})
    cohort: int = field(default=1, metadata={"key": "sample_clients"})
    """The expected size of a cohort, by which the sum is divided."""
    shares: int = field(default=0, metadata={"key": "min_clients"})
    """Clients whose shares make up the noise, where clients add it: the round needs so many."""
    initial: float = 0.1
    """The adaptive bound at the start."""
    quantile: float = 0.5
    """Share of the norms that an adaptive bound lets through unchanged."""
    rate: float = 0.2
    """Of an adaptive bound; 0 keeps it."""

    def __post_init__(self) -> None:
        """Refuse arguments that no bound can follow.

        Raises:
            ConfigError: with the remedy.
        """
        for name, least, most, usual in (("initial", 1e-9, 1e9, 0.1), ("quantile", 0, 1, 0.5), ("rate", 0, 10, 0.2)):
            if not least <= (value := getattr(self, name)) <= most:
                raise ConfigError(
                    f"{name} in privacy_args is {value:g}, and the bound follows the norms of updates with a number "
                    f"from {least:g} to {most:g}: write {name}={usual:g}."
                )

    @property
    def draws_secrets(self) -> bool:  # type: ignore[override]
        """Whether clients draw from their secrets."""
        return self.noise_at == "client"

    @property
    def noise_in_shares(self) -> bool:  # type: ignore[override]
        """Whether the noise is the sum of what clients add."""
        return self.noise_at == "client"

    @property
    def adaptive(self) -> bool:
        """Whether the bound follows the norms."""
        return not isinstance(self.bound, float)

    def told(self, memory: Streams) -> Streams:
        """Return the bound, which clients must know, where it is not a number of the run."""
        return {BOUND: {NORM: torch.tensor(self._norm(memory))}} if self.adaptive else {}

    def like(self) -> Streams:
        """Return the stream that is added to an update."""
        return {BOUND: {BELOW: torch.zeros(())}} if self.adaptive else {}

    def on_client(self, update: Update, party: Party) -> tuple[Update, Streams]:
        """Scale the update to the bound, and add a share of the noise where clients add it.

        Raises:
            ClientFailed: a number of the update is not finite, or the server names a bound that cannot be.
        """
        most = self._told(party.told)
        norm = norm_of(update.streams)
        if not math.isfinite(norm):
            raise ClientFailed("its update is not finite")
        streams = clip(update.streams, norm, most)
        if self.adaptive:
            streams = streams | {BOUND: {BELOW: torch.tensor(0.5 if norm <= most else -0.5)}}
        if self.noise_at == "client" and self._noise:
            # So many shares at least make up the noise of the sum.
            noisy = self._noisy(streams, most, 1 / math.sqrt(max(1, self.shares)), party)
            streams = {n: {k: value.to(streams[n][k].dtype) for k, value in vs.items()} for n, vs in noisy.items()}
        return replace(update, streams=streams), party.memory

    def on_arrival(self, update: Update, memory: Streams) -> Update:
        """Scale an update that is seen by itself once more: no client may have more influence than the bound."""
        if self.noise_at == "client" or update.members:
            return update
        streams = {name: values for name, values in update.streams.items() if name != BOUND}
        streams = clip(streams, norm_of(streams), self._norm(memory))
        if self.adaptive:
            below = update.streams[BOUND][BELOW]
            streams[BOUND] = {BELOW: below.clamp(-0.5, 0.5)}
        return replace(update, streams=streams)

    def on_server(self, total: Total, party: Party) -> tuple[Total, Streams]:
        """Turn the mean into a noisy sum over the expected size of the cohort; return the new bound where it adapts."""
        norm = self._norm(party.memory)
        expected = float(self.cohort if not total.population_weight else min(self.cohort, total.population_weight))
        streams: Streams = {
            name: {key: value.double() * total.weight for key, value in values.items()}
            for name, values in total.streams.items()
        }
        if self.noise_at == "server" and self._noise:
            streams = self._noisy(streams, norm, 1.0, party)
        streams = {
            name: {key: (value / expected).to(total.streams[name][key].dtype) for key, value in values.items()}
            for name, values in streams.items()
        }
        memory: Streams = {}
        if self.adaptive:
            share = 0.5 + float(streams.pop(BOUND)[BELOW])
            # Noise may carry it outside, where it means nothing.
            share = min(1.0, max(0.0, share))
            norm *= math.exp(-self.rate * (share - self.quantile))
            memory = {BOUND: {NORM: torch.tensor(norm)}}
        return replace(total, streams=streams, weight=expected), memory

    @property
    def _noise(self) -> float:
        if self.noise is None:
            raise ValueError("the noise was not solved")
        return self.noise

    def _norm(self, memory: Streams) -> float:
        """Return the bound at the server."""
        if isinstance(self.bound, float):
            return self.bound
        return float(memory[BOUND][NORM] if BOUND in memory else torch.tensor(self.initial))

    def _told(self, told: Tensors) -> float:
        """Return the bound at a client."""
        if isinstance(self.bound, float):
            return self.bound
        most = float(told[NORM]) if NORM in told else math.nan
        if not 0 < most < math.inf:
            raise ClientFailed("was sent no bound for its update")
        return most

    def _noisy(self, streams: Streams, norm: float, part: float, party: Party) -> Streams:
        """Return the streams with `part` of the noise's standard deviation, as float64.

        The noise is drawn for these very streams: were a round run again with other updates after a crash, noise that
        follows from the round alone would be the same, and the difference of both sums would tell what was left out.
        """
        deviations = self._deviations(norm)
        words = (party.name, party.round, party.attempt, str(deviations), str(part), digest(streams))
        return {
            name: {
                key: value.double()
                + deviations[name == BOUND] * part * party.secret.normal(tuple(value.shape), "noise", *words, name, key)
                for key, value in values.items()
            }
            for name, values in streams.items()
        }

    def _deviations(self, norm: float) -> tuple[float, float]:
        """Return the standard deviations of the noise on the sum of updates, and on that of counts below the bound.

        Both together cost what z costs: z^-2 = z_1^-2 + (2 s)^-2, since a count changes by 1/2.
        """
        noise = self._noise
        if not self.adaptive:
            return noise * norm, 0.0
        count = max(self.cohort * SHARE_NOISE, MOST_OF_BUDGET * noise)
        return norm / math.sqrt(noise**-2 - (2 * count) ** -2), count


def norm_of(streams: Streams) -> float:
    """Return the norm of all streams together, in float64; NaN or infinity where a number is."""
    squares = [float(value.double().square().sum()) for values in streams.values() for value in values.values()]
    return math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.nan


def clip(streams: Streams, norm: float, most: float) -> Streams:
    """Return the streams scaled to a norm of at most `most`; unchanged where they have it.

    Args:
        streams: of floating-point numbers.
        norm: theirs, finite.
        most: above 0.
    """
    if norm <= most:
        return streams
    factor = most / norm
    while True:
        clipped = {n: {k: (v.double() * factor).to(v.dtype) for k, v in vs.items()} for n, vs in streams.items()}
        # Rounding to the streams' number format may leave a norm that is a little larger.
        if norm_of(clipped) <= most:
            return clipped
        factor *= 1 - 2.0**-12
