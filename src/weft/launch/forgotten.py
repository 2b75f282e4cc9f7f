"""Clients that a run forgets: they keep their numbers, and nothing of their rows is read or used."""

from __future__ import annotations

from collections.abc import Sequence

from weft import registry
from weft.config import RunConfig
from weft.errors import ConfigError


def forgotten_of(config: RunConfig, names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the clients that `forgotten` names.

    Args:
        config: of the run.
        names: of all clients.

    Raises:
        ConfigError: there is no such client, or too few are left.
    """
    for name in config.forgotten:
        if name not in names:
            raise unknown(name, names)
    left, least = len(names) - len({*config.forgotten, *config.leave_out}), max(1, config.min_clients)
    if config.fed_alg == "fedbuff":  # as many train at any time, so that a buffer is filled
        least = max(least, config.sample_clients)
    if config.forgotten and left < least:
        raise ConfigError(
            f"forgotten leaves {left} of {len(names)} clients to train, and a round needs {least}: begin another run "
            "with fewer clients in a round."
        )
    return tuple(sorted(list(names).index(name) for name in config.forgotten))


def unknown(name: str, names: Sequence[str]) -> ConfigError:
    """Return the error of a client that does not exist."""
    guess = registry.nearest(name, list(names))
    hint = f" Did you mean '{guess}'?" if guess else ""
    known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return ConfigError(f"There is no client '{name}' to forget.{hint} Known: {known}.")
