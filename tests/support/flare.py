"""What the tests over real FLARE share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.rows import colour_rows, write_rows
from weft.sites.local_federation import LocalFederation

MARKS = [
    pytest.mark.xdist_group("flare"),
    # FLARE leaves a session's sockets to the garbage collector, which says so.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
"""Marks of a module: one federation at a time."""


@contextmanager
def begun(
    folder: Path, policies: dict[str, dict[str, Any]], prepare: Callable[[LocalFederation], None] = lambda _: None
) -> Iterator[LocalFederation]:
    """Begin a server and sites, each with rows of its own, and close them in the end.

    Args:
        folder: of their files.
        policies: by the names of the sites, what site.yaml has beside its rows.
        prepare: called with the federation before it begins.
    """
    files = {}
    for number, (name, policy) in enumerate(policies.items()):
        write_rows(folder / f"{name}.jsonl", colour_rows(24 + 3 * number, number))
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({"data": f"{name}.jsonl", "threads": 1} | policy))
    made = LocalFederation(folder, files)
    try:
        prepare(made)
        made.begin()
        yield made
    finally:
        made.close()
