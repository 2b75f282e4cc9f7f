"""What a run was made from, in fingerprints beside its configuration; does not know how one is taken."""

from __future__ import annotations

import hashlib
import json
import secrets

from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.runs.layout import RunDir

Fingerprints = dict[str, str]
"""Digests by the name that a sentence uses, such as "the data 'rows.jsonl'"."""


def read_fingerprints(run: RunDir) -> Fingerprints:
    """Return what a run was made from, nothing where that is not known."""
    return dict(_read(run).get("made_from", {}))


def changed_names(run: RunDir, current: Fingerprints) -> list[str]:
    """Return the names whose digest differs from the record; names that only one of the two has are left out."""
    former = _read(run).get("made_from", {})
    return [name for name in former if name in current and current[name] != former[name]]


def digest_of(current: Fingerprints) -> str:
    """Return one digest of all."""
    return hashlib.sha256(json.dumps(current, sort_keys=True).encode()).hexdigest()


def check(run: RunDir, current: Fingerprints, *, accept: bool) -> list[str]:
    """Return what differs from what a run was made from.

    Raises:
        ConfigError: something does, and `accept` is not given.
    """
    changed = changed_names(run, current)
    if changed and not accept:
        raise ConfigError(
            f"The run in '{run.path}' was made from something else: {' and '.join(changed)} changed since. Put back "
            "what was there, or add --accept_changed to go on with what is there now."
        )
    return changed


def birth_of(run: RunDir) -> str:
    """Return the random id that distinguishes a run from others of its name, "" where none is recorded."""
    return str(_read(run).get("birth", ""))


def keep(run: RunDir, current: Fingerprints, rounds: int, birth: str = "") -> str:
    """Write down what a run is made from, and from which round on where that changed.

    Args:
        run: its directory.
        current: all that it is made from.
        rounds: rounds that are done.
        birth: of the server's run, at a site; the record of another run of this name is replaced.

    Returns:
        The id that distinguishes this run from others of its name, such as one that was deleted.
    """
    record = _read(run)
    record = record if birth in ("", record.get("birth")) else {"birth": birth}
    former = record.get("made_from", {})
    replaced = {name: value for name, value in former.items() if current.get(name, value) != value}
    changes = [*record.get("changes", []), *([{"after_round": rounds, "before": replaced}] if replaced else [])]
    # What has no fingerprint this time, such as data that cannot be reached, keeps the one that it had.
    birth = record.get("birth") or secrets.token_hex(8)
    record = {"birth": birth, "made_from": {**former, **current}, "changes": changes}
    write_atomic(run.fingerprints_file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return str(record["birth"])


def _read(run: RunDir) -> JsonObject:
    """Return the record of a run; nothing of one that an older version began."""
    try:
        record = json.loads(run.fingerprints_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("made_from"), dict):
        raise ConfigError(
            f"'{run.fingerprints_file}', what the run was made from, cannot be read: restore the file, or delete it to "
            "go on without a comparison."
        )
    return record
