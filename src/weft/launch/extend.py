"""Going on with a run: what may be other than before, and what that means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from weft.config import VOLATILE, RunConfig
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.runs.fingerprints import Fingerprints, check
from weft.runs.layout import RunDir

CHANGEABLE = VOLATILE | {"num_rounds", "min_clients", "max_attempts"}
"""Keys that may differ when a run is resumed: no result depends on them, or they say how it goes on from here."""


def check_rounds(config: RunConfig) -> JsonObject | None:
    """Return the keys that a run was made with, before it is resumed; None where nothing is there.

    Raises:
        ConfigError: more rounds are behind it than it is to have.
    """
    run = RunDir(config.output_dir)
    if not run.holds_run:
        return None
    behind = max(run.rounds, default=0)
    if config.num_rounds < behind:
        raise ConfigError(
            f"num_rounds is {config.num_rounds}, but {behind} rounds are behind the run in '{run.path}': write "
            f"--num_rounds {behind} or more; `weft export {run.path} --round N` writes the model of an earlier round, "
            f"where N is one of {', '.join(map(str, run.rounds))}."
        )
    return run.read_config()


def describe_extension(config: RunConfig, plan: Plan, former: JsonObject | None, behind: int) -> str | None:
    """Say what another number of rounds does to the learning rate, which follows a schedule over all of them.

    Args:
        config: of the run from now on.
        plan: its parts.
        former: the keys that it was made with.
        behind: rounds that are done.
    """
    before = (former or {}).get("num_rounds", config.num_rounds)
    if before == config.num_rounds or not behind:
        return None
    changed = f"num_rounds was {before} and is now {config.num_rounds}"
    schedule = getattr(plan.local, "schedule", None)
    if schedule is None or schedule.kind == "constant" or behind == config.num_rounds:
        return f"{changed}."
    steps = max(1, plan.local.steps)
    last = replace(schedule, rounds=before).at(behind - 1, steps - 1, steps)
    next_one = schedule.at(behind, 0, steps)
    return (
        f"{changed}: from here on the learning rate is that of a run of {config.num_rounds} rounds, "
        f"{next_one:.3g} in round {behind + 1} after {last:.3g} in round {behind}."
    )


def say_changed(config: RunConfig, run: RunDir, now: Fingerprints, note: Callable[[str], None]) -> None:
    """Say what of that which a run was made from changed, before it goes on; ConfigError where that is not accepted."""
    if max(run.rounds, default=0) and not run.fingerprints_file.exists():
        note("what the run was made from is not known, for an older version began it: it is compared from now on.")
    if changed := check(run, now, accept=config.accept_changed):
        note(f"{' and '.join(changed)} changed since the run was made; it goes on with what is there now.")
        run.reference_file.unlink(missing_ok=True)  # it is of the former rows and base
