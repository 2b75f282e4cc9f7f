"""The budget of a run: how much noise its keys ask for, and what its rounds have spent."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from weft.config import RunConfig
from weft.core.exchange import Privacy
from weft.core.files import cache_folder
from weft.core.secret import Secret
from weft.errors import ConfigError
from weft.federation.clients import Clients
from weft.json_types import JsonObject
from weft.keys import privacy as keys
from weft.launch.account import Account, released_rounds, require_rounds
from weft.launch.parts import comparing, part
from weft.launch.units import unit_counts
from weft.privacy.accounting import Sampling, epsilon, solve_noise
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
    if guarantee is None:
        return None
    account = Account(guarantee, run.path / LEDGER, run.secret)
    require_rounds(account.ledger, released_rounds(run))
    return account


def statement_of(config: RunConfig, path: Path, delta: float | None = None) -> JsonObject:
    """Return the guarantee of what a run has released so far.

    Args:
        config: its keys.
        path: its directory.
        delta: at which epsilon is given; None: the run's.

    Raises:
        ConfigError: the run has no guarantee, or its ledger was changed by hand.
    """
    entries: list[JsonObject] = []
    if keys.is_private(config):
        ledger, released = Ledger(path / LEDGER), released_rounds(RunDir(path))
        require_rounds(ledger, released)
        entries = ledger.entries
    units = int(entries[-1]["units"]) if entries else 0
    guarantee = guarantee_of(config, privacy_part(config), units) if keys.is_private(config) else None
    if guarantee is None and keys.is_private(config) and not entries:
        raise ConfigError(f"The run in '{path}' has released nothing yet: wait for its first round.")
    if guarantee is None:
        raise ConfigError(
            f"The run in '{path}' has no budget of differential privacy: a run has one with --privacy_unit."
        )
    guarantee = guarantee if delta is None else replace(guarantee, delta=delta)
    return Account(guarantee, path / LEDGER, Secret.random).statement()
