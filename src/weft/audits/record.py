"""Puts audits to a run, and writes what they found: audit.json in the run's directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from weft import registry
from weft.audits.audit import Audit
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.runs.metrics import plain
from weft.runs.start import AUDIT
from weft.runs.task_scores import weights_digest

SAME = ("weft_version", "round", "client", "weights", "seed", "small")
"""What findings that stand together in a file have in common."""


def audits_of(names: Sequence[str]) -> dict[str, Audit]:
    """Return audits by their names; ConfigError for a name that is none."""
    return {name: registry.load(registry.AUDITS, name, "audit")() for name in names}


def put(
    scene: Scene, audits: dict[str, Audit], *, all_of_them: bool, say: Callable[[str], None] = lambda _: None
) -> JsonObject:
    """Put audits to a run, one after the other; return and write what they found.

    Args:
        scene: the run.
        audits: by name.
        all_of_them: leave out those that this run does not allow, with the reason; else they are refused before any
            begins.
        say: called with the name of each audit before it begins.

    Raises:
        CannotAudit: an audit that was named is not possible, or each of them failed in its control.
    """
    file = scene.run.path / AUDIT
    found: JsonObject = {
        "weft_version": version("weft"),
        "round": scene.run.round,
        "client": scene.settings.client,
        "weights": weights_digest(scene.run.weights(scene.settings.client)),
        "seed": scene.settings.seed,
        "small": scene.settings.small,
        "audits": {},
        "left_out": {},
    }
    found |= _former(file, found)
    failed: CannotAudit | None = None
    if not all_of_them:
        for audit in audits.values():
            audit.check(scene)
    for name, audit in audits.items():
        say(name)
        try:
            found["audits"][name] = _entry(scene, audit)
        except CannotAudit as error:
            # A number of before, such as of more rows, must not stand where the control has failed.
            if found["audits"].pop(name, None) is not None:
                _write(file, found)
            found["left_out"][name] = str(error)
            failed = failed or error
            continue
        found["left_out"].pop(name, None)
        _write(file, found)  # the next one may take an hour, and be killed
    if failed is not None and not all_of_them and not found["audits"].keys() & audits.keys():
        raise failed
    if not found["audits"]:
        reason = next(iter(found["left_out"].values()), "no audit is named")
        raise ConfigError(f"No audit is possible on this run. The first reason: {reason}")
    _write(file, found)
    return found


def _entry(scene: Scene, audit: Audit) -> JsonObject:
    """Return what an audit found, with what it means and the seconds that it took."""
    began, cut = time.perf_counter(), scene.cut
    audit.check(scene)
    result = audit.findings(scene)
    if scene.cut > cut:
        result.notes.append(
            f"{scene.cut - cut} prompts are longer than the context allows beside an answer, and reach the model "
            "without their beginning."
        )
    words = {"title": audit.title, "means": audit.means, "defence": audit.defence}
    entry: JsonObject = words | plain(result.as_json()) | {"seconds": round(time.perf_counter() - began, 2)}
    return entry


def _former(file: Path, found: JsonObject) -> JsonObject:
    """Return what the same questions to the same model found before.

    Raises:
        ConfigError: the file holds something else.
    """
    if not file.exists():
        return {}
    try:
        former: JsonObject = json.loads(file.read_text(encoding="utf-8"))
        same = all(({"small": False} | former).get(key) == found[key] for key in SAME)
        return {key: dict(former[key]) for key in ("audits", "left_out")} if same else {}
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise ConfigError(f"'{file}' is not what an audit wrote: delete it, and audit again.") from None


def _write(file: Path, found: JsonObject) -> None:
    write_atomic(file, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
