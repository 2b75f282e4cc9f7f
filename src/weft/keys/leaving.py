"""The test by which a client leaves a run: `leave_when`, a key of simulations and of site.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.registry import nearest


class LeaveWhen(BaseModel):
    """What a client tests each shared model on, and what it does not put up with."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    forbidden: str | None = None
    """A file of questions, each with an answer that must not come."""
    rate: float = Field(0.2, ge=0, le=1)
    """Share of these answers above which the client leaves; 1: it never does, and the rate is only measured."""
    canaries: str | None = None
    """A file of questions with answers whose loss is watched."""
    most_rise: float | None = Field(None, gt=0)
    """Nats a token by which the mean loss of the canaries may rise above that of the model as it was loaded."""
    most_fall: float | None = Field(None, gt=0)
    """The same for a fall: answers that nothing honest teaches should not become likely."""

    @model_validator(mode="after")
    def _check_limits(self) -> LeaveWhen:
        """Refuse a test of nothing, and files and limits that have no use without each other."""
        limited = self.most_rise is not None or self.most_fall is not None
        if self.forbidden is None and self.canaries is None:
            raise ValueError("it names no rows to test on: write forbidden, canaries, or both")
        if self.canaries is not None and not limited:
            raise ValueError("canaries have no limit: write most_rise, most_fall, or both")
        if self.canaries is None and limited:
            raise ValueError("a limit of the loss needs rows: write canaries, a file of questions with answers")
        if self.forbidden is None and "rate" in self.model_fields_set:
            raise ValueError("rate needs rows: write forbidden, a file of questions with answers that must not come")
        return self


def read(values: JsonObject) -> LeaveWhen | None:
    """Return the test that a run's key describes; None: there is none.

    Raises:
        ConfigError: a name or a value is wrong.
    """
    if not values:
        return None
    for name in values:
        if name not in LeaveWhen.model_fields:
            guess = nearest(name, list(LeaveWhen.model_fields))
            known = f"did you mean '{guess}'?" if guess else f"write {', '.join(LeaveWhen.model_fields)}."
            raise ConfigError(f"leave_when has no entry '{name}': {known}")
    try:
        return LeaveWhen.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"leave_when cannot be: {_words(error)}.") from None


def _words(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    why = str(first["msg"]).removeprefix("Value error, ")
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {why[:1].lower()}{why[1:]}" if where else why
