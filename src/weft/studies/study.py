"""A study file: a base run, named arms, a grid with the seeds, metrics, and the rule by which a setting is chosen.

Reads and checks the words of the file. What the runs are, `weft.studies.cells` derives from it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft import registry
from weft.config import ALIASES, RunConfig, canonical, read_file, read_yaml
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.studies.labels import label_of_value

FIELDS = ("base", "verb", "arms", "grid", "baseline", "metrics", "choice", "output_dir")
CHOICE = ("seed", "metric", "keys", "settings")
MEAN_OVER, TRY = "mean_over", "try"
"""What an arm may say beside keys of a run."""
DEFAULTS = {
    "sft": "",
    "dpo": "weft.commands.dpo:defaults",
    "grpo": "weft.commands.grpo:defaults",
    "prompt": "weft.commands.prompt:defaults",
    "pretrain": "weft.commands.pretrain:defaults",
}
"""The verbs that a study can be of, and where their defaults are."""


@dataclass(frozen=True)
class Arm:
    """One way to train, which the study compares with others."""

    name: str
    keys: JsonObject
    members: Sequence[tuple[str, JsonObject]] = (("", {}),)
    """Labels and keys of the runs of one seed, over which its values are averaged: one for each client that trains
    alone, say."""
    settings: Sequence[JsonObject] = ()
    """Keys of which the rule of choice takes one; none: there is nothing to choose."""


@dataclass(frozen=True)
class Choice:
    """The rule of choice: the setting that is best on the held-out rows of the tuning seed."""

    seed: int
    metric: str
    keys: JsonObject
    """What differs in the runs that are compared for it."""


@dataclass(frozen=True)
class Study:
    """A study as its file says it."""

    verb: str
    base: JsonObject
    arms: Sequence[Arm]
    axes: Mapping[str, Mapping[str, object]]
    """For each key of the grid, without the seed, its values by their labels."""
    seeds: Sequence[int]
    baseline: str
    metrics: Sequence[str]
    choice: Choice | None
    output_dir: Path
    others: Sequence[str] = ()
    """The names of the file's arms that are not wanted this time."""


def read_study(
    source: str | os.PathLike[str] | Mapping[str, object],
    *,
    keys: Mapping[str, object] | None = None,
    arms: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
) -> Study:
    """Read a study.

    Args:
        source: its file, or what would stand there.
        keys: keys of a run that replace those of the base and of the grid; arms keep theirs.
        arms: the only ones that are wanted; None: all.
        metrics: instead of the study's.
        output_dir: instead of the study's.

    Raises:
        ConfigError: no such file, a field or key that is unknown, or values that cannot be.
    """
    name, folder, fields = _fields(source)
    base = _base(fields.get("base"), folder, name)
    axes = {key: _axis(key, values) for key, values in _mapping(fields.get("grid"), f"The grid of {name}").items()}
    wanted = canonical(keys or {})
    check_keys([*base, *axes, *wanted], name)
    if "output_dir" in wanted:
        raise ConfigError(f"output_dir is set anew, and {name} has one of its own: write --output_dir DIR.")
    for key, value in wanted.items():
        if key in axes or key == "seed":
            axes[key] = _axis(key, value if isinstance(value, list | Mapping) else [value])
        else:
            base[key] = value
    choice, settings = _choice(fields.get("choice"), name)
    every_arm = [_arm(label, said, settings, name) for label, said in _arms(fields.get("arms"), name).items()]
    fixed = [key for key in wanted if key not in axes and all(key in arm.keys for arm in every_arm)]
    if fixed:
        raise ConfigError(f"{fixed[0]} is set anew, and every arm of {name} sets it itself: change the arms instead.")
    seeds = _seeds(axes.pop("seed", None), base, choice, name)
    _check_once(base, axes, every_arm, name)
    chosen = _chosen(every_arm, arms, name)
    baseline = str(fields.get("baseline") or chosen[0].name)
    if baseline not in {arm.name for arm in chosen}:
        raise _unknown("baseline", baseline, [arm.name for arm in chosen], name)
    verb = str(fields.get("verb", "sft"))
    if verb not in DEFAULTS:
        raise _unknown("verb", verb, list(DEFAULTS), name)
    given = metrics or fields.get("metrics") or ["loss"]
    return Study(
        verb,
        base,
        chosen,
        axes,
        seeds,
        baseline,
        [given] if isinstance(given, str) else [str(metric) for metric in _list(given, f"What {name} says of metrics")],
        choice if any(arm.settings for arm in chosen) else None,
        Path(output_dir or _output_dir(fields, name)),
        [arm.name for arm in every_arm if arm not in chosen],
    )


def _fields(source: str | os.PathLike[str] | Mapping[str, object]) -> tuple[str, Path, JsonObject]:
    """Return how messages call a study, the folder of its file, and its fields."""
    if isinstance(source, Mapping):
        name, folder, fields = "the study", Path(), dict(source)
    else:
        name, folder = f"the study '{os.fspath(source)}'", Path(source).expanduser().parent
        try:
            _, read = read_yaml(source, f"The study '{os.fspath(source)}'")
        except OSError:
            raise ConfigError(
                f"There is no study file '{os.fspath(source)}' that can be read: check the path."
            ) from None
        fields = _mapping(read, name[0].upper() + name[1:])
    for field in fields:
        if field not in FIELDS:
            raise _unknown("field", str(field), list(FIELDS), name)
    return name, folder, fields


def _base(said: object, folder: Path, name: str) -> JsonObject:
    """Return the keys of the base run, which are written in the study or in a run file beside it."""
    if isinstance(said, str):
        path = Path(said).expanduser()
        return canonical(read_file(path if path.is_absolute() else folder / path))
    base = canonical(_mapping(said, f"The base of {name}"))
    if "output_dir" in base:
        raise ConfigError(f"The base of {name} has an output_dir: write it as a field of the study, beside base.")
    return base


def _output_dir(fields: JsonObject, name: str) -> str:
    said = fields.get("output_dir", "study")
    if not isinstance(said, str) or not said:
        raise ConfigError(f"The output_dir of {name} is {said!r}: write the path of a directory.")
    return said


def _mapping(said: object, subject: str) -> JsonObject:
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise ConfigError(f"{subject} is no mapping of names to values: write one `name: value` a line.")
    return {str(key): value for key, value in said.items()}


def _list(said: object, subject: str) -> Sequence[object]:
    if not isinstance(said, list | tuple):
        raise ConfigError(f"{subject} is no list: write one `- value` a line.")
    return said


def _axis(key: str, said: object) -> dict[str, object]:
    """Return the values of a key of the grid by their labels."""
    if isinstance(said, Mapping):
        values = _mapping(said, f"The grid's {key}")
    elif isinstance(said, list):
        values = {f"{key} {label_of_value(value)}": value for value in said}
        if len(values) < len(said):
            raise ConfigError(f"The grid has a value of {key} twice: leave one of them out.")
    else:
        raise ConfigError(f"The grid has {said!r} for {key}: write a list of values, or labels with values.")
    if not values:
        raise ConfigError(f"The grid has no value for {key}: write one, or leave the key out.")
    return values


def _arms(said: object, name: str) -> JsonObject:
    arms = _mapping(said, f"What {name} says of arms")
    if not arms:
        raise ConfigError(
            f"{name[0].upper()}{name[1:]} names no arms: write such as `arms: {{fedavg: {{fed_alg: fedavg}}}}`."
        )
    return arms


def _arm(label: str, said: object, settings: Sequence[JsonObject], name: str) -> Arm:
    subject = f"The arm '{label}' of {name}"
    keys = _mapping(said, subject)
    over = _mapping(keys.pop(MEAN_OVER, None), f"{MEAN_OVER} of the arm '{label}'")
    own = keys.pop(TRY, None)
    if own is not None and not isinstance(own, list):
        raise ConfigError(f"{subject} has no list under {TRY}: write a list of settings, each with its keys.")
    tried = (
        [canonical(_mapping(one, f"A setting of the arm '{label}'")) for one in own] if own is not None else settings
    )
    if len(over) > 1:
        raise ConfigError(f"{subject} takes a mean over {', '.join(over)}: write one key.")
    members = [(text, {key: value}) for key, values in over.items() for text, value in _axis(key, values).items()]
    keys = canonical(keys)
    check_keys([*keys, *over, *(key for one in tried for key in one)], f"the arm '{label}' of {name}")
    return Arm(label, keys, members or [("", {})], tuple(tried))


def _choice(said: object, name: str) -> tuple[Choice | None, list[JsonObject]]:
    """Return the rule of choice, and the settings that every arm without its own tries."""
    if said is None:
        return None, []
    fields = _mapping(said, f"The choice of {name}")
    for field in fields:
        if field not in CHOICE:
            raise _unknown("field of choice", field, list(CHOICE), name)
    if type(fields.get("seed")) is not int:
        raise ConfigError(f"The choice of {name} has no seed: write a seed that the grid does not have.")
    said_settings = _list(fields.get("settings") or [], f"What {name} says of settings to choose from")
    settings = [canonical(_mapping(one, "A setting")) for one in said_settings]
    keys = canonical(_mapping(fields.get("keys"), "What choice says of keys"))
    check_keys([*keys, *(key for one in settings for key in one)], f"the choice of {name}")
    return Choice(fields["seed"], str(fields.get("metric", "loss")), keys), settings


def _seeds(axis: Mapping[str, object] | None, base: JsonObject, choice: Choice | None, name: str) -> list[int]:
    said = list(axis.values()) if axis is not None else [base.get("seed", RunConfig.model_fields["seed"].default)]
    seeds = []
    for seed in said:
        if type(seed) is not int or seed < 0:
            raise ConfigError(f"The grid has the seed {seed!r}: write whole numbers from 0.")
        seeds.append(seed)
    if choice is not None and choice.seed in seeds:
        raise ConfigError(
            f"The seed {choice.seed}, by which {name} chooses settings, is among those that it reports: choose by "
            "another seed, or the result is measured on the rows that the choice was made on."
        )
    return seeds


def _check_once(base: JsonObject, axes: Mapping[str, object], arms: Sequence[Arm], name: str) -> None:
    """Refuse a key that two parts of a study would set."""
    for arm in arms:
        own = {*arm.keys, *(key for _, member in arm.members for key in member)}
        tried = {key for setting in arm.settings for key in setting}
        if both := sorted(own & axes.keys() | tried & axes.keys()):
            raise ConfigError(
                f"{both[0]} is a key of the grid of {name} and of its arm '{arm.name}': leave it out of one of them."
            )
    if "seed" in base and not isinstance(base["seed"], int):
        raise ConfigError(f"The seeds of {name} stand in its base: write them in its grid.")


def _chosen(arms: Sequence[Arm], names: Sequence[str] | None, name: str) -> list[Arm]:
    known = {arm.name: arm for arm in arms}
    for wanted in names or ():
        if wanted not in known:
            raise _unknown("arm", wanted, list(known), name)
    return [arm for arm in arms if names is None or arm.name in names]


def check_keys(keys: Sequence[str], name: str) -> None:
    """Refuse a key that no run has; ConfigError with the nearest ones."""
    known = list(RunConfig.model_fields)
    for key in keys:
        if key not in known and key not in ALIASES:
            raise _unknown("key", key, known, name, listed=False)


def _unknown(kind: str, given: str, known: Sequence[str], name: str, *, listed: bool = True) -> ConfigError:
    guess = registry.nearest(given, list(known))
    hint = f" Did you mean '{guess}'?" if guess else "" if listed else " `weft sft --help_all` lists all keys."
    names = f" Known: {', '.join(known)}." if listed else ""
    return ConfigError(f"{name[0].upper()}{name[1:]} has the {kind} '{given}', which there is not.{hint}{names}")
