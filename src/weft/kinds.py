"""The kinds of parts, and how a part is found: in Weft's tables, a user's file, or an installed package."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from weft import plugins, registry
from weft.errors import ConfigError
from weft.json_types import JsonObject


@dataclass(frozen=True)
class Kind:
    """A kind of part, which a key of a run selects by name."""

    word: str
    """The kind in a sentence."""
    table: dict[str, str]
    """Weft's own parts by name."""
    args: str
    """The key of a part's own parameters."""
    group: str
    """Group of entry points for parts of installed packages."""
    base: str = ""
    """Base class of the parts, as "module:Class"; "" for functions."""
    must_define: tuple[str, ...] = ()
    """Methods that a part must define."""
    values: bool = False
    """A part is an instance of the base class, not a subclass."""


KINDS = {
    "fed_alg": Kind("algorithm", registry.ALGORITHMS, "fed_args", "weft.algorithms", "weft.core.parts:Algorithm"),
    "lora_aggregation": Kind(
        "LoRA aggregation",
        registry.LORA_AGGREGATIONS,
        "lora_aggregation_args",
        "weft.lora_aggregations",
        "weft.core.parts:LoraAggregation",
    ),
    "split_strategy": Kind("split strategy", registry.SPLITS, "split_args", "weft.splits"),
    "client_weight": Kind(
        "client weight", registry.WEIGHTINGS, "client_weight_args", "weft.weightings", "weft.core.exchange:Weighting"
    ),
    "aggregator": Kind(
        "aggregator",
        registry.AGGREGATORS,
        "aggregator_args",
        "weft.aggregators",
        "weft.core.exchange:Aggregator",
        ("combine",),
    ),
    "privacy": Kind("privacy", registry.PRIVACY, "privacy_args", "weft.privacy", "weft.core.exchange:Privacy"),
    "codec": Kind("codec", registry.CODECS, "codec_args", "weft.codecs", "weft.core.exchange:Codec"),
    "codec_down": Kind("codec", registry.CODECS, "codec_down_args", "weft.codecs", "weft.core.exchange:Codec"),
    "protection": Kind(
        "protection", registry.PROTECTIONS, "protection_args", "weft.protections", "weft.core.exchange:Protection"
    ),
    "attack": Kind("attack", registry.ATTACKS, "attack_args", "weft.attacks", "weft.core.attack:Attack"),
    "objective": Kind(
        "objective",
        registry.OBJECTIVES,
        "objective_args",
        "weft.objectives",
        "weft.core.objective:Objective",
        ("collate", "loss"),
    ),
}
"""Kinds of the parts of a plan, by key, in the order of the help."""
PARTS = KINDS | {
    "template": Kind("template", registry.TEMPLATES, "", "weft.templates", "weft.data.templates:Template", values=True),
    "reward": Kind("reward", dict.fromkeys(registry.REWARDS, ""), "", "weft.rewards"),
    "clean": Kind("cleaner", registry.CLEANERS, "clean_args", "weft.cleaners", "weft.data.cleaning.cleaner:Cleaner"),
}
"""All kinds that a user can extend."""
LISTS = ("reward", "clean")
"""Keys that name several parts."""


def check_part(key: str, name: str) -> None:
    """Check the name of a part without loading it: one of Weft's, FILE.py:NAME, or one of an installed package.

    Args:
        key: of PARTS, such as "fed_alg".
        name: the value of the key.

    Raises:
        ConfigError: there is no such part; the message lists the names.
    """
    kind, file = PARTS[key], plugins.parse(name)
    if name in kind.table:
        return
    if file is not None and (file.name or key == "reward"):
        return
    if file is not None:
        noun = "value" if kind.values else "class" if kind.base else "function"
        raise ConfigError(
            f"'{name}' names a file, and not the {noun} in it that is the {kind.word}: write {file.path}:NAME."
        )
    installed = plugins.installed_parts(kind.group)
    if name not in installed:
        raise registry.unknown_name(name, kind.word, [*kind.table, *installed], "; or a Python file, FILE.py:NAME")


def load_part(key: str, name: str) -> Any:
    """Load a part: a class, a function or an instance.

    Raises:
        ConfigError: as `check_part` does; the file or package cannot be loaded, or the object does not fit the kind.
    """
    check_part(key, name)
    kind, file = PARTS[key], plugins.parse(name)
    if name in kind.table:
        return registry.import_object(kind.table[name])
    if file is not None:
        part = plugins.load_file(file)
    else:
        part = plugins.load_installed(plugins.installed_parts(kind.group)[name], kind.word)
    reason = _misfit(kind, part)
    if reason is not None:
        raise ConfigError(f"'{name}' is no {kind.word}: {reason}.")
    return part


def _misfit(kind: Kind, part: object) -> str | None:
    """Return why an object is no part of a kind, with the remedy; None if it is one."""
    if not kind.base:
        return None if _takes_two(part) else "write a function of two arguments, the rows and how they are split"
    base, name = registry.import_object(kind.base), kind.base.replace(":", ".")
    if kind.values:
        return None if isinstance(part, base) else f"write a value of the class {name}"
    if not isinstance(part, type) or not issubclass(part, base):
        return f"write a class derived from {name}"
    open_ones = [method for method in kind.must_define if getattr(part, method) is getattr(base, method)]
    return f"its class must define {' and '.join(open_ones)}" if open_ones else None


def _takes_two(part: object) -> bool:
    """Say whether an object can be called with two arguments."""
    if not callable(part):
        return False
    try:
        inspect.signature(part).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def is_outside(key: str, name: str) -> bool:
    """Say whether a part is not one of Weft's: then Weft cannot know which keys it uses."""
    baseline = (key == "fed_alg" and is_local(name)) or (key, name) == ("template", "auto")
    return key in PARTS and name not in PARTS[key].table and not baseline


def files_of(run: Mapping[str, object]) -> Iterator[tuple[str, plugins.PartFile]]:
    """Yield the key and the file of every part of a run that is defined in a file."""
    for key in PARTS:
        value = run.get(key)
        for name in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(name, str) and (file := plugins.parse(name)) is not None:
                yield key, file


def with_files(run: Mapping[str, object], replace_file: Callable[[plugins.PartFile], plugins.PartFile]) -> JsonObject:
    """Return the keys of a run with each part's file replaced by another."""

    def replaced(name: object) -> object:
        file = plugins.parse(name) if isinstance(name, str) else None
        return name if file is None else str(replace_file(file))

    keys = dict(run)
    for key in PARTS.keys() & keys.keys():
        value = keys[key]
        keys[key] = [replaced(name) for name in value] if isinstance(value, (list, tuple)) else replaced(value)
    return keys


def with_digests(run: Mapping[str, object]) -> JsonObject:
    """Return the keys of a run with the SHA-256 of every part's file; raise ConfigError if one is missing."""
    return with_files(run, lambda file: replace(file, digest=plugins.digest_of(plugins.read(file))))


def is_local(name: str) -> bool:
    """Say whether an algorithm is the baseline `local`, or OpenFedLLM's `localN`, of one client."""
    return re.fullmatch(r"local\d*", name) is not None


def check_algorithm(name: str) -> int | None:
    """Check the name of an algorithm; return the client of OpenFedLLM's `localN`, else None."""
    if is_local(name) and name != "local":
        return int(name.removeprefix("local"))
    check_part("fed_alg", name)
    return None
