"""From a key of a run to the part that it chooses, with the parameters that the run gives it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any, get_type_hints

import numpy as np

from weft import kinds, registry
from weft.config import RunConfig
from weft.data.splits import Shares, Split
from weft.errors import ConfigError, DataError

BOUND = 2
"""Parameters of a split that are not its own: the rows, and how they are to be split."""


def part(key: str, config: RunConfig) -> Any:
    """Make the part that a key of a run chooses.

    Args:
        key: one of `kinds.KINDS`, such as "fed_alg".
        config: names the part, and gives its own parameters and the fields whose metadata name a "key".

    Raises:
        ConfigError: no such name, a parameter that the part does not have, or a value that it cannot take.
    """
    made = kinds.load_part(key, getattr(config, key))
    found = fields(made) if is_dataclass(made) else ()
    hints = _hints(made, config, key)
    keys = {field.name: field.metadata["key"] for field in found if "key" in field.metadata}
    own = {field.name: hints.get(field.name, Any) for field in found if field.init and field.name not in keys}
    values = {field: getattr(config, of) for field, of in keys.items()} | _own_values(key, config, own, keys)
    for field in found:
        if field.init and field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise _without_value(key, config, field.name)
    return made(**values)


def split(config: RunConfig) -> Split:
    """Return the split that a run chooses, its own parameters bound; raises as `part` does."""
    key = "split_strategy"
    made = kinds.load_part(key, config.split_strategy)
    hints = _hints(made, config, key)
    found = list(inspect.signature(made).parameters.values())[BOUND:]
    own = [parameter for parameter in found if parameter.kind is not parameter.VAR_KEYWORD]
    values = _own_values(key, config, {parameter.name: hints.get(parameter.name, Any) for parameter in own}, {})
    for parameter in own:
        if parameter.name not in values and parameter.default is parameter.empty:
            raise _without_value(key, config, parameter.name)
    if not kinds.is_outside(key, config.split_strategy):
        return partial(made, **values)
    return lambda rows, how: _checked(made(rows, how, **values), len(rows), config.split_strategy)


def _checked(shares: Iterable[Any], count: int, name: str) -> Shares:
    """Return what a user's own split dealt; DataError where it is no division of `count` rows."""
    try:
        rows, names, left = Shares(*shares)
        dealt = [np.asarray(own, dtype=np.int64) for own in rows]
        every = np.concatenate(dealt)
    except (TypeError, ValueError):
        raise DataError(f"The split '{name}' returns no Shares: write Shares([row numbers of each client]).") from None
    if len(every) and not 0 <= every.min() <= every.max() < count:
        raise DataError(f"The split '{name}' deals rows that there are not: they are numbered from 0 to {count - 1}.")
    if len(np.unique(every)) < len(every):
        raise DataError(f"The split '{name}' deals a row twice: give each row to one client at most.")
    if names is not None and (len(names) != len(dealt) or len(set(names)) < len(names)):
        raise DataError(f"The split '{name}' names its {len(dealt)} clients {names}: give each a name of its own.")
    return Shares([np.sort(own) for own in dealt], names, left)


def check(config: RunConfig) -> None:
    """Refuse parts that are needed late and cannot be loaded: the split, and a template in a file; raises as `part`."""
    if not config.clients and config.runtime != "nvflare":
        split(config)
    if config.template != "auto":
        kinds.load_part("template", config.template)


def _hints(made: object, config: RunConfig, key: str) -> dict[str, Any]:
    """Return the types of a part's parameters."""
    try:
        return get_type_hints(made)
    except Exception as error:  # of a user's own part, whose types may be anything
        name, word = getattr(config, key), kinds.KINDS[key].word
        raise ConfigError(
            f"The types of the parameters of the {word} '{name}' cannot be read ({type(error).__name__}: {error}): "
            "import them where the part is run, too."
        ) from None


def _without_value(key: str, config: RunConfig, parameter: str) -> ConfigError:
    kind, name = kinds.KINDS[key], getattr(config, key)
    return ConfigError(
        f"The {kind.word} {name} needs a value for '{parameter}': write --{kind.args} {parameter}=VALUE."
    )


def _own_values(key: str, config: RunConfig, hints: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Check the values of a part's own parameters, and return them in their types.

    Args:
        key: that chooses the part.
        config: the run.
        hints: the types of the part's own parameters.
        keys: parameters that are set by keys of a run, and these keys.
    """
    from pydantic import TypeAdapter, ValidationError

    kind, name = kinds.KINDS[key], getattr(config, key)
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
