"""From a key of a run to the part that it chooses, with the parameters that the run gives it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, get_type_hints

from weft import registry
from weft.config import RunConfig
from weft.data.splits import Split
from weft.errors import ConfigError

BOUND = 2
"""Parameters of a split that are not its own: the rows, and how they are to be split."""


def part(key: str, config: RunConfig) -> Any:
    """Make the part that a key of a run chooses.

    Args:
        key: one of `registry.KINDS`, such as "fed_alg".
        config: names the part, and gives its own parameters and the fields whose metadata name a "key".

    Raises:
        ConfigError: no such name, a parameter that the part does not have, or a value that it cannot take.
    """
    made = _load(key, config)
    hints = get_type_hints(made)
    keys = {field.name: field.metadata["key"] for field in fields(made) if "key" in field.metadata}
    own = {field.name: hints[field.name] for field in fields(made) if field.name not in keys}
    values = {field: getattr(config, of) for field, of in keys.items()}
    return made(**values, **_own_values(key, config, own, keys))


def split(config: RunConfig) -> Split:
    """Return the split that a run chooses, its keyword-only parameters bound; raises as `part` does."""
    made = _load("split_strategy", config)
    hints = get_type_hints(made)
    own = list(inspect.signature(made).parameters)[BOUND:]
    return partial(made, **_own_values("split_strategy", config, {name: hints.get(name, Any) for name in own}, {}))


def _load(key: str, config: RunConfig) -> Any:
    kind = registry.KINDS[key]
    return registry.load(kind.table, getattr(config, key), kind.word)


def _own_values(key: str, config: RunConfig, hints: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Check the values of a part's own parameters, and return them in their types.

    Args:
        key: that chooses the part.
        config: the run.
        hints: the types of the part's own parameters.
        keys: parameters that are set by keys of a run, and these keys.
    """
    from pydantic import TypeAdapter, ValidationError

    kind, name = registry.KINDS[key], getattr(config, key)
    args = kind.args
    values = {}
    for parameter, value in getattr(config, args).items():
        if parameter in keys:
            raise ConfigError(f"'{parameter}' of {name} is set by --{keys[parameter]}, not in {args}.")
        if parameter not in hints:
            guess = registry.nearest(parameter, list(hints))
            meant = f" Did you mean '{guess}'?" if guess else ""
            raise ConfigError(
                f"The {kind.word} {name} has no parameter '{parameter}'.{meant} Known: {', '.join(hints) or 'none'}."
            )
        try:
            values[parameter] = TypeAdapter(hints[parameter]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise ConfigError(f"The value '{value}' of '{parameter}' in {args} cannot be: {reason}.") from None
    return values
