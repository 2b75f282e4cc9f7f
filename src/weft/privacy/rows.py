"""Privacy of rows, or of all rows of one person: the noise is made in the local steps (`weft.training.private`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.exchange import Privacy


@dataclass(frozen=True)
class Rows(Privacy):
    """An update is computed from noisy gradients alone, so whatever is done with it costs no further privacy."""

    private: ClassVar[bool] = True
    in_steps: ClassVar[bool] = True
    draws_secrets: ClassVar[bool] = True
