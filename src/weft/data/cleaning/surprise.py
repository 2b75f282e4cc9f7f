"""Perplexity outliers: rows that the run's starting model finds far stranger, or far simpler, than its other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools

FEW = 20
"""Rows below which there is no spread to compare with."""
NORMAL = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""


@dataclass(frozen=True)
class Perplexity(Cleaner):
    """Leaves out rows whose loss a token is far from the median of the client's rows."""

    compares_rows: ClassVar[bool] = True
    uses_model: ClassVar[bool] = True
    deviations: float = 4.0
    """Robust standard deviations from the median beyond which a row is left out."""

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the outliers."""
        if tools.surprise is None or len(samples) < FEW:
            return {}
        # Rounded, so that the last bits of another machine do not move a row over the limit.
        losses = np.round(tools.surprise(samples), 3)
        middle = float(np.median(losses))
        spread = NORMAL * float(np.median(np.abs(losses - middle)))
        if spread == 0:
            return {}
        distances = (losses - middle) / spread
        far = np.flatnonzero(np.abs(distances) > self.deviations)
        return {int(row): f"perplexity far {'above' if distances[row] > 0 else 'below'} the others" for row in far}
