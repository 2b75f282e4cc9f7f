"""An attack in a file of a user's: what goes wrong in it, or in what it sends, ends the run in a sentence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from weft.core.attack import Attack, Scene
from weft.core.types import Update
from weft.errors import ConfigError, RunError
from weft.federation.own_aggregator import REMEDY, fault_of
from weft.plugins import is_own, said


def forge(attack: Attack, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> dict[str, Update]:
    """Return what malicious clients send, by client.

    Raises:
        RunError: an attack of a user's failed, or sends something that is no update of these clients.
    """
    if not is_own(attack):
        return {update.client: update for update in attack.send(own, honest, scene)}
    name, when = _name(attack), f"in round {scene.round + 1}"
    with said(attack, lambda why: RunError(f"{name} failed with {why} {when}", REMEDY)):
        forged = list(attack.send(own, honest, scene))
    honestly = {update.client: update for update in own}
    for update in forged:
        if not isinstance(update, Update):
            raise RunError(f"{name} sent a {type(update).__name__} instead of an Update {when}", REMEDY)
        if update.client not in honestly:
            raise RunError(f"{name} sent an update of '{update.client}', which is not malicious, {when}", REMEDY)
        if fault := fault_of(update.streams, honestly[update.client].streams, finite=False):
            raise RunError(f"{name} sent {fault} {when}", REMEDY)
    return {update.client: update for update in forged}


def poisoned(attack: Attack, rows: list[Any], choices: Sequence[str] | None, lots: random.Random) -> list[Any]:
    """Return the rows that a malicious client trains on, as many as it has.

    Raises:
        ConfigError: the rows cannot be changed in this way, or an attack of a user's failed.
    """
    if not is_own(attack):
        return attack.poison(rows, choices, lots)
    name = _name(attack)
    with said(attack, lambda why: ConfigError(f"{name} failed with {why}: correct its poison.")):
        changed = list(attack.poison(rows, choices, lots))
    if len(changed) != len(rows):
        raise ConfigError(
            f"{name} made {len(changed)} rows of {len(rows)}: correct its poison, which keeps their number."
        )
    kind = type(rows[0]) if rows else object
    if strange := [row for row in changed if not isinstance(row, kind)]:
        raise ConfigError(
            f"{name} made a {type(strange[0]).__name__} of a row, which is a {kind.__name__}: correct its poison."
        )
    return changed


def _name(attack: Attack) -> str:
    return f"The attack {type(attack).__name__}"
