"""What a run was made from, in fingerprints beside its configuration; does not know how one is taken."""

from __future__ import annotations

import json
import secrets

from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.runs.layout import RunDir

Fingerprints = dict[str, str]
"""What something is called in a sentence, and the digest of it."""


def made_from(run: RunDir) -> Fingerprints:
    """Return what a run was made from, nothing where that is not known."""
    return dict(_read(run).get("made_from", {}))


def differing(run: RunDir, now: Fingerprints) -> list[str]:
    """Return what is not as the run knows it, and what it knows and is gone; nothing of what it does not know."""
    made = _read(run).get("made_from", {})
    return [name for name in made if name in now and now[name] != made[name]]


def check(run: RunDir, now: Fingerprints, *, accept: bool) -> list[str]:
    """Return what differs from what a run was made from.

    Raises:
        ConfigError: something does, and `accept` is not given.
    """
    changed = differing(run, now)
    if changed and not accept:
        raise ConfigError(
            f"The run in '{run.path}' was made from something else: {' and '.join(changed)} changed since. Put back "
            "what was there, or add --accept_changed to go on with what is there now."
        )
    return changed


def birth_of(run: RunDir) -> str:
    """Return what tells a run from others of its name, "" where nothing is known of it."""
    return str(_read(run).get("birth", ""))


def keep(run: RunDir, now: Fingerprints, behind: int, birth: str = "") -> str:
    """Write down what a run is made from, and from which round on where that changed.

    Args:
        run: its directory.
        now: all that it is made from.
        behind: rounds that are done.
        birth: as the server told it to a site; what is known of another run of this name is forgotten.

    Returns:
        What tells this run from others of its name, such as one that was deleted.
    """
    record = _read(run)
    record = record if birth in ("", record.get("birth")) else {"birth": birth}
    made = record.get("made_from", {})
    before = {name: value for name, value in made.items() if now.get(name, value) != value}
    changes = [*record.get("changes", []), *([{"after_round": behind, "before": before}] if before else [])]
    record = {"birth": record.get("birth") or secrets.token_hex(8), "made_from": {**made, **now}, "changes": changes}
    write_atomic(run.fingerprints_file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return str(record["birth"])


def _read(run: RunDir) -> JsonObject:
    """Return the record of a run; nothing of one that an older version began."""
    try:
        found = json.loads(run.fingerprints_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("made_from"), dict):
        raise ConfigError(
            f"'{run.fingerprints_file}', what the run was made from, cannot be read: restore the file, or delete it to "
            "go on without a comparison."
        )
    return found
