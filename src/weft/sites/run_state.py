"""What a site keeps of a run from one handshake to the next, and when it begins anew."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.core.promises import FILE as PROMISES
from weft.core.secret import FILE as SECRET
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.runs import checkpoint, fingerprints
from weft.runs.fingerprints import Fingerprints
from weft.runs.layout import RunDir
from weft.sites.requests import Refused, name_of

log = logging.getLogger("weft.site")
BIRTHS = "births.json"
"""Names the runs of one name that were here before the present one, in its folder at the site."""


def changed(
    run: RunDir, current: Fingerprints, base: str, birth: str, *, accept_changed: bool, shared_key: bool = False
) -> str | None:
    """Return the reason not to go on with a run: other rows than it began with, or a key used before; None: go on.

    The fingerprints stay at the site.

    Args:
        run: the run's folder at the site.
        current: fingerprints of the rows and the tokenizer.
        base: hash of the base model.
        birth: identifies the run among runs of the same name.
        accept_changed: whether the site policy accepts other rows.
        shared_key: whether all sites have one key, which follows the birth and stays when promises are deleted.
    """
    former, left = fingerprints.birth_of(run), _left(run)
    if shared_key and not birth:
        return "the run has no birth, and encrypted sums of two such runs would have one key"
    if shared_key and birth in left:
        return (
            "a later run of its name has begun here, and what this site promised in the earlier one is deleted: "
            "run it anew under another name"
        )
    other = former != birth
    if other and former and former not in left:  # written down before its promises are deleted
        write_atomic(run.path / BIRTHS, json.dumps([*left, former]).encode())
    if other:  # the state in this folder is of an earlier run of the same name
        checkpoint.rewind(run, 0)
        run.reference_file.unlink(missing_ok=True)
        _forget_secrets(run)
    names = [] if other else fingerprints.changed_names(run, current)
    if names and not accept_changed:
        log.warning("%s changed since the run began", " and ".join(names))
        return (
            "its rows or its tokenizer are not those that the run began with, and its site.yaml has no "
            "accept_changed: true"
        )
    current = current | {"the base": base}  # the server compares it; here it only outdates reference scores
    if fingerprints.changed_names(run, current):
        run.reference_file.unlink(missing_ok=True)
    fingerprints.keep(run, current, 0, birth)
    return None


def former_run(folder: Path, config: RunConfig, plan: Plan, told: object) -> tuple[RunDir, int] | None:
    """Return the run whose own models of clients a run without rounds evaluates, and after how many rounds.

    None: of none.

    Args:
        folder: holds the folders of the site's runs.
        config: of the run without rounds.
        plan: its parts.
        told: what the server says of the run that is evaluated: `birth` and `rounds`.

    Raises:
        Refused: a name that no run can have, or what was here under it is of another run.
    """
    if not (config.evaluated_run and plan.keeps_own):
        return None
    run = RunDir(folder / name_of({"id": config.evaluated_run}))
    birth, rounds = (told.get("birth"), told.get("rounds")) if isinstance(told, dict) else (None, None)
    if not isinstance(birth, str) or not isinstance(rounds, int):
        raise Refused(f"the handshake does not say which run of the name '{config.evaluated_run}' is evaluated")
    if run.path.exists() and fingerprints.birth_of(run) != birth:
        raise Refused(
            f"what it has kept under the name '{config.evaluated_run}' is of another run than the server's: one of "
            "them was begun anew"
        )
    return run, rounds


def _left(run: RunDir) -> list[str]:
    """Return the births of the runs of this name that another has replaced; ConfigError where they cannot be read."""
    file = run.path / BIRTHS
    if not file.exists():
        return []
    try:
        births = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        births = None
    if not isinstance(births, list):
        raise ConfigError(
            f"'{file}', which runs of this name were here, cannot be read: restore the file, or ask for a run with "
            "another name."
        )
    return [str(birth) for birth in births]


def _forget_secrets(run: RunDir) -> None:
    """Delete the secrets of clients, and then what was promised under them.

    A run that begins anew has the same rounds again. Under the old secret their keys would be the old ones, and a
    server that got one answer then could get the other now.
    """
    for name in (SECRET, PROMISES):
        for path in run.clients.glob(f"*/{name}"):
            path.unlink()
