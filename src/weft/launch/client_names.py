"""Names of clients that a key or a flag gives: whether there are such, and whether enough others are left to train."""

from __future__ import annotations

from collections.abc import Sequence

from weft import registry
from weft.config import RunConfig
from weft.errors import ConfigError

MOST = 20
"""Names in a message."""


def unknown_client(sentence: str, name: str, names: Sequence[str]) -> ConfigError:
    """Return the error of a name that no client has.

    Args:
        sentence: says so, without its full stop.
        name: the wrong one.
        names: of the clients.
    """
    guess = registry.nearest(name, list(names))
    hint = f" Did you mean '{guess}'?" if guess else ""
    known = ", ".join(names[:MOST]) + (", ..." if len(names) > MOST else "")
    return ConfigError(f"{sentence}.{hint} Known: {known}.")


def check_enough(config: RunConfig, key: str, left: int, of: int, remedy: str) -> None:
    """Refuse where a key that takes clients out leaves fewer than a round needs.

    Args:
        config: of the run.
        key: its name.
        left: clients that train.
        of: all clients.
        remedy: what to do instead.

    Raises:
        ConfigError: so few are left.
    """
    least = max(1, config.min_clients)
    if config.fed_alg == "fedbuff":  # as many train at any time, so that a buffer is filled
        least = max(least, config.sample_clients)
    if left < least:
        raise ConfigError(f"{key} leaves {left} of {of} clients to train, and a round needs {least}: {remedy}.")
