"""What an audit needs of a run, and what is said of a run that lacks it."""

from __future__ import annotations

from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.errors import ConfigError, DataError
from weft.launch.canaries import why_lost

CAN_STILL = "exposure, epsilon, extraction, prompts (they need canaries), refusals or system_prompt"


def require_rows(scene: Scene) -> None:
    """Refuse a run whose rows are not here, and name what can still be asked.

    Raises:
        CannotAudit: they are at sites, cannot be read, changed since, or the canaries among them cannot be drawn again.
    """
    where = scene.run.path
    if scene.config.runtime == "nvflare":
        raise CannotAudit(
            f"The rows of the run in '{where}' are at its sites: write --tests with {CAN_STILL}, or audit a simulated "
            "run of the same keys."
        )
    if scene.config.objective not in ("sft", "causal_lm"):
        raise CannotAudit(
            f"The objective of the run in '{where}' is {scene.config.objective}, and rows of conversations or of text "
            f"are audited: write --tests with {CAN_STILL}."
        )
    _require_secrets(scene)  # canaries are among the rows
    try:
        _ = scene.population
    except DataError as error:
        raise CannotAudit(
            f"The rows of the run in '{where}' are not here ({error}) Bring them back, or write --tests with "
            f"{CAN_STILL}."
        ) from None
    except ConfigError as error:  # they changed since, or a secret is damaged: other audits need none
        raise CannotAudit(str(error)) from None


def require_canaries(scene: Scene) -> None:
    """Refuse a run that has no canaries.

    Raises:
        CannotAudit: it has none, or their secrets are gone, or the model has seen nothing of their clients.
    """
    where = scene.run.path
    if not scene.config.canaries:
        kind, remedy = scene.config.objective, "train it with --canaries 32, or write --tests membership"
        if kind != "sft":
            other = "membership" if kind == "causal_lm" else "refusals or system_prompt"
            remedy = f"`weft sft` alone plants them, so write --tests {other}"
        raise CannotAudit(
            f"The run in '{where}' has no canaries, by which it could be asked what it remembers: {remedy}."
        )
    _require_secrets(scene)
    if not scene.canaries:
        raise CannotAudit(
            f"No client that has canaries took part in the run in '{where}' by then, so that the model has seen none: "
            "audit a later --round."
        )


def _require_secrets(scene: Scene) -> None:
    """Refuse where canaries would be drawn anew, since nothing was trained on these: raise CannotAudit."""
    if why := why_lost(scene.config, scene.names, scene.run.directory):
        raise CannotAudit(why)
