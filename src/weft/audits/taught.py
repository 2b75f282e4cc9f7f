"""Whose rows are in a model: those of a client that was left out, or never drawn, would be counted as remembered."""

from __future__ import annotations

from collections.abc import Callable

from weft import kinds
from weft.keys.privacy import CLIENT
from weft.launch.run import Run
from weft.runs import metrics


def taught_by(run: Run, client: str | None) -> Callable[[str], bool]:
    """Return what says of a client whether its rows are in the model that is audited.

    Args:
        run: the run.
        client: whose own model is audited; None: the shared one.

    Where the cohorts of a run are a secret, every client that may have been drawn counts.
    """
    config = run.config
    if config.fed_alg == "central":
        apart = {*config.leave_out, *config.forgotten}
        return lambda name: name not in apart
    if kinds.is_local(config.fed_alg) and client is not None:
        return lambda name: name == client
    rounds = [line for line in metrics.read(run.directory.metrics_file) if line.get("event") == "round"]
    # A run may be audited as it was after an earlier round.
    before = [line for line in rounds if run.round is None or line["round"] <= run.round]
    used = {name for line in before for name in line.get("clients") or ()}
    if not used and config.privacy_unit == CLIENT:  # the budget counts on nobody knowing who took part: all may have
        apart = {*config.leave_out, *config.forgotten}
        return lambda name: name not in apart
    return lambda name: name in used
