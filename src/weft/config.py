"""The configuration of a run: one flat set of typed keys, which are the flags' names too.

A run file (YAML) gives the keys, flags override them, `weft.train({...})` takes the same words. Unknown keys are
refused with the nearest known one. This module imports nothing heavy and knows nothing of the parts themselves.
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
"""The first line of a run's config.yaml: it holds every key, and says of none that a user gave it."""


VOLATILE = frozenset(
    {
        "output_dir",
        "accept_changed",
        "token_cache",
        "report_to",
        "save_model_freq",
        "save_total_limit",
        "checkpoint_seconds",
        "logging_steps",
        "save_steps",
        "threads",
        "runtime",
        "ray_address",
        "num_actors",
        "silence_timeout",
        "client_resources",
        "endpoint_key",
        "endpoint_timeout",
        "endpoint_retries",
        "endpoint_parallel",
    }
)
"""Keys that may differ when a run is resumed, because no result depends on them."""


def gather(values: Mapping[str, object], overrides: Mapping[str, object]) -> tuple[JsonObject, list[str]]:
    """Return the keys of a file or a dict, overridden by others, and which of them a user gave.

    A key that is null was taken back, and not given.

    Raises:
        ConfigError: a key that is given by two names.
    """
    first, second = canonical(values), canonical(overrides)
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
    """Return the configuration of what a user gave, and what is to be said of keys without effect, if anything.

    Args:
        values: keys and values, as `gather` returns them.
        explicit_keys: those of them that must have an effect.
        defaults: from the keys that are given to the verb's own defaults of others.
        command: they are the flags of a command, and of nothing else.
        exempt: keys whose effect is not judged.

    Raises:
        ConfigError: as `build` does; a key that has no effect in this run.
    """
    config = build(defaults(dict(values)) | dict(values))
    return config, effects.check(config, explicit_keys, EFFECTS, command=command, exempt=exempt)


def canonical(values: Mapping[str, object]) -> JsonObject:
    """Return keys under their own names, and paths as text; ConfigError for one that is given by two names."""
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

    Raises:
        ConfigError: an unknown key (with the nearest known), a value of the wrong kind, values that exclude each other.

    None stands for the default of a key that cannot be None.
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
        raise ConfigError(f"The value {first['input']!r} of '{place}' cannot be: {first['msg'].lower()}.") from None


def _may_be_none(annotation: object) -> bool:
    return type(None) in get_args(annotation)


class Resolved(JsonObject):
    """The keys of a config.yaml that a run wrote: all there are, given or not."""


class _Once(yaml.SafeLoader):
    """YAML in which no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        line_of: dict[str, int] = {}
        for key, _ in node.value:
            name, line = key.value, key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in line_of:
                raise _Twice(f"'{name}' stands there twice, in lines {line_of[name]} and {line}: leave one of them out")
            if isinstance(key, yaml.ScalarNode):
                line_of[name] = line
        return super().construct_mapping(node, deep)


class _Twice(Exception):
    """A key stands twice in a mapping."""


def read_yaml(path: str | os.PathLike[str], name: str) -> tuple[str, object]:
    """Return the text of a file, and what it says.

    Args:
        path: of the file.
        name: of it, in a sentence.

    Raises:
        ConfigError: broken YAML (with its line), or a key that stands there twice.
        OSError: it cannot be read.
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
        ConfigError: no such file, broken YAML (with its line), a key that stands there twice, or something other than
            keys and values in it.
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
