"""Clients that a run forgets: they keep their numbers, and nothing of their rows is read or used."""

from __future__ import annotations

from collections.abc import Sequence

from weft.config import RunConfig
from weft.errors import ConfigError
from weft.launch.client_names import check_enough, unknown_client


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
    if config.forgotten:
        left = len(names) - len({*config.forgotten, *config.leave_out})
        check_enough(config, "forgotten", left, len(names), "begin another run with fewer clients in a round")
    return tuple(sorted(list(names).index(name) for name in config.forgotten))


def unknown(name: str, names: Sequence[str]) -> ConfigError:
    """Return the error of a client that does not exist."""
    return unknown_client(f"There is no client '{name}' to forget", name, names)
