"""The tables of named parts: a name on the command line -> "module:Class".

A new method is one new file and one line here. Nothing is imported until a name is looked up, so listing the
names costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from weft.errors import ConfigError

ALGORITHMS = {
    "fedavg": "weft.algorithms.fedavg:FedAvg",
    "local": "weft.algorithms.local:Local",
    "central": "weft.algorithms.central:Central",
}
AGGREGATORS = {"mean": "weft.aggregation.mean:Mean"}
PRIVACY = {"none": "weft.privacy.none:NoPrivacy"}
CODECS = {"none": "weft.compression.identity:Identity"}
PROTECTIONS = {"none": "weft.protection.plain:Plain"}
OBJECTIVES = {
    "sft": "weft.objectives.sft:SFT",
    "causal_lm": "weft.objectives.causal_lm:CausalLM",
}
SPLITS = {"iid": "weft.data.partition:split_iid"}
TEMPLATES = {
    "alpaca": "weft.data.templates:ALPACA",
    "vicuna": "weft.data.templates:VICUNA",
    "vicuna_v1.1": "weft.data.templates:VICUNA",
    "chat": "weft.data.templates:CHAT",
}
COMMANDS = {
    "sft": "weft.commands.sft:run",
    "demo": "weft.commands.demo:run",
    "compare": "weft.commands.compare:run",
    "chat": "weft.commands.chat:run",
    "export": "weft.commands.export:run",
}


def nearest(name: str, known: list[str]) -> str | None:
    """Return the known name that `name` was probably meant to be, or None."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return found[0] if found else None


def require(table: dict[str, str], name: str, kind: str) -> str:
    """Return the "module:Class" of a name.

    Raises:
        ConfigError: no part of that name; the nearest and all names are given.
    """
    if name in table:
        return table[name]
    guess = nearest(name, list(table))
    meant = f" Did you mean '{guess}'?" if guess else ""
    raise ConfigError(f"There is no {kind} named '{name}'.{meant} Known: {', '.join(table)}.")


def load(table: dict[str, str], name: str, kind: str) -> Any:
    """Import and return the object that a name stands for; raises ConfigError as `require` does."""
    module, _, attribute = require(table, name, kind).partition(":")
    return getattr(importlib.import_module(module), attribute)
