"""Whether the record of a run fits itself and what lies beside it; what was changed by hand is named."""

from __future__ import annotations

import contextlib
import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

from weft.config import VOLATILE
from weft.core.chain import BrokenChain
from weft.core.digests import sha256_of
from weft.core.witness import state_digest
from weft.errors import ConfigError, DataError, RunError
from weft.json_types import JsonObject
from weft.launch.recorder import results_of
from weft.privacy.ledger import Ledger
from weft.runs import checkpoint
from weft.runs.chain import CHANGED, END, REPEATED, ROUND, beginning, field_digests, read_chain
from weft.runs.fingerprints import read_fingerprints
from weft.runs.layout import RunDir
from weft.runs.metrics import plain, read
from weft.runs.start import LEDGER
from weft.runs.task_scores import CARD
from weft.runs.text import plural


class Finding(NamedTuple):
    """Something that is not as the run wrote it."""

    file: str
    """Its path below the directory of the run."""
    what: str
    """A clause: what differs."""
    round: int | None = None
    field: str = ""
    """Names of fields, commas between."""

    def sentence(self) -> str:
        """Return it as a sentence."""
        parts = [f"round {self.round}"] if self.round is not None else []
        fields = [f"'{name}'" for name in self.field.split(", ")] if self.field else []
        parts += [f"the field{'s' * (len(fields) > 1)} {' and '.join(fields)}"] if fields else []
        where = f" ({', '.join(parts)})" if parts else ""
        return f"{self.file}{where}: {self.what}."


class Verified(NamedTuple):
    """The record of a run, and what does not fit it."""

    entries: list[JsonObject]
    head: str
    findings: list[Finding]

    @property
    def rounds(self) -> list[JsonObject]:
        """The lines of rounds that counted."""
        return [entry for entry in self.entries if entry.get("event") == ROUND]


def verify(run: RunDir, head: str | None = None) -> Verified:
    """Compare the record of a run with itself and with what lies beside it.

    Args:
        run: its directory.
        head: a hash that was kept elsewhere, such as that of a model card; None: there is none.

    Raises:
        ConfigError: there is no run, or it has no record.
    """
    config = run.read_config()
    if not run.chain_file.exists():
        raise ConfigError(
            f"The run in '{run.path}' has no record (chain.jsonl), because an older version made it: resume it, and "
            "it has one from there on."
        )
    try:
        entries, chains = read_chain(run.chain_file)
    except BrokenChain as broken:
        return Verified([], "", [_broken(run, broken.line)])
    if not chains:
        raise ConfigError(f"The record of the run in '{run.path}' is empty: wait for its first round.")
    findings = [*_order(entries), *_beginning(run, config, entries), *_metrics(run, entries)]
    findings += [*_checkpoints(run, entries, chains), *_ledger(run, entries), *_results(run, entries, chains[-1])]
    if head is not None and head not in chains:
        findings.append(Finding(run.chain_file.name, f"no line has the hash {head}, so the record was written anew"))
    return Verified(entries, chains[-1], findings)


def _broken(run: RunDir, line: int) -> Finding:
    """Return the finding of a line that does not fit those before it, with what its round tells of the reason."""
    name = run.chain_file.name
    entries = [_entry(text) for text in run.chain_file.read_bytes().split(b"\n")]
    before, entry, after = entries[: line - 1], entries[line - 1], entries[line:]
    if not before and entry.get("event") in (ROUND, REPEATED, END):
        return Finding(name, "its first line is missing, which says what the run began from")
    counted = [int(one["round"]) for one in before if one.get("event") == ROUND]
    done = max(counted, default=int(before[0].get("after", 0)) if before else 0)
    round = _round_of(entry)
    if round is None:
        what = f"line {line} was changed, or one before it, which is of no round, was taken out or put in"
        return Finding(name, what, done or None)
    known = entry.get("event") == ROUND and any(_round_of(one) == round for one in after if one.get("event") == ROUND)
    if round > done + 1 and not known:
        lost = f"round {done + 1} is" if round == done + 2 else f"rounds {done + 1} to {round - 1} are"
        return Finding(name, f"the record of {lost} missing before line {line}", done + 1)
    if round <= done:
        return Finding(name, f"line {line} was put in: the record has this round already", round)
    return Finding(name, f"line {line} was changed, or an attempt before it was taken out or put in", round)


def _entry(line: bytes) -> JsonObject:
    """Return a line of the record as far as it can be read."""
    with contextlib.suppress(ValueError, RecursionError):
        entry = json.loads(line)
        if isinstance(entry, dict):
            return entry
    return {}


def _round_of(entry: JsonObject) -> int | None:
    """Return the round of a line; the end of a record counts as the round after the last."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return int(entry["rounds"]) + 1 if entry.get("event") == END else int(entry["round"])
    return None


def _order(entries: list[JsonObject]) -> list[Finding]:
    """Return what is missing between the rounds of a record."""
    rounds = [entry["round"] for entry in entries if entry.get("event") == ROUND]
    after = int(entries[0].get("after", 0))
    expected = list(range(after + 1, after + 1 + len(rounds)))
    findings = [Finding("chain.jsonl", "its rounds do not follow one another")] if rounds != expected else []
    # A run that forgets something begins from rounds of another, and its first line says how many.
    if after > int(entries[0].get("forgotten", {}).get("rounds_kept", 0)):
        what = f"rounds 1 to {after} are not in it: an older version made them, or the record was deleted"
        findings.append(Finding("chain.jsonl", what))
    return findings


def _beginning(run: RunDir, config: JsonObject, entries: list[JsonObject]) -> list[Finding]:
    """Return the keys and fingerprints that are not those that the run was made with."""
    began, now = beginning(entries), plain(config)
    findings = [
        Finding(run.config_file.name, "the key is not what the run was made with", field=name)
        for name in _differing(began.get("config", {}), {k: v for k, v in now.items() if k not in VOLATILE})
    ]
    try:
        made_from = read_fingerprints(run)
    except ConfigError as error:
        return [*findings, Finding(run.fingerprints_file.name, str(error).rstrip("."))]
    return findings + [
        Finding(run.fingerprints_file.name, "the fingerprint is not what the run was made from", field=name)
        for name in _differing(began.get("made_from", {}), made_from)
    ]


def _differing(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [
        name for name in {**recorded, **found} if recorded.get(name, ...) != found.get(name, ...) and name in recorded
    ]


def _metrics(run: RunDir, entries: list[JsonObject]) -> list[Finding]:
    """Return the lines and fields of metrics.jsonl that are not those of the record."""
    name = run.metrics_file.name
    try:
        lines = read(run.metrics_file)
    except DataError as error:
        return [Finding(name, str(error).rstrip("."))]
    recorded = [(entry, digests) for entry in entries for digests in entry.get("metrics", [])]
    # Where the record began later, lines of before are not in it.
    first = max(0, len(lines) - len(recorded)) if int(entries[0].get("after", 0)) else 0
    lines = lines[first:]
    known, found = ([_key(one) for one in many] for many in ([d for _, d in recorded], map(field_digests, lines)))
    findings = []
    for kind, one, to, other, until in SequenceMatcher(a=known, b=found, autojunk=False).get_opcodes():
        paired = min(to - one, until - other) if kind == "replace" else 0
        for place in range(paired):
            entry, fields = recorded[one + place][0], _differ(known[one + place], found[other + place])
            findings.append(
                Finding(name, f"line {first + other + place + 1} was changed", _about(entry), ", ".join(fields))
            )
        if kind != "equal" and to - one > paired:
            lost, entry = to - one - paired, recorded[one + paired][0]
            where = "at its end" if until == len(found) else f"before line {first + until + 1}"
            findings.append(Finding(name, f"{plural(lost, 'line')} {where} {_are(lost)} missing", _about(entry)))
        if kind != "equal" and until - other > paired and (until < len(found) or _is_whole(entries)):
            # Lines at the end may be of a round whose record was not written before the process ended.
            more = until - other - paired
            what = f"from line {first + other + paired + 1} on it has {plural(more, 'line')} that the record has not"
            findings.append(Finding(name, what))
    return findings


def _key(digests: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(digests.items()))


def _differ(one: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the fields in which two lines differ."""
    left, right = dict(one), dict(other)
    return [field for field in {**left, **right} if left.get(field) != right.get(field)]


def _about(entry: JsonObject) -> int | None:
    """Return the round of the record whose line this is."""
    round = entry.get("round", entry.get("rounds"))
    return None if round is None else int(round)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _is_whole(entries: list[JsonObject]) -> bool:
    return bool(entries) and entries[-1].get("event") == END


def _checkpoints(run: RunDir, entries: list[JsonObject], chains: list[str]) -> list[Finding]:
    """Return the checkpoints whose tensors are not those of the record."""
    states = {entry["round"]: entry["state"] for entry in entries if entry.get("event") == ROUND}
    findings = []
    for round in run.rounds:
        file = f"checkpoints/round_{round:06d}"
        try:
            state, extra = checkpoint.at(run, round), checkpoint.extra_of(run, round)
        except RunError:
            findings.append(Finding(file, "it is damaged, or its tensors are not those that were saved", round))
            continue
        if round in states and state_digest(state) != states[round]:
            findings.append(Finding(file, "its tensors are not those that the round ended with", round))
        # A record that was begun later has no lines of earlier rounds.
        if round > int(entries[0].get("after", 0)) and extra.get("head") not in chains:
            findings.append(
                Finding("chain.jsonl", "it ends before the checkpoint of the round, or was written anew", round)
            )
    return findings


def _ledger(run: RunDir, entries: list[JsonObject]) -> list[Finding]:
    """Return what is wrong with the ledger of the budget, where the run has one."""
    recorded = [entry for entry in entries if "ledger" in entry]
    if not recorded:
        return []
    try:
        ledger = Ledger(run.path / LEDGER)
    except ConfigError as error:
        return [Finding(LEDGER, str(error).rstrip("."))]
    return [
        Finding(LEDGER, "it does not hold what the round had spent", entry["round"], "ledger")
        for entry in recorded
        if entry["event"] in (ROUND, REPEATED) and entry["ledger"] not in ledger.chains
    ][:1]


def _results(run: RunDir, entries: list[JsonObject], head: str) -> list[Finding]:
    """Return the files that are not those that the run left, and cards with another head."""
    if not _is_whole(entries):
        return _cut(run, entries)
    recorded, round = entries[-1]["files"], entries[-1]["rounds"]
    findings = []
    for name, digest in recorded.items():
        if not (run.path / name).is_file():
            findings.append(Finding(name, "it is not there any more", round))
        elif sha256_of(run.path / name) != digest:
            findings.append(Finding(name, "its content is not what the run wrote", round))
    new = {str(file.relative_to(run.path)) for file in results_of(run)} - recorded.keys()
    findings += [Finding(name, "the run did not write it", round) for name in sorted(new)]
    for card in (run.path / "adapter" / CARD, run.path / "model" / CARD):
        if card.exists() and head not in card.read_text(encoding="utf-8"):
            findings.append(Finding(_below(card, run), "it does not name the head of the record", round))
    return findings


def _cut(run: RunDir, entries: list[JsonObject]) -> list[Finding]:
    """Return that results are there which the record does not end with; a run that goes on has those of before."""
    goes_on = any(entry["event"] == CHANGED and "config" in entry for entry in entries)
    last = max((int(entry["round"]) for entry in entries if entry["event"] == ROUND), default=0)
    if goes_on and last < int(beginning(entries)["config"].get("num_rounds", 0)):
        return []
    if not run.summary_file.exists() and not results_of(run):
        return []
    what = "it has no line of the end of the run, though there are results: resume the run, or its end was cut off"
    return [Finding(run.chain_file.name, what, last)]


def _below(path: Path, run: RunDir) -> str:
    return str(path.relative_to(run.path))
