"""Keys of audits: planted records, by which a finished run is asked what it remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, field_validator

from weft.errors import ConfigError
from weft.keys.effects import NOT_SPREAD, Condition, Effect, flag, verbs

if TYPE_CHECKING:
    from weft.keys import RunConfig

FEWEST = 8
"""Fewest canaries of a run: coins keep about half of them out."""


class AuditKeys(BaseModel):
    """Planted records."""

    canaries: int = Field(
        0,
        ge=0,
        description="simulation: invented patients and accounts, of which coins put about half into the clients' "
        "training rows, for `weft audit`; 0: none",
    )
    canary_repetitions: list[int] = Field(
        [1, 4, 16, 64], description="how often a canary that is in the rows stands there, in turn"
    )
    canary_clients: list[str] = Field([], description="clients that get canaries [all]")
    canary_tokens: int = Field(
        0,
        ge=0,
        description="simulation: records beside the canaries whose answer is a token that occurs in no other row; 0: "
        "none",
    )

    @field_validator("canary_repetitions", mode="before")
    @classmethod
    def _counts(cls, value: object) -> object:
        """Take "1,4" for [1, 4], and a number for a list of one."""
        parts = value if isinstance(value, (list, tuple)) else [value]
        return [word for part in parts for word in str(part).split(",") if word.strip()]


def check(config: RunConfig) -> None:
    """Refuse keys of canaries that cannot be.

    Raises:
        ConfigError: with the remedy.
    """
    if not config.canaries:
        return
    if config.canaries < FEWEST:
        raise ConfigError(
            f"canaries is {config.canaries}, and coins keep about half of them out of the rows: write --canaries "
            f"{FEWEST} or more, such as 32."
        )
    if 0 < config.canary_tokens < FEWEST:
        raise ConfigError(
            f"canary_tokens is {config.canary_tokens}, and coins keep about half of them out of the rows: write "
            f"--canary_tokens {FEWEST} or more, such as 32."
        )
    counts = config.canary_repetitions
    if not counts or min(counts) < 1 or max(counts) > 10_000:
        raise ConfigError(
            f"canary_repetitions is {counts}, and a canary stands in the rows 1 to 10000 times: write such as "
            "--canary_repetitions 1 4 16 64."
        )


SIMULATION = (
    Condition(
        lambda config: config.runtime != "nvflare",
        "canaries are planted in a simulation, and nobody but a site itself puts rows among its own",
    ),
)
PLANTED: Effect = (*flag("canaries", "32"),)
WORKS: dict[str, Effect] = {
    "canaries": SIMULATION + NOT_SPREAD + verbs("sft"),
    "canary_repetitions": PLANTED,
    "canary_clients": PLANTED,
    "canary_tokens": PLANTED,
}
"""When each key has an effect."""
