"""Whose rows are in a model: those of a client that was left out, or never drawn, would be counted as remembered."""

from __future__ import annotations

from collections.abc import Callable

from weft import kinds
from weft.launch.run import Run
from weft.runs import metrics


def taught_by(run: Run, client: str | None) -> Callable[[str], bool]:
    """Return what says of a client whether its rows are in the model that is audited.

    Args:
        run: the run.
        client: whose own model is audited; None: the shared one.
    """
    config = run.config
    if config.fed_alg == "central":
        apart = {*config.leave_out, *config.forgotten}
        return lambda name: name not in apart
    if kinds.is_local(config.fed_alg) and client is not None:
        return lambda name: name == client
    rounds = [line for line in metrics.read(run.directory.metrics_file) if line.get("event") == "round"]
    used = {name for line in rounds for name in line.get("clients") or ()}
    return lambda name: name in used
