"""What a site has for runs: its rows, its models, its policy in words, and whether it would accept a given run."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from weft.config import build
from weft.core.digests import sha256_of
from weft.data.load import read_rows
from weft.data.parts import Selection
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.models.checkpoint import find_checkpoint
from weft.models.source import model_source
from weft.privacy.ledger import Ledger
from weft.runs.text import human_bytes
from weft.sites.agreement import own_config, refusal
from weft.sites.client import SiteClient
from weft.sites.findings import FAIL, OK, WARN, Finding
from weft.sites.kit_key import FILE as KEY
from weft.sites.policy import SiteData, SitePolicy
from weft.sites.policy_words import policy_in_words
from weft.sites.requests import Refused
from weft.sites.site_ledger import spent_of


def check_data(data: SiteData) -> Iterator[Finding]:
    """Read a site's rows and count them; none of their content is printed."""
    preferences = data.chosen_column is not None
    yield _count("rows to train on", data.path, Selection(split=data.split, preferences=preferences))
    if data.eval is None and data.eval_split is None:
        text = "site.yaml names no held-out rows, and a run with eval_fraction holds some of the rows out"
        yield Finding(OK, "data", text)
        return
    held_out = Selection(split=data.eval_split, held_out=True, preferences=preferences)
    yield _count("held-out rows", data.eval or data.path, held_out)


def _count(what: str, path: str, selection: Selection) -> Finding:
    rows = read_rows(path, selection)
    if len(rows) == 1:
        what = what.replace("rows", "row", 1)
    if not len(rows):
        return Finding(FAIL, "data", f"there are no {what} in '{path}'", "correct site.yaml")
    if rows.omissions:
        text = f"{len(rows)} {what} in '{path}'; others are left out ({rows.omissions.reasons()})"
        return Finding(WARN, "data", text, "mend or remove these rows")
    return Finding(OK, "data", f"{len(rows)} {what} in '{path}'")


def check_models(models: dict[str, str | None]) -> Iterator[Finding]:
    """Check that the models that a policy accepts are at the site, and not in pickle files."""
    if not models:
        yield Finding(WARN, "model", "no model is accepted", "list names under accept: models, unless this is meant")
    for name, place in models.items():
        yield _model(name, name if place is None or place.startswith("sha256:") else place)


def _model(name: str, place: str) -> Finding:
    """Return where a model is, its size and a hash of its files; a model of the hub is not loaded for this."""
    folder = Path(model_source(place)).expanduser()
    if not folder.exists():
        cached = _in_cache(str(folder))
        if cached is None:
            text = f"'{name}' is not on this machine, and the first run that names it loads it from the model hub"
            return Finding(WARN, "model", text, "load it before, or write a folder of yours beside its name")
        folder = cached
    checkpoint = find_checkpoint(str(folder))
    size = sum(file.stat().st_size for file in checkpoint.files)
    if checkpoint.is_pickle:
        return Finding(
            FAIL,
            "model",
            f"'{name}' in '{folder}' is in pickle files (.bin), {human_bytes(size)}, which a site refuses",
            "save it as safetensors, with `save_pretrained`",
        )
    digest = hashlib.sha256()
    for file in checkpoint.files:
        digest.update(bytes.fromhex(sha256_of(file)))
    count = f"{len(checkpoint.files)} safetensors file" + ("s" if checkpoint.files[1:] else "")
    return Finding(OK, "model", f"'{name}' in '{folder}': {count}, {human_bytes(size)}, hash {digest.hexdigest()[:16]}")


def _in_cache(name: str) -> Path | None:
    """Return the folder of a hub model in the cache of this machine; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def check_policy(policy: SitePolicy) -> Iterator[Finding]:
    """Say in words what a site accepts, and what it does not limit."""
    for _, sentence in policy_in_words(policy.accept):
        yield Finding(OK, "policy", sentence)
    if policy.accept.protection == []:
        text = "protection names none that is accepted: every run is refused"
        yield Finding(WARN, "policy", text, "leave it out, unless this is meant")
    if policy.ledger is not None:
        spent, delta = spent_of(Ledger(Path(policy.ledger.file)))
        rules = policy.ledger
        left = min(rules.max_epsilon - spent, rules.max_delta - delta)
        text = f"runs took an epsilon of {spent:g} of {rules.max_epsilon:g}, "
        text += f"and a delta of {delta:g} of {rules.max_delta:g}"
        yield Finding(OK if left > 0 else WARN, "ledger", text, "" if left > 0 else "every further run is refused")


def check_key(policy: SitePolicy, kit: Path) -> Iterator[Finding]:
    """Check that the kit has the key of encrypted sums, where the policy names the protection that needs it."""
    accepted = policy.accept.protection or []
    if "ckks" not in accepted:
        return
    if (kit / KEY).is_file():
        yield Finding(OK, "key", f"the kit has {KEY}, with which updates are encrypted")
        return
    every = accepted == ["ckks"]
    text = f"the kit has no {KEY}, so that {'every run' if every else 'every run with protection ckks'} is refused"
    remedy = "ask whoever made the kits for it (`weft server ckks`)"
    yield Finding(FAIL if every else WARN, "key", text, remedy)


def check_run(policy: SitePolicy, kit: Path, name: str, keys: JsonObject) -> Iterator[Finding]:
    """Check whether a site would accept a run, as in a handshake; nothing is sent, and nothing is left on the disk.

    Args:
        policy: the site policy.
        kit: the site's, whose certificate and key take part in sums.
        name: the site's name.
        keys: the run's keys as they would be submitted.
    """
    remedy = "change run.yaml or site.yaml"
    config = build(keys)
    cohort = min(config.sample_clients, len(config.sites or []) or config.sample_clients)
    why = refusal(policy, config, cohort)
    if why is not None:
        yield Finding(FAIL, "run", f"this site would refuse it: {why}", remedy)
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            base = _base(policy, name, keys, folder)
            site = SiteClient(policy, Path(folder), name, version("weft"), kit)
            request: JsonObject = {"run": keys, "id": "check", "index": 0, "clients": cohort, "base": base}
            answer = site.handshake(request | {"birth": "check"})
    except Refused as error:
        yield Finding(FAIL, "run", f"this site would refuse it: {error}", remedy)
        return
    except ConfigError as error:
        yield Finding(FAIL, "run", f"this site's data or model cannot be used for it: {str(error).rstrip('.')}")
        return
    held = f"{answer['held']} held out" if answer["held"] else "none held out"
    yield Finding(OK, "run", f"this site would take part, with {answer['rows']} rows to train on and {held}")
    least = policy.accept.min_report_rows
    if 0 < answer["held"] < least:
        yield Finding(
            WARN,
            "run",
            f"this site would report no scores: it holds out fewer than {least} rows (min_report_rows)",
            "hold out more rows, by `eval` in site.yaml or eval_fraction in run.yaml, or leave it at that",
        )
    text = f"the hash of the model for this run, which site.yaml may ask for, is sha256:{base}"
    yield Finding(OK, "run", text)


def _base(policy: SitePolicy, name: str, keys: JsonObject, folder: str) -> str:
    """Return the hash of the site's model as a run loads it; raises as `ClientBuilder` and `has_pickle_files` do."""
    from weft.launch.client import ClientBuilder
    from weft.models.fingerprint import fingerprint
    from weft.models.load import has_pickle_files

    config = build(own_config(policy, keys, name) | {"output_dir": folder})
    if config.endpoint is None and has_pickle_files(config):
        raise Refused("the model here is in pickle files (.bin), and a site loads safetensors only")
    return fingerprint(ClientBuilder(config).model)
