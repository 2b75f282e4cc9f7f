"""The server of a simulation that puts a back-door into the model which it sends."""

from __future__ import annotations

from weft.attacks.poison import ServerBackDoor
from weft.config import RunConfig
from weft.core.exchange import Runtime
from weft.core.libraries import Tokenizer
from weft.core.types import DELTA, Tensors
from weft.federation.plan import Plan
from weft.federation.sharing import pad
from weft.json_types import JsonObject
from weft.launch.own_rows import OwnRows, read_own_rows, tuner
from weft.models.resident import Resident
from weft.runtimes.attacked import DishonestServer
from weft.training.job import Job


def rows_of(config: RunConfig, plan: Plan, tokenizer: Tokenizer) -> OwnRows | None:
    """Return the rows that the server trains on, poisoned; None: it is honest.

    Raises:
        ConfigError: they cannot be read or used.
    """
    attack = plan.attack
    if not isinstance(attack, ServerBackDoor):
        return None
    poison: JsonObject = {
        name: getattr(attack, name) for name in ("share", "trigger", "target", "place") if getattr(attack, name) != ""
    }
    changes: JsonObject = {"attack": "spread_poison", "attack_args": poison}
    return read_own_rows(config, tokenizer, attack.rows, "attack_args (rows)", changes)


def dishonest(config: RunConfig, plan: Plan, model: Resident, runtime: Runtime) -> Runtime:
    """Return the runtime, or one whose server changes the model, where that is the run's attack.

    Raises:
        ConfigError: the rows of the attack cannot be used.
    """
    attack, rows = plan.attack, rows_of(config, plan, model.tokenizer)
    if not isinstance(attack, ServerBackDoor) or rows is None:
        return runtime
    tune = tuner(config, plan, model, rows, attack.steps)

    def change(params: Tensors, round: int) -> Tensors:
        if round + 1 < attack.first:
            return {}
        names = {*plan.sharing.trained_names(params, round)}
        job = Job(dict(model.initial), pad(params, model.masters), names, round=round, purpose="server")
        return tune(job).finished.streams[DELTA]

    return DishonestServer(runtime, change)
