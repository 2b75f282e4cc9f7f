"""What a site keeps of a run from one handshake to the next, and when it begins anew."""

from __future__ import annotations

import logging

from weft.core.promises import FILE as PROMISES
from weft.core.secret import FILE as SECRET
from weft.runs import checkpoint, fingerprints
from weft.runs.fingerprints import Fingerprints
from weft.runs.layout import RunDir

log = logging.getLogger("weft.site")


def changed(run: RunDir, current: Fingerprints, base: str, birth: str, *, accept_changed: bool) -> str | None:
    """Return the reason not to go on with a run, on other rows than those that it began with; None: there is none.

    The fingerprints stay at the site.

    Args:
        run: the run's folder at the site.
        current: fingerprints of the rows and the tokenizer.
        base: hash of the base model.
        birth: identifies the run among runs of the same name.
        accept_changed: whether the site policy accepts other rows.
    """
    other = fingerprints.birth_of(run) != birth
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


def _forget_secrets(run: RunDir) -> None:
    """Delete the secrets of clients, and then what was promised under them.

    A run that begins anew has the same rounds again. Under the old secret their keys would be the old ones, and a
    server that got one answer then could get the other now.
    """
    for name in (SECRET, PROMISES):
        for path in run.clients.glob(f"*/{name}"):
            path.unlink()
