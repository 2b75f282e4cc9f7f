"""Resuming a run: which keys may differ from before, and what that changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from weft.config import VOLATILE, RunConfig
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.keys.privacy import is_private
from weft.runs.fingerprints import Fingerprints, check
from weft.runs.layout import RunDir

CHANGEABLE = VOLATILE | {
    "num_rounds",
    "min_clients",
    "max_attempts",
    "max_update_norm",
    "max_client_share",
    "early_stopping_rounds",
}
"""Keys that may differ when a run is resumed: no result depends on them, or they say how it goes on from here."""


def changeable(config: RunConfig) -> frozenset[str]:
    """Return the keys that may differ when a run is resumed; not the rounds that its noise was solved for."""
    solved = is_private(config) and config.noise_multiplier is None
    return CHANGEABLE - {"num_rounds"} if solved else CHANGEABLE


def check_rounds(config: RunConfig) -> JsonObject | None:
    """Return the keys that a run was made with, before it is resumed; None where nothing is there.

    Raises:
        ConfigError: it has finished more rounds than `num_rounds`.
    """
    run = RunDir(config.output_dir)
    if not run.holds_run:
        return None
    count = max(run.rounds, default=0)
    if config.num_rounds < count:
        raise ConfigError(
            f"num_rounds is {config.num_rounds}, but the run in '{run.path}' has finished {count} rounds: write "
            f"--num_rounds {count} or more; `weft export {run.path} --round N` writes the model of an earlier round, "
            f"where N is one of {', '.join(map(str, run.rounds))}."
        )
    return run.read_config()


def describe_extension(config: RunConfig, plan: Plan, former: JsonObject | None, rounds_done: int) -> str | None:
    """Say what another number of rounds does to the learning rate, which follows a schedule over all of them.

    Args:
        config: of the run from now on.
        plan: its parts.
        former: the keys that it was made with.
        rounds_done: rounds that are done.
    """
    former_rounds = (former or {}).get("num_rounds", config.num_rounds)
    if former_rounds == config.num_rounds or not rounds_done:
        return None
    change = f"num_rounds was {former_rounds} and is now {config.num_rounds}"
    schedule = getattr(plan.local, "schedule", None)
    if schedule is None or schedule.kind == "constant" or rounds_done == config.num_rounds:
        return f"{change}."
    steps = max(1, plan.local.steps)
    last = replace(schedule, rounds=former_rounds).at(rounds_done - 1, steps - 1, steps)
    next_one = schedule.at(rounds_done, 0, steps)
    return (
        f"{change}: from here on the learning rate follows a schedule over {config.num_rounds} rounds, "
        f"{next_one:.3g} in round {rounds_done + 1} after {last:.3g} in round {rounds_done}."
    )


def report_changes(config: RunConfig, run: RunDir, current: Fingerprints, note: Callable[[str], None]) -> None:
    """Report which of a run's sources changed since it began; ConfigError unless `accept_changed` allows it."""
    if max(run.rounds, default=0) and not run.fingerprints_file.exists():
        note(
            "an older version began this run and recorded no fingerprints of what it was made from: changes are "
            "noticed from now on."
        )
    if names := check(run, current, accept=config.accept_changed):
        note(f"{' and '.join(names)} changed since the run was made; the run continues with the current version.")
        run.reference_file.unlink(missing_ok=True)  # it is of the former rows and base
