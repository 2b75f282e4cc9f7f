"""Clients that take no part in the training, and show how a model does at a site that it has never seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from weft import kinds
from weft.config import RunConfig
from weft.errors import ConfigError
from weft.launch.client_names import check_enough, unknown_client


def left_out_of(config: RunConfig, names: Sequence[str], tested: Collection[str]) -> tuple[str, ...]:
    """Return the clients that leave_out names.

    Args:
        config: of the run.
        names: of all clients.
        tested: names of those that have held-out rows.

    Raises:
        ConfigError: there is no such client, it has no held-out rows, or too few clients are left.
    """
    for name in config.leave_out:
        if name not in names:
            raise unknown_client(f"leave_out names the client '{name}', and there is none of that name", name, names)
        if name not in tested:
            raise ConfigError(
                f"leave_out names the client '{name}', which has no held-out rows to evaluate: write a larger "
                "--eval_fraction, or name another."
            )
    if config.leave_out:
        check_enough(config, "leave_out", len(names) - len(config.leave_out), len(names), "name fewer")
    only = kinds.check_algorithm(config.fed_alg)
    if only is not None and only < len(names) and names[only] in config.leave_out:
        raise ConfigError(
            f"fed_alg is {config.fed_alg}, which trains '{names[only]}' alone, and leave_out names it: name another."
        )
    return tuple(config.leave_out)
