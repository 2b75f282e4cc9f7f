"""What the tests over real FLARE share."""

from __future__ import annotations

import pytest

MARKS = [
    pytest.mark.xdist_group("flare"),
    # FLARE leaves a session's sockets to the garbage collector, which says so.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
"""Marks of a module: one federation at a time."""
