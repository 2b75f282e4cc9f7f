"""What the record of a run says of its beginning, of each round and of its results (weft.runs.chain)."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from weft.config import VOLATILE
from weft.core.digests import sha256_of
from weft.core.witness import split_proof, state_digest
from weft.federation.loop import RoundDone
from weft.json_types import JsonObject
from weft.launch.account import Account
from weft.runs import fingerprints
from weft.runs.chain import (
    BEGIN,
    CHANGED,
    END,
    REPEATED,
    ROUND,
    ChainLog,
    beginning,
    difference,
    field_digests,
)
from weft.runs.layout import RunDir
from weft.runs.metrics import plain
from weft.runs.task_scores import CARD

FORGOTTEN = "forgotten.json"
"""What a run is that forgets something of another, and where it came from."""
PACKAGES = ("weft", "torch", "transformers", "peft", "numpy", "safetensors")
RESULTS = ("adapter", "model", "prompt.txt")
"""What a run leaves: at the top, of the best round, and of each client."""
OTHERS = ("split.json", "tokenizer", "template.jinja", "aligned")
"""What else is bound by the end of a record, so that a file which is changed or missing is named."""


def made_of(run: RunDir, device: torch.device) -> JsonObject:
    """Return what a run is made from on this machine, on which device; of sites also what they sign with updates."""
    config = run.read_config()
    keys = {name: value for name, value in config.items() if name not in VOLATILE}
    made: JsonObject = {"config": keys, "made_from": fingerprints.read_fingerprints(run), **environment(device)}
    if (origin := run.path / FORGOTTEN).exists():
        made["forgotten"] = json.loads(origin.read_text(encoding="utf-8"))
    if config.get("runtime") == "nvflare":
        made["signed"] = {"run": f"{run.path.name} {fingerprints.birth_of(run)}"}
    result: JsonObject = plain(made)
    return result


def environment(device: torch.device) -> JsonObject:
    """Return the versions and the machine, on which the last bits of results depend."""
    is_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if is_gpu else torch.backends.cpu.get_cpu_capability()
    machine = {"processor": platform.machine(), "device": device.type, "kind": kind, "threads": torch.get_num_threads()}
    return {"versions": dict(versions()), "machine": machine}


@cache
def versions() -> dict[str, str]:
    """Return the versions of what computes; read once a process."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            versions[name] = "unknown"
    return versions


class Recorder:
    """Writes the record of a run under way."""

    def __init__(self, run: RunDir, account: Account | None) -> None:
        """Open the record.

        Args:
            run: its directory.
            account: of its budget of differential privacy, if it has one.
        """
        self.run, self.account = run, account
        self.log = ChainLog(run.chain_file)
        self._heard: list[JsonObject] = []
        self._made: tuple[int, JsonObject] | None = None

    def hear(self, line: JsonObject) -> None:
        """Take note of a line of metrics.jsonl; the record of the round binds it."""
        self._heard.append(field_digests(line))

    def begin(self, rounds: int, made: JsonObject) -> None:
        """Take note of what the run is made from, after so many rounds: it is written with the first round."""
        self._made = (rounds, made)

    def _begin(self) -> None:
        """Write down what the run is made from, or what of it changed since."""
        if self._made is None:
            return
        (rounds, made), self._made = self._made, None
        former = beginning(self.log.entries)
        if changed := difference(former, made):
            self.log.append({"event": CHANGED if former else BEGIN, "after": rounds} | changed)

    def add(self, result: RoundDone) -> None:
        """Write down a round, a repeated one too."""
        self._begin()
        record, hidden = result.record, self.account is not None and self.account.hides_cohort
        proofs = {} if hidden else record.proofs
        known = beginning(self.log.entries).get("certificates", {}) if proofs else {}
        parts = {client: _parts(proof) for client, proof in proofs.items()}
        certificates = {client: certificate for client, (certificate, _) in parts.items()}
        if new := {client: text for client, text in certificates.items() if known.get(client) != text}:
            self.log.append({"event": CHANGED, "after": record.round, "certificates": new})
        entry: JsonObject = {
            "event": REPEATED if record.repeated else ROUND,
            "round": record.round + 1,
            "state": state_digest(result.state),
            "metrics": self._heard,
        }
        if not hidden:  # the budget counts on nobody knowing who takes part
            entry |= {"received": record.received, "clients": list(record.clients), "refused": dict(record.failures)}
        if proofs:
            entry["signatures"] = {client: signature for client, (_, signature) in parts.items()}
        if self.account is not None:
            entry |= {"epsilon": self.account.line()["epsilon"], "ledger": self.account.ledger.chain}
        self.log.append(entry)
        self._heard = []

    def end(self, rounds: int) -> None:
        """Write down the digests of what the run leaves."""
        self._begin()
        left = [*results_of(self.run), *others_of(self.run)]
        files = {str(file.relative_to(self.run.path)): sha256_of(file) for file in left}
        self.log.append({"event": END, "rounds": rounds, "metrics": self._heard, "files": files})
        self._heard = []
        self.log.commit()


def others_of(run: RunDir) -> list[Path]:
    """Return the files beside the results that the end of a record binds, those of an aligned model too."""
    places = [run.path / name for name in OTHERS]
    files = [file for path in places for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in files if file.is_file() and file.name != CARD]


def results_of(run: RunDir) -> list[Path]:
    """Return the files of a run's results, without the cards, which name the head of the record."""
    places = [run.path, run.path / "best", *sorted(run.clients.glob("*"))]
    found = [place / name for place in places for name in RESULTS]
    files = [file for path in found for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in files if file.is_file() and file.name != CARD]


def _parts(proof: str) -> tuple[str, str]:
    """Return the certificate and the signature of a proof, all in hexadecimal digits."""
    try:
        certificate, signature = split_proof(bytes.fromhex(proof))
    except ValueError:  # a server without its authority's certificate checks none; who checks the record finds it
        return "", proof
    return certificate.hex(), signature.hex()
