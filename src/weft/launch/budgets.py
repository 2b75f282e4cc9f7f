"""The budget of a run: how much noise its keys ask for, and what its rounds have spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from weft.config import RunConfig
from weft.core.exchange import Privacy
from weft.core.files import cache_folder
from weft.core.secret import Secret
from weft.core.tensors import digest
from weft.core.types import ServerState, Total
from weft.errors import BudgetSpent, ConfigError
from weft.federation.clients import Clients
from weft.json_types import JsonObject
from weft.keys import privacy as keys
from weft.launch.parts import comparing, part
from weft.launch.units import unit_counts
from weft.privacy.accounting import Sampling, Steps, composed, epsilon, solve_noise
from weft.privacy.gaussian import Gaussian
from weft.privacy.guarantee import Guarantee
from weft.privacy.ledger import Ledger
from weft.privacy.rows import Rows
from weft.runs.layout import RunDir
from weft.runs.start import LEDGER

SOLVED = "solved.json"
TRIED = 16
"""Numbers of units, at most, of which the one that spends most is looked for."""


def privacy_part(config: RunConfig) -> Privacy:
    """Make the privacy part, with the noise that its keys ask for; raises as `part` does."""
    privacy: Privacy = part("privacy", config)
    if isinstance(privacy, Gaussian) and privacy.noise is None:
        privacy = replace(privacy, noise=client_noise(config))
    check_first_round(guarantee_of(config, privacy))
    return privacy


def check_first_round(guarantee: Guarantee | None) -> None:
    """Raise ConfigError where not even one round keeps to the target."""
    if guarantee is not None and not guarantee.allows(1):
        raise ConfigError(
            f"One round with a noise_multiplier of {guarantee.noise:g} spends an epsilon of "
            f"{guarantee.epsilon(1):.4g}, more than target_epsilon ({guarantee.target:g}): leave out "
            "--noise_multiplier, which then follows."
        )


def sampling_of(config: RunConfig) -> Sampling:
    """Return how cohorts are sampled, as far as the budget of clients may count on it.

    Between sites, and where clients with more rows are likelier, it may not count on chance at all.

    Raises:
        ConfigError: the number of clients is not known yet, and the budget depends on it.
    """
    clients = len(config.clients or ()) or config.num_clients
    if config.runtime == "nvflare" or config.client_sampling == "size":
        return Sampling("full")
    if config.noise_at == "client" or (config.availability and config.client_sampling == "uniform"):
        # The server, against which clients make noise, draws the cohort. Of few clients at hand, each is in it.
        return Sampling("full")
    if clients == 0:
        raise ConfigError(
            "num_clients is 0, as many as the source has values, and what a round spends of the budget depends on it: "
            "write their number as --num_clients N."
        )
    clients -= len(config.leave_out or ())
    size = min(config.sample_clients, clients)
    return Sampling.poisson(size / clients) if config.client_sampling == "poisson" else Sampling.fixed(size, clients)


def client_noise(config: RunConfig) -> float:
    """Return the noise multiplier of privacy_unit client; ConfigError where no noise would do."""
    return solved(config, sampling_of(config), config.num_rounds)


def row_noise(config: RunConfig, units: int) -> float:
    """Return the noise multiplier of the local steps of a client with so many units; ConfigError for none."""
    sampling, steps = _local_sampling(config, units)
    return solved(config, sampling, config.num_rounds * steps)


def _local_sampling(config: RunConfig, units: int) -> tuple[Sampling, int]:
    """Return how a client with so many units samples them at a step, and its steps in a round."""
    size = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps if config.max_steps > 0 else max(1, math.ceil(units * config.num_train_epochs / size))
    return Sampling.poisson(min(1.0, size / units)), steps


def solved(config: RunConfig, sampling: Sampling, steps: int) -> float:
    """Return noise_multiplier, or the least with which so many steps keep to target_epsilon, from the disk's cache.

    Raises:
        ConfigError: no noise would do.
        MissingExtra: dp-accounting is not installed.
    """
    if config.noise_multiplier is not None:
        return config.noise_multiplier
    assert config.target_epsilon is not None  # `weft.keys.privacy.check` asks for one of both
    cache: Path = cache_folder("noise") / SOLVED
    try:
        return solve_noise(config.target_epsilon, config.target_delta, sampling, steps, cache)
    except ValueError as error:
        raise ConfigError(f"{str(error).capitalize()}: write a larger --target_epsilon, or fewer rounds.") from None


def guarantee_of(config: RunConfig, privacy: Privacy, units: int = 0) -> Guarantee | None:
    """Return the guarantee of a run; None: it has none, it is that of a part of the user's own, or it is not known.

    Args:
        config: the run.
        privacy: its part.
        units: as of `deciding_units`; 0: not known.
    """
    bound = keys.bound(config)
    if isinstance(privacy, Rows) and units:
        sampling, steps = _local_sampling(config, units)
        return Guarantee(
            unit=config.privacy_unit,
            sampling=sampling,
            noise=row_noise(config, units),
            delta=config.target_delta,
            target=config.target_epsilon,
            bound=bound if isinstance(bound, float) else None,
            noise_by="steps",
            steps=steps,
            units=units,
            cleaners=comparing(config),
        )
    if not isinstance(privacy, Gaussian) or privacy.noise is None:
        return None
    return Guarantee(
        unit=config.privacy_unit,
        sampling=sampling_of(config),
        noise=privacy.noise,
        delta=config.target_delta,
        target=config.target_epsilon,
        bound=bound if isinstance(bound, float) else None,
        noise_by=privacy.noise_at,
        cleaners=comparing(config),
    )


def deciding_units(config: RunConfig, clients: Clients) -> int:
    """Return the units of the client that a run spends most of; of the federation, where clients are the units.

    With a number of steps this is the client with the fewest units. With epochs, one with more units makes more steps.
    """
    if config.privacy_unit == keys.CLIENT:
        return len(clients)
    counts = sorted({count for count in clients.num_units or unit_counts(clients.units, clients.train) if count})
    if config.max_steps > 0 or len(counts) < 2:
        return counts[0] if counts else 0
    # Of clients that make the same steps the smallest spends most. Where each unit is in every step, more steps cost
    # more; above, the probability falls faster than the steps grow, but for the rounding to whole steps.
    smallest: dict[tuple[int, bool], int] = {}
    for count in counts:
        sampling, steps = _local_sampling(config, count)
        smallest.setdefault((steps, sampling.kind == "full"), count)
    certain = [count for (_, full), count in smallest.items() if full][-1:]
    likely = [count for (_, full), count in smallest.items() if not full][:TRIED]
    return max(certain + likely, key=lambda count: _spent_by(config, count), default=0)


def _spent_by(config: RunConfig, units: int) -> float:
    """Return the epsilon that all rounds of a run spend of a client with so many units."""
    sampling, steps = _local_sampling(config, units)
    return epsilon(sampling, row_noise(config, units), config.num_rounds * steps, config.target_delta)


def account_of(config: RunConfig, privacy: Privacy, run: RunDir, clients: Clients) -> Account | None:
    """Return the account of a run with a guarantee; ConfigError where its ledger was changed by hand."""
    guarantee = guarantee_of(config, privacy, deciding_units(config, clients))
    check_first_round(guarantee)
    return None if guarantee is None else Account(guarantee, run.path / LEDGER, run.secret)


def statement_of(config: RunConfig, path: Path, delta: float | None = None) -> JsonObject:
    """Return the guarantee of what a run has released so far.

    Args:
        config: its keys.
        path: its directory.
        delta: at which epsilon is given; None: the run's.

    Raises:
        ConfigError: the run has no guarantee, or its ledger was changed by hand.
    """
    entries = Ledger(path / LEDGER).entries if keys.is_private(config) else []
    units = int(entries[-1]["units"]) if entries else 0
    guarantee = guarantee_of(config, privacy_part(config), units) if keys.is_private(config) else None
    if guarantee is None and keys.is_private(config):
        raise ConfigError(f"The run in '{path}' has released nothing yet: wait for its first round.")
    if guarantee is None:
        raise ConfigError(
            f"The run in '{path}' has no budget of differential privacy: a run has one with --privacy_unit."
        )
    guarantee = guarantee if delta is None else replace(guarantee, delta=delta)
    return Account(guarantee, path / LEDGER, Secret.random).statement()


class Account:
    """What the rounds of a run spend, in a ledger in its directory."""

    def __init__(self, guarantee: Guarantee, file: Path, secret: Callable[[], Secret]) -> None:
        """Open the ledger.

        Args:
            guarantee: of the run.
            file: the ledger.
            secret: of the server.

        Raises:
            ConfigError: the ledger was changed by hand.
        """
        self.guarantee, self.secret = guarantee, secret
        self.ledger = Ledger(file)
        self._places = {_key(entry): place for place, entry in enumerate(self.ledger.entries, 1)}
        self._steps = [steps_of(entry) for entry in self.ledger.entries]
        self._now = 0

    def check(self, state: ServerState) -> None:
        """Raise BudgetSpent where the next round would exceed the target."""
        known = [place for (round, attempt, *_), place in self._places.items() if (round, attempt) == _place(state)]
        if not self._allows(known[0] if known else len(self._places) + 1):
            raise self._spent(state)

    def spend(self, state: ServerState, total: Total) -> None:
        """Write down that a round is released; the very same one, once more after a crash, costs nothing.

        Raises:
            BudgetSpent: it would exceed the target.
        """
        # A tag that nobody else can compute: the ledger says nothing of the updates.
        tag = self.secret().bytes(16, "release", digest(total.streams), str(total.weight)).hex()
        round, attempt = _place(state)
        entry: JsonObject = {"round": round + 1, "attempt": attempt, "release": tag} | entry_of(self.guarantee)
        if _key(entry) not in self._places:
            count = len(self._places) + 1
            if not self._allows(count):
                raise self._spent(state)
            spent = self._epsilon(count)
            self.ledger.append(entry | {"epsilon": spent if math.isfinite(spent) else None})
            self._places[_key(entry)] = count
            self._steps.append(self.guarantee.release)
        self._now = self._places[_key(entry)]

    def line(self) -> JsonObject:
        """Return what a round's line of metrics.jsonl says: the budget, and nothing of who was chosen by a secret."""
        spent = self._epsilon(self._now)
        hidden: JsonObject = {"clients": [], "failures": {}} if self.hides_cohort else {}
        return {"epsilon": spent if math.isfinite(spent) else None, **hidden}

    @property
    def hides_cohort(self) -> bool:
        """Whether the budget counts on nobody knowing who takes part."""
        return self.guarantee.unit == keys.CLIENT and self.guarantee.sampling.kind != "full"

    def statement(self) -> JsonObject:
        """Return the guarantee of all that was released."""
        return self.guarantee.statement(len(self._places), self._epsilon(len(self._places)))

    def _epsilon(self, count: int) -> float:
        """Return what the first so many releases spend, each with the noise that it had."""
        return composed([*self._steps, self.guarantee.release][:count], self.guarantee.delta)

    def _allows(self, count: int) -> bool:
        return self.guarantee.target is None or self._epsilon(count) <= self.guarantee.target

    def _spent(self, state: ServerState) -> BudgetSpent:
        now = self._epsilon(len(self._places))
        return BudgetSpent(
            f"The budget is spent: after {state.round} rounds epsilon is {now:.4g} at a delta of "
            f"{self.guarantee.delta:g}, and one more would exceed target_epsilon ({self.guarantee.target:g})."
        )


def _place(state: ServerState) -> tuple[int, int]:
    return state.round, state.attempts


def entry_of(guarantee: Guarantee) -> JsonObject:
    """Return what a release is, for the ledger."""
    sampling = asdict(guarantee.sampling)
    return {"noise": guarantee.noise, "sampling": sampling, "steps": guarantee.steps, "units": guarantee.units}


def steps_of(entry: JsonObject) -> Steps:
    """Return what an entry of a ledger says was released."""
    return Steps(Sampling(**entry["sampling"]), float(entry["noise"]), int(entry["steps"]))


def _key(entry: JsonObject) -> tuple[int, int, str, float]:
    return entry["round"] - 1, entry["attempt"], entry["release"], entry["noise"]
