"""The names that the lists of a site policy may hold, so that a typing error is refused with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from weft import kinds, plugins, registry
from weft.core.declarations import declared
from weft.core.declarations import names as declared_names
from weft.keys.privacy import CLIENT, NONE, ROW
from weft.registry import nearest
from weft.sites.run_limits import MOST

NAMES: dict[str, Collection[str]] = {
    "objectives": registry.OBJECTIVES,
    "trainable": ("lora", "prompt", "full"),
    "algorithms": registry.ALGORITHMS,
    "protection": registry.PROTECTIONS,
    "privacy": (NONE, CLIENT, ROW),
    "limits": MOST,
}
"""What each list may contain, besides parts of installed packages."""
KEYS = {"objectives": "objective", "algorithms": "fed_alg", "protection": "protection", "privacy": "privacy"}
"""For lists that may contain parts of installed packages, the key of a run that such a part is a value of."""


def check_name(field: str, name: str) -> None:
    """Check an entry of a list of a site policy.

    Args:
        field: the list, such as "objectives".
        name: the entry.

    Raises:
        ValueError: there is no such name; with the nearest one.
    """
    if field == "report":
        _check_metric(name)
        return
    key, names = KEYS.get(field), NAMES[field]
    if name in names or (key and name in plugins.installed_parts(kinds.KINDS[key].group)):
        return
    if field == "privacy" and not difflib.get_close_matches(name.lower(), list(names), cutoff=0.8):
        return  # a column, all rows with one value of which are a unit
    guess = nearest(name, list(names))
    hint = f"did you mean '{guess}'?" if guess else f"write one of {', '.join(names)}"
    raise ValueError(f"there is no '{name}': {hint}")


def _check_metric(word: str) -> None:
    """Raise ValueError for a word that is nearly a metric's name; one of an own part is not known here."""
    known = {*(metric.name for metric in declared()), *declared_names().known}
    guess = None if any(name.startswith(word) for name in known) else nearest(word, sorted(known))
    if guess:
        raise ValueError(f"there is no metric '{word}': did you mean '{guess}'?")
