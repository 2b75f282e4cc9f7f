"""Keys of differential privacy: what is protected, how much may be learnt of it, and how that is brought about."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from weft.errors import ConfigError
from weft.keys.effects import ALWAYS, Condition, Effect

if TYPE_CHECKING:
    from weft.keys import RunConfig

LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
"""Noise multipliers whose budget can be computed."""
CLIENT, ROW, NONE = "client", "row", "none"
"""Values of `privacy_unit`; any other is the name of a column."""
PARTS = {NONE: "none", CLIENT: "gaussian"}
"""The privacy part that each unit has; rows and columns have `ROWS_PART`."""
ROWS_PART = "rows"


class PrivacyKeys(BaseModel):
    """Differential privacy."""

    privacy_unit: str = Field(
        NONE,
        description="what differential privacy protects: a whole client (client), one row (row), or all rows "
        "with one value of a column, such as a patient (the column's name); none: no guarantee",
    )
    target_epsilon: float | None = Field(
        None, gt=0, description="epsilon of the whole run: sets the noise; with noise_multiplier, ends the run in time"
    )
    target_delta: float = Field(
        1e-5, gt=0, lt=1, description="delta of the whole run; at most 1 / the number of protected units"
    )
    noise_multiplier: float | None = Field(
        None, ge=0, description="standard deviation of the noise / clip_norm [solved from target_epsilon]"
    )
    clip_norm: float | Literal["adaptive"] | None = Field(
        None,
        description="bound of what one unit adds: the norm of an update (client) or of a gradient; adaptive: "
        "follows the updates' norms [client: adaptive; others: 1]",
    )
    noise_at: Literal["server", "client"] = Field(
        "server", description="who adds the noise of privacy_unit client: the server, or every client a share"
    )
    max_rows_per_unit: int | None = Field(
        None, ge=1, description="rows of one value of the column that are used; further ones are left out [all]"
    )


def is_private(config: RunConfig) -> bool:
    """Say whether a run has a budget of differential privacy."""
    return config.privacy_unit != NONE


def unit_kind(unit: str) -> str:
    """Return "none", "client", "row" or "column"."""
    return unit if unit in (NONE, CLIENT, ROW) else "column"


def bound(config: RunConfig) -> float | Literal["adaptive"]:
    """Return the bound of what one unit adds, or "adaptive"."""
    if config.clip_norm is not None:
        return config.clip_norm
    return "adaptive" if config.privacy_unit == CLIENT else 1.0


def part_of_unit(unit: str) -> str:
    """Return the name of the privacy part that protects a unit."""
    return PARTS.get(unit, ROWS_PART)


def check(config: RunConfig) -> None:
    """Refuse keys of privacy that cannot be, or cannot be together.

    Raises:
        ConfigError: with the remedy.
    """
    unit, own = config.privacy_unit, part_of_unit(config.privacy_unit)
    if config.privacy != own and config.privacy in (*PARTS.values(), ROWS_PART):
        raise ConfigError(
            f"privacy is {config.privacy}, and privacy_unit is {unit}, which has the part '{own}': leave out "
            "--privacy, and write --privacy_unit alone."
        )
    if config.client_sampling == "poisson" and config.over_selection:
        raise ConfigError(
            "client_sampling is poisson, so that a cohort has the size that chance gives it, and over_selection asks "
            "for more clients than are used: leave out --over_selection."
        )
    if not is_private(config):
        return
    if config.target_epsilon is None and config.noise_multiplier is None:
        raise ConfigError(
            f"privacy_unit is {unit}, and nothing says how much noise there is: write --target_epsilon 8, or "
            "--noise_multiplier 1."
        )
    if config.target_epsilon is not None and config.noise_multiplier == 0:
        raise ConfigError(
            "noise_multiplier is 0, and a run without noise has no epsilon: leave out --noise_multiplier, so that "
            "target_epsilon sets it, or leave out --target_epsilon."
        )
    if config.noise_multiplier and not LEAST_NOISE <= config.noise_multiplier <= MOST_NOISE:
        raise ConfigError(
            f"noise_multiplier is {config.noise_multiplier:g}, which protects or leaves nothing: write a number "
            f"from {LEAST_NOISE:g} to {MOST_NOISE:g}, such as 1, or --target_epsilon 8 in its place."
        )
    if config.target_epsilon is not None and not math.isfinite(config.target_epsilon):
        raise ConfigError("target_epsilon is infinite, which protects nothing: leave out --privacy_unit.")
    _check_bound(config)
    if unit != CLIENT:
        _check_rows(config)
    if config.federated_tokenizer:
        raise ConfigError(
            "federated_tokenizer counts words of all clients, which no budget covers: write --tokenizer NAME_OR_PATH, "
            "or --tokenizer_text FILE with public text."
        )
    if config.noise_at == "client" and unit != CLIENT:
        raise ConfigError(
            f"noise_at says who adds the noise to the updates of clients, and privacy_unit is {unit}, whose noise "
            "every client adds: leave out --noise_at, or write --privacy_unit client."
        )


def _check_rows(config: RunConfig) -> None:
    """Check a run that protects single rows, or all with one value of a column."""
    if config.few_shot:
        raise ConfigError(
            "few_shot puts some rows of a client before all its others, so that no bound holds for them: leave out "
            "--few_shot."
        )
    if config.dtype == "float16":
        raise ConfigError(
            "Gradients of single rows are not scaled, as float16 needs it: write --dtype bfloat16 or float32."
        )
    if config.gradient_checkpointing is True:
        raise ConfigError(
            "Gradients of single rows are noted by layers as they are called, and recomputation calls them twice: "
            "leave out --gradient_checkpointing."
        )
    if unit_kind(config.privacy_unit) == "column" and config.objective == "causal_lm":
        raise ConfigError(
            f"privacy_unit is '{config.privacy_unit}', and documents of plain text are joined and cut into rows, which "
            "have no columns: write --privacy_unit row or client."
        )


def _check_bound(config: RunConfig) -> None:
    limit = config.clip_norm
    if limit == "adaptive" and config.privacy_unit != CLIENT:
        raise ConfigError(
            f"clip_norm is adaptive, which follows the norms of clients' updates, and privacy_unit is "
            f"{config.privacy_unit}: write a number, such as --clip_norm 1."
        )
    if not isinstance(limit, float):
        return
    if not limit > 0:
        raise ConfigError(f"clip_norm is {limit:g}, so that nothing is learnt: write one above 0, such as 1.")
    if math.isinf(limit) and config.noise_multiplier != 0:
        raise ConfigError(
            "clip_norm is infinite, so that the noise, which is a multiple of it, is too: write a number, such as "
            "--clip_norm 1, or --noise_multiplier 0 for a run without a guarantee."
        )


PRIVATE: Effect = (Condition(is_private, "it works with privacy_unit alone", "add --privacy_unit client"),)
CLIENTS: Effect = (
    *PRIVATE,
    Condition(
        lambda config: config.privacy_unit == CLIENT,
        "it concerns the updates of clients, and privacy_unit is {c.privacy_unit}",
        "write --privacy_unit client",
    ),
)
COLUMN: Effect = (
    *PRIVATE,
    Condition(
        lambda config: unit_kind(config.privacy_unit) == "column",
        "it counts rows with one value of a column, and privacy_unit is {c.privacy_unit}",
        "write --privacy_unit COLUMN",
    ),
)
WORKS: dict[str, Effect] = {
    "privacy_unit": ALWAYS,
    "target_epsilon": PRIVATE,
    "target_delta": PRIVATE,
    "noise_multiplier": PRIVATE,
    "clip_norm": PRIVATE,
    "noise_at": CLIENTS,
    "max_rows_per_unit": COLUMN,
}
"""When each key has an effect."""
