"""The same secrets each time, for tests of what an audit finds.

Such a test would fail every few hundred times by the coins alone: a score's interval of 95 % is one that misses, and of
24 coins six heads or fewer come up.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def same_coins() -> Iterator[None]:
    """Within it the operating system's random numbers are those of one seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", random.Random(7).randbytes)
        yield
