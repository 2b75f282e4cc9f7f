"""The runs of a study: each arm at each point of the grid with each seed, as whole configurations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft import registry
from weft.config import RunConfig, settle
from weft.core.texts import printable, unfit
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.runs.layout import path_component
from weft.runs.start import STUDY_RUNS
from weft.studies.labels import label_of
from weft.studies.study import DEFAULTS, Arm, Study

UNMEASURED: JsonObject = {
    "eval_tasks": None,
    "eval_limit": None,
    "num_fewshot": None,
    "apply_chat_template": None,
    "task_data": None,
    "include_path": None,
    "eval_dataset_name": None,
    "eval_dataset_split": None,
    "best_metric": None,
    "early_stopping_rounds": None,
}
"""What runs for a choice are without: they see no row that the result is measured on."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    arm: str
    point: tuple[str, ...]
    """Labels of its values of the grid."""
    seed: int
    config: RunConfig
    member: str = ""
    """Which of the runs that a value of its arm is the mean of."""
    setting: str | None = None
    """Of a run for the choice: the label of what it tries."""
    number: int = 0
    """Of a run for the choice: the place of the setting."""

    @property
    def name(self) -> str:
        """What messages and records call it."""
        words = (self.arm, *self.point, *([self.member] if self.member else []))
        tried = [] if self.setting is None else [f"tried: {self.setting}"]
        return ", ".join((*words, *tried, f"seed {self.seed}"))

    @property
    def folder(self) -> Path:
        """The directory of the run."""
        return Path(self.config.output_dir)


OF_STUDY = {"seed": "in the grid", "output_dir": "beside the base, or as --output_dir"}
"""Keys of a run that a study sets itself, and where it says their values."""


def check_words(study: Study) -> None:
    """Refuse names that no folder, table or picture can tell apart or show, and keys that the study sets itself.

    Raises:
        ConfigError: which, and what to write.
    """
    names = [(f"A value of {key} in the grid", label) for key, values in study.axes.items() for label in values]
    for arm in study.arms:
        names.append(("An arm of the study", arm.name))
        names += [(f"A run of the arm '{printable(arm.name)}'", label) for label, own in arm.members if own]
    for what, name in names:
        if not name.strip():
            raise ConfigError(f"{what} has no name, so that its runs have no folder of their own: write one.")
        if unfit(name):
            raise ConfigError(f"{what} is called '{printable(name)}', with unprintable characters: leave these out.")
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError("The grid has a seed twice: leave one of them out, since their runs would be one.")
    for arm in study.arms:
        keys = [
            *arm.keys,
            *(key for _, own in arm.members for key in own),
            *(key for one in arm.settings for key in one),
        ]
        _check_own(keys, f"The arm '{arm.name}' sets")
    _check_own([*study.axes], "The grid sets")
    _check_own([*study.choice.keys] if study.choice else [], "The choice sets")


def _check_own(keys: Sequence[str], who: str) -> None:
    for key in keys:
        if key in OF_STUDY:
            raise ConfigError(f"{who} {key}, which is the study's: write it {OF_STUDY[key]}.")


def points_of(study: Study) -> list[tuple[tuple[str, ...], JsonObject]]:
    """Return the labels and the keys of every point of the grid, seeds apart."""
    axes = [[(label, {key: value}) for label, value in values.items()] for key, values in study.axes.items()]
    found = []
    for chosen in itertools.product(*axes):
        keys: JsonObject = {}
        for _, one in chosen:
            keys |= one
        found.append((tuple(label for label, _ in chosen), keys))
    return found


def cells_to_choose(study: Study) -> list[Cell]:
    """Return the runs by which the settings of arms are chosen, none without a rule of choice.

    Raises:
        ConfigError: a run that cannot be.
    """
    if study.choice is None:
        return []
    found = []
    for arm, (labels, keys) in itertools.product(study.arms, points_of(study)):
        for number, setting in enumerate(arm.settings):
            for member, own in arm.members:
                base = _without_tests(study.base | keys) | UNMEASURED | study.choice.keys
                values = base | arm.keys | own | setting | {"seed": study.choice.seed}
                folder = _folder(study, "choice", arm.name, *labels, f"setting_{number}", member)
                config = _config(study, values, [*arm.keys, *own, *setting], folder, study.choice.seed, arm.name)
                label = label_of(setting) or "as it is"
                found.append(Cell(arm.name, labels, study.choice.seed, config, member, label, number))
    return found


def _without_tests(keys: JsonObject) -> JsonObject:
    """Return keys without the clients' own test rows, so that rows of theirs are held out."""
    clients = keys.get("clients")
    if not isinstance(clients, list):
        return keys
    return keys | {
        "clients": [
            {key: value for key, value in one.items() if key != "eval"} if isinstance(one, Mapping) else one
            for one in clients
        ]
    }


def cells_of(study: Study, settings: Mapping[tuple[str, tuple[str, ...]], JsonObject]) -> list[Cell]:
    """Return the runs that the table is made of: all arms of a seed before the next seed, so that pairs come early.

    Args:
        study: the study.
        settings: the chosen ones, by arm and point; an arm with settings of which none was chosen is left out.

    Raises:
        ConfigError: a run that cannot be, or a key without effect.
    """
    found = []
    for seed, (labels, keys), arm in itertools.product(study.seeds, points_of(study), study.arms):
        if arm.settings and (arm.name, labels) not in settings:
            continue
        setting = settings.get((arm.name, labels), {})
        for member, own in arm.members:
            values = study.base | keys | arm.keys | own | setting | {"seed": seed}
            folder = _folder(study, STUDY_RUNS, arm.name, *labels, member)
            config = _config(study, values, [*arm.keys, *own, *setting], folder, seed, arm.name)
            found.append(Cell(arm.name, labels, seed, config, member))
    return found


def first_settings(study: Study) -> dict[tuple[str, tuple[str, ...]], JsonObject]:
    """Return the first setting of each arm at each point: what stands for the chosen one before there is one."""
    return {(arm.name, labels): arm.settings[0] for arm in study.arms if arm.settings for labels, _ in points_of(study)}


def _folder(study: Study, kind: str, *names: str) -> Path:
    return study.output_dir.joinpath(kind, *(path_component(name) for name in names if name))


def _config(study: Study, values: JsonObject, own: Iterable[str], folder: Path, seed: int, arm: str) -> RunConfig:
    """Return a configuration; the keys of the arm itself must have an effect."""
    place = DEFAULTS[study.verb]
    explicit = [key for key in dict.fromkeys(own) if values[key] is not None]
    try:
        return settle(
            values | {"output_dir": str(folder / f"seed_{seed}")},
            explicit,
            registry.import_object(place) if place else lambda keys: {},
        )[0]
    except ConfigError as error:
        raise ConfigError(f"The arm '{arm}' cannot be run. {error}") from None


def check_effects(study: Study, arms: Sequence[Arm]) -> None:
    """Refuse a key of the grid that has no effect in any arm, at any point of the grid; ConfigError."""
    place = DEFAULTS[study.verb]
    defaults = registry.import_object(place) if place else lambda keys: {}

    def refusal(key: str, arm: Arm, point: JsonObject) -> ConfigError | None:
        setting = arm.settings[0] if arm.settings else {}
        try:
            settle(study.base | arm.keys | arm.members[0][1] | setting | point, [key], defaults)
        except ConfigError as error:
            return error
        return None

    for key in study.axes:
        points = [point for _, point in points_of(study) if point.get(key) is not None]
        refusals = [refusal(key, arm, point) for arm in arms for point in points]
        if refusals and all(refusals):
            raise ConfigError(f"The key {key} of the grid has no effect in any arm. {refusals[0]}")
