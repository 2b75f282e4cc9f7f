"""The configuration of a run: one flat set of typed keys, which are the names of the flags too.

A run file (YAML) sets keys, flags override them, and `weft.train({...})` takes the same keys. Unknown keys are refused
with the nearest existing one. This module imports nothing heavy, and no part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Mapping
from pathlib import Path
from typing import get_args

import yaml
from pydantic import ValidationError

from weft import registry
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.keys import EFFECTS, Client, RunConfig, effects
from weft.keys.names import ALIASES, foreign
from weft.keys.secrets import MASKED

__all__ = [
    "ALIASES",
    "RESOLVED",
    "VOLATILE",
    "Client",
    "Resolved",
    "RunConfig",
    "build",
    "canonical",
    "gather",
    "read_file",
    "read_yaml",
    "settle",
]

RESOLVED = "# The resolved configuration of a Weft run."
"""First line of a run's config.yaml, which lists every key: none of them counts as set by the user."""


VOLATILE = frozenset(
    {
        "output_dir",
        "accept_changed",
        "token_cache",
        "report",
        "report_to",
        "save_model_freq",
        "keep_updates",
        "save_total_limit",
        "checkpoint_seconds",
        "logging_steps",
        "save_steps",
        "threads",
        "runtime",
        "ray_address",
        "num_actors",
        "silence_timeout",
        "turn_timeout",
        "rejoin_timeout",
        "client_resources",
        "endpoint_key",
        "endpoint_timeout",
        "endpoint_retries",
        "endpoint_parallel",
    }
)
"""Keys that may change when a run is resumed, because no result depends on them."""


def gather(values: Mapping[str, object], overrides: Mapping[str, object]) -> tuple[JsonObject, list[str]]:
    """Return the keys of a file or a dict, overridden by others, and the names of those that the user set.

    A key that is null is not set.

    Raises:
        ConfigError: a key is set under two names.
    """
    first, second = canonical(values), canonical(overrides)
    # A dump of all keys says nothing about which of them the user set.
    complete = isinstance(values, Resolved) or RunConfig.model_fields.keys() <= first.keys()
    merged = first | second
    return merged, [key for key in (second if complete else merged) if merged[key] is not None]


def settle(
    values: Mapping[str, object],
    explicit_keys: Collection[str],
    defaults: Callable[[JsonObject], JsonObject] = lambda values: {},
    *,
    command: bool = False,
    exempt: Collection[str] = (),
) -> tuple[RunConfig, str | None]:
    """Return the configuration, and a sentence about keys without effect that are not refused, or None.

    Args:
        values: keys and values, as `gather` returns them.
        explicit_keys: those of them that must have an effect.
        defaults: returns the verb's defaults, given the keys that are set.
        command: all keys are flags of a command, without a run file.
        exempt: keys whose effect is not checked.

    Raises:
        ConfigError: as `build` does; a key without effect in this run.
    """
    config = build(_over(defaults(dict(values)), dict(values)))
    return config, effects.check(config, explicit_keys, EFFECTS, command=command, exempt=exempt)


def _over(defaults: JsonObject, given: JsonObject) -> JsonObject:
    """Return given keys over a verb's defaults; of `fed_args` what is not given stays the verb's."""
    merged = defaults | given
    own = defaults.get("fed_args")
    if isinstance(own, dict) and given.get("fed_args") is not None:
        merged["fed_args"] = own | RunConfig._pairs(given["fed_args"])
    return merged


def canonical(values: Mapping[str, object]) -> JsonObject:
    """Return values by canonical key, paths as strings; raise ConfigError for a key under two names."""
    renamed: JsonObject = {}
    for name, value in values.items():
        key = ALIASES.get(name, name)
        if key in renamed:
            raise ConfigError(
                f"The key {key} is given twice, as {key} and by another name of it: leave one of them out."
            )
        renamed[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return renamed


def build(values: Mapping[str, object]) -> RunConfig:
    """Check the keys and return the typed configuration.

    None stands for the default of a key that cannot be None.

    Raises:
        ConfigError: an unknown key (with the nearest one), a value of the wrong type, values that exclude each other.
    """
    values = canonical(values)
    keys = list(RunConfig.model_fields)
    for key in values:
        if key not in keys:
            guess = registry.nearest(key, keys)
            nearest = f" Did you mean '{guess}'?" if guess else " `weft sft --help_all` lists all keys."
            raise ConfigError(f"There is no key '{key}'.{foreign(key, flags=False) or nearest}")
    fields = RunConfig.model_fields
    given_values = {
        key: value for key, value in values.items() if value is not None or _may_be_none(fields[key].annotation)
    }
    try:
        return RunConfig(**given_values)
    except ValidationError as error:
        first = error.errors()[0]
        # Where a value may be of several types, pydantic names the type too.
        inside = Client.model_fields.keys()
        place = ".".join(str(p) for i, p in enumerate(first["loc"]) if i == 0 or isinstance(p, int) or p in inside)
        value = "" if first["loc"][:1] and first["loc"][0] in MASKED else f" {first['input']!r}"
        raise ConfigError(f"The value{value} of '{place}' cannot be: {first['msg'].lower()}.") from None


def _may_be_none(annotation: object) -> bool:
    return type(None) in get_args(annotation)


class Resolved(JsonObject):
    """The keys of a config.yaml that a run wrote: all keys, set by the user or not."""


class _Once(yaml.SafeLoader):
    """YAML without repeated keys, of which plain YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        line_of: dict[str, int] = {}
        for key, _ in node.value:
            name, line = key.value, key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in line_of:
                raise _Twice(f"'{name}' is given twice, in lines {line_of[name]} and {line}: leave one of them out")
            if isinstance(key, yaml.ScalarNode):
                line_of[name] = line
        return super().construct_mapping(node, deep)


class _Twice(Exception):
    """A key is repeated in a mapping."""


def read_yaml(path: str | os.PathLike[str], name: str) -> tuple[str, object]:
    """Return the text of a YAML file, and its value.

    Args:
        path: of the file.
        name: of the file, as the subject of an error message.

    Raises:
        ConfigError: invalid YAML (with its line), or a repeated key.
        OSError: the file cannot be read.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        return text, yaml.load(text, _Once)
    except _Twice as error:
        raise ConfigError(f"{name} cannot be: {error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name} is not valid YAML{where}: write one `key: value` a line.") from None


def read_file(path: str | os.PathLike[str]) -> JsonObject:
    """Read a run file.

    Raises:
        ConfigError: no such file, invalid YAML (with its line), a repeated key, or no mapping of keys to values.
    """
    try:
        text, values = read_yaml(path, f"The run file '{path}'")
    except OSError:
        raise ConfigError(f"There is no run file '{path}' that can be read: check the path.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"The run file '{path}' holds no keys: write one `key: value` a line.")
    keys = {str(key): value for key, value in values.items()}
    return Resolved(keys) if text.startswith(RESOLVED) else keys
