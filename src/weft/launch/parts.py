"""From a key of a run to the part that it chooses, with the parameters that the run gives it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any, get_type_hints

import numpy as np

from weft import kinds, plugins, registry
from weft.config import RunConfig
from weft.data.cleaning.cleaner import Cleaner, start
from weft.data.splits import Shares, Split
from weft.errors import ConfigError, DataError

MOST = 4
"""Parts that an error message names, at most."""
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
    factory = kinds.load_part(key, getattr(config, key))
    all_fields = fields(factory) if is_dataclass(factory) else ()
    hints = _hints(factory, key, getattr(config, key))
    run_keys = {field.name: field.metadata["key"] for field in all_fields if "key" in field.metadata}
    settable = [field.name for field in all_fields if field.init and field.name not in run_keys]
    own_fields = {name: hints.get(name, Any) for name in settable}
    of_run = {field.name: field.metadata.get("value", field.metadata.get("key")) for field in all_fields}
    values = {name: getattr(config, of_run[name]) for name in run_keys}
    values |= _own_values(key, config, own_fields, run_keys)
    for field in all_fields:
        if field.init and field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise _without_value(key, config, field.name)
    return factory(**values)


def split(config: RunConfig) -> Split:
    """Return the split that a run chooses, its own parameters bound; raises as `part` does."""
    key = "split_strategy"
    deal = kinds.load_part(key, config.split_strategy)
    hints = _hints(deal, key, getattr(config, key))
    parameters = list(inspect.signature(deal).parameters.values())[BOUND:]
    own_parameters = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    own_hints = {parameter.name: hints.get(parameter.name, Any) for parameter in own_parameters}
    values = _own_values(key, config, own_hints, {})
    for parameter in own_parameters:
        if parameter.name not in values and parameter.default is parameter.empty:
            raise _without_value(key, config, parameter.name)
    if not kinds.is_outside(key, config.split_strategy):
        return partial(deal, **values)
    return lambda rows, how: _check_shares(deal(rows, how, **values), len(rows), config.split_strategy)


def _check_shares(shares: Iterable[Any], count: int, name: str) -> Shares:
    """Return what a user's own split dealt; DataError where it is no division of `count` rows."""
    try:
        # A plain tuple of the same fields will do.
        rows, names, rest = Shares(*shares)
        parts = [np.asarray(part_rows, dtype=np.int64) for part_rows in rows]
        all_rows = np.concatenate(parts)
    except (TypeError, ValueError):
        raise DataError(f"The split '{name}' returns no Shares: write Shares([row numbers of each client]).") from None
    if len(all_rows) and not 0 <= all_rows.min() <= all_rows.max() < count:
        raise DataError(f"The split '{name}' deals rows that there are not: they are numbered from 0 to {count - 1}.")
    if len(np.unique(all_rows)) < len(all_rows):
        raise DataError(f"The split '{name}' deals a row twice: give each row to one client at most.")
    if names is not None and (len(names) != len(parts) or len(set(names)) < len(names)):
        raise DataError(f"The split '{name}' names its {len(parts)} clients {names}: give each a name of its own.")
    return Shares([np.sort(part_rows) for part_rows in parts], names, rest)


def check(config: RunConfig) -> None:
    """Refuse parts that are needed late and cannot be loaded: the split, and a template in a file; raises as `part`."""
    if not config.clients and config.runtime != "nvflare":
        split(config)
    cleaners(config)
    if config.template != "auto":
        kinds.load_part("template", config.template)


def cleaners(config: RunConfig) -> list[tuple[str, Cleaner]]:
    """Return the cleaners of a run with their names, in their order, ready to clean; raises as `part` does."""
    made: list[tuple[str, Cleaner]] = []
    for name in config.clean:
        public = plugins.public_name(name)
        values = {key[len(public) + 1 :]: value for key, value in config.clean_args.items() if _is_of(key, public)}
        factory = kinds.load_part("clean", name)
        all_fields = [field for field in fields(factory) if field.init] if is_dataclass(factory) else []
        hints = _hints(factory, "clean", name)
        own = {field.name: hints[field.name] for field in all_fields}
        for field in all_fields:
            if field.default is field.default_factory is MISSING and field.name not in values:
                raise ConfigError(
                    f"The cleaner {public} needs a value for '{field.name}': write --clean_args "
                    f"{public}.{field.name}=VALUE."
                )
        cleaner: Cleaner = factory(**_typed(values, own, {}, f"The cleaner {public}", "clean_args"))
        if cleaner.compares_answers and config.objective == "causal_lm":
            raise ConfigError(
                f"The cleaner {public} compares questions with their answers, and plain text has none: leave {public} "
                "out of --clean."
            )
        start(cleaner)
        made.append((public, cleaner))
    return made


def comparing(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the run's cleaners whose work on a unit of privacy depends on other units."""
    chosen = cleaners(config) if config.clean else []
    # What a client does among its own rows is within a unit where the client is one.
    alone = config.privacy_unit == "client"
    return tuple(name for name, cleaner in chosen if (cleaner.tells if alone else cleaner.compares_rows))


def _is_of(key: str, cleaner: str) -> bool:
    return key.rpartition(".")[0] == cleaner


def _hints(factory: object, key: str, name: str) -> dict[str, Any]:
    """Return the types of a part's parameters."""
    try:
        return get_type_hints(factory)
    except Exception as error:  # of a user's own part, whose types may be anything
        word = kinds.PARTS[key].word
        raise ConfigError(
            f"The types of the parameters of the {word} '{name}' cannot be read ({type(error).__name__}: {error}): "
            "import them where the part is run, too."
        ) from None


def _without_value(key: str, config: RunConfig, parameter: str) -> ConfigError:
    kind, name = kinds.KINDS[key], getattr(config, key)
    return ConfigError(
        f"The {kind.word} {name} needs a value for '{parameter}': write --{kind.args} {parameter}=VALUE."
    )


def _own_values(key: str, config: RunConfig, hints: Mapping[str, Any], run_keys: Mapping[str, str]) -> dict[str, Any]:
    """Check the values of a part's own parameters, and return them in their types.

    Args:
        key: that chooses the part.
        config: the run.
        hints: the types of the part's own parameters.
        run_keys: parameters that are set by keys of a run, and these keys.
    """
    kind, name = kinds.KINDS[key], getattr(config, key)
    settings = getattr(config, kind.args)
    for parameter in settings:
        if parameter in hints or parameter in run_keys or registry.nearest(parameter, list(hints)):
            continue
        if others := _parts_with(key, parameter):
            raise ConfigError(
                f"The {kind.word} {name} has no parameter '{parameter}', which {' and '.join(others)} "
                f"{'has' if len(others) == 1 else 'have'}: write --{key} {' or '.join(others)}, or leave out "
                f"{parameter} in --{kind.args}."
            )
    return _typed(settings, hints, run_keys, f"The {kind.word} {name}", kind.args)


def _parts_with(key: str, parameter: str) -> list[str]:
    """Return the names of Weft's parts of a kind that have a parameter of their own by this name, `MOST` at most."""
    parts = {name: kinds.load_part(key, name) for name in kinds.KINDS[key].table}
    own = {
        name: {field.name for field in fields(part) if field.init and "key" not in field.metadata}
        for name, part in parts.items()
        if is_dataclass(part)
    }
    return [name for name, names in own.items() if parameter in names][:MOST]


def _typed(
    settings: Mapping[str, Any], hints: Mapping[str, Any], run_keys: Mapping[str, str], what: str, args: str
) -> dict[str, Any]:
    """Return the values of a part's parameters in their types; ConfigError for one that it does not have."""
    from pydantic import TypeAdapter, ValidationError

    values = {}
    for parameter, value in settings.items():
        if parameter in run_keys:
            name = what.rpartition(" ")[2]
            raise ConfigError(f"'{parameter}' of {name} is set by --{run_keys[parameter]}, not in {args}.")
        if not hints:
            raise ConfigError(f"{what} has no parameter '{parameter}', and no other ones: leave out --{args}.")
        if parameter not in hints:
            guess = registry.nearest(parameter, list(hints))
            hint = f" Did you mean '{guess}'?" if guess else ""
            raise ConfigError(f"{what} has no parameter '{parameter}'.{hint} Known: {', '.join(hints)}.")
        try:
            values[parameter] = TypeAdapter(hints[parameter]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise ConfigError(f"The value '{value}' of '{parameter}' in {args} cannot be: {reason}.") from None
        if isinstance(values[parameter], float) and not math.isfinite(values[parameter]):
            # No comparison with it holds, so that a part's own checks, and its limits, would let everything pass.
            raise ConfigError(f"The value '{value}' of '{parameter}' in {args} is not finite: write a number.")
    return values
