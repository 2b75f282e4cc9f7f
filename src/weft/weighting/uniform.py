"""Equal weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.exchange import Weighting


@dataclass(frozen=True)
class Uniform(Weighting):
    """All clients weigh the same."""

    by_rows: ClassVar[bool] = False
