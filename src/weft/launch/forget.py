"""A run once more, without a client or without some rows: back to the last state before it saw them, and on from there.

The result equals, bit for bit, the run that its config.yaml describes, begun anew: one that never had them and
has the same secrets, from which canaries and the noise of some aggregators are drawn. What depends on a forgotten
client without its rows (its number, that it is drawn and does not answer) is in both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from weft import kinds
from weft.config import RunConfig, build
from weft.core.files import write_atomic
from weft.core.secret import COMMON_FILE as COMMON
from weft.core.secret import FILE as SECRET
from weft.core.types import ServerState
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.launch import compose
from weft.launch.forget_rows import without_rows
from weft.launch.forgotten import unknown
from weft.launch.recorder import FORGOTTEN
from weft.launch.run import Run
from weft.runs import checkpoint
from weft.runs.chain import head_of
from weft.runs.fingerprints import read_fingerprints
from weft.runs.layout import HEADER, RunDir
from weft.runs.metrics import read, to_line
from weft.runs.text import plural


@dataclass(frozen=True)
class Forgetting:
    """What is to be forgotten of a run, and what that costs."""

    run: Run
    clients: tuple[str, ...]
    """Clients that are forgotten, or whose rows are."""
    keys: JsonObject
    """Of the run without them."""
    rows: int
    """Rows that are forgotten of these clients; 0: all."""
    first: int
    """The first round, counted from 1, that depends on them."""
    start: int
    """Rounds after which the state is on disk that does not."""
    why_all: str
    """Why every round depends on them, whoever took part; "": only those in which they did."""

    files: Mapping[Path, bytes] = field(default_factory=dict)
    """Data files without the rows, which the new run reads."""
    missing: tuple[int, ...] = ()
    """Places, counted from 1, of the rows to forget that are nowhere in the data."""
    method: str = "exact"
    state: ServerState | None = None
    """After all rounds, of a cheap method; None: as the run has it after `start` rounds."""
    scores: JsonObject = field(default_factory=dict)
    """By which a cheap method is judged."""

    @property
    def rounds(self) -> int:
        """Rounds that are computed once more."""
        return self.run.config.num_rounds - self.start

    @property
    def seconds(self) -> float:
        """Seconds that so many rounds took on average."""
        timing = [line["seconds"] for line in read(self.run.directory.timing_file) if "seconds" in line]
        return float(sum(timing)) / max(1, len(timing)) * self.rounds

    def cost(self, method: str = "exact") -> str:
        """Return what forgetting costs by a method, in a sentence or two."""
        rows = [plural(self.rows, "row")] * bool(self.rows)
        what = " and ".join(rows + [", ".join(self.clients)] * bool(self.clients))
        seen = (
            f"every round depends on it, since {self.why_all}" if self.why_all else f"round {self.first} saw it first"
        )
        back = f"the state after round {self.start} is the last before" if self.start else "no state before is on disk"
        back = "the run begins anew" if self.why_all or self.first == 1 else back
        rounds = f"{self.rounds} of {self.run.config.num_rounds} rounds"
        if method != "exact":
            return (
                f"To forget {what} by --method {method} no round is computed once more: the finished model is changed, "
                f"and equals no run without them. --method exact computes {rounds}, about {self.seconds:.0f} s."
            )
        return f"To forget {what}: {seen}, and {back}, so {rounds} are computed once more, about {self.seconds:.0f} s."

    def write(self) -> None:
        """Write the new run as far as the old one may be kept, and the data that it reads; raises as `prepare`."""
        prepare(self)
        for path, content in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)


def plan_forgetting(run: Run, clients: Sequence[str], rows: Path | None, out: Path) -> Forgetting:
    """Find what saw the clients or rows, and where to begin again.

    Args:
        run: the run that is to forget.
        clients: names of clients to forget whole.
        rows: a file of rows to forget of whichever clients have them; None: none.
        out: directory of the new run.

    Raises:
        ConfigError: nothing can be forgotten: the reason, and what to do instead.
    """
    config = run.config
    names = run.client_names
    for name in clients:
        if name not in names:
            raise unknown(name, names)
    _check(run, clients, rows)
    keys, count, affected = dict(run.directory.read_config()), 0, tuple(clients)
    files: Mapping[Path, bytes] = {}
    missing: tuple[int, ...] = ()
    if clients:
        keys["forgotten"] = [*config.forgotten, *clients]
    if rows is not None:
        keys, count, affected, files, missing = without_rows(config, keys, rows, out.with_name(f"{out.name}-data"))
    keys["output_dir"] = str(out)
    new = build({name: value for name, value in keys.items() if value is not None})
    why = _why_all(new, compose.plan(new), rows is not None)
    seen = _rounds_with(run, affected or names)
    if not seen:
        raise ConfigError(
            f"{', '.join(affected)} took part in no round of the run in '{run.path}', so its model has seen nothing "
            "of it: there is nothing to forget."
        )
    first = 1 if why else min(seen)
    start = max((round for round in {0, *run.rounds} if round < first), default=0)
    return Forgetting(run, affected, keys, count, first, start, why, files, missing)


def _check(run: Run, clients: Sequence[str], rows: Path | None) -> None:
    """Refuse runs that cannot forget: raise ConfigError."""
    config, where = run.config, f"the run in '{run.path}'"
    if config.runtime == "nvflare":
        raise ConfigError(
            f"The rows of {where} are at its sites, so no round can be repeated here: submit it anew, to forget a site "
            "without its name in --sites, to forget rows after the site has deleted them from its data."
        )
    plan = compose.plan(config)
    if plan.privacy.private:
        raise ConfigError(
            f"{where[0].upper()}{where[1:]} has a budget of differential privacy, and its rounds once more would spend "
            "it once more on everybody else: what it knows of anybody is bounded already, as `weft privacy` says."
        )
    if plan.protection.sum_only:
        raise ConfigError(
            f"{where[0].upper()}{where[1:]} opened masked sums, and the sum of a round once more, without a client, "
            "would show the update of that client as the difference: begin another run without it, with another --seed."
        )
    if not plan.algorithm.shares and not plan.algorithm.pools_data:
        raise ConfigError(
            f"In {where} each client has a model of its own, and no other has learnt from its rows: delete its folder "
            "below 'clients'."
        )
    if any(name in config.forgotten for name in clients):
        raise ConfigError(f"{', '.join(clients)} is forgotten in {where} already: name another client.")
    if not run.rounds:
        raise ConfigError(f"{where[0].upper()}{where[1:]} has no checkpoint, so no state of it can be gone back to.")


def _why_all(config: RunConfig, plan: Plan, by_rows: bool) -> str:
    """Return why every round of a run depends on each client, even where it takes no part; "": it does not."""
    reasons = {
        "the tokenizer was trained on everybody's rows": config.trains_tokenizer,
        "all rows are pooled": plan.algorithm.pools_data,
        "each step counts the rows of all clients": plan.algorithm.stateful_clients
        or kinds.is_outside("fed_alg", config.fed_alg),
        "cohorts are drawn by rows, or by who is busy": not compose.drawn_alike(config),
        "the best round is chosen by everybody's scores": config.best_metric is not None,
        "held-out rows are kept apart from everybody's": config.held_out_overlap == "leave_out",
        "the attack is drawn over all clients": config.attack != "none",
        "a cleaner compares rows with those of everybody": _cleans_across(config),
        "the split deals what is left anew": by_rows and not config.clients,
        "tokens of canaries are those that nobody's rows have": config.canary_tokens > 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _cleans_across(config: RunConfig) -> bool:
    """Whether which rows a client trains on depends on rows of others: a cleaner from outside may look at these."""
    across = "near_duplicates" in config.clean and bool(config.clean_args.get("near_duplicates.across"))
    return across or any(name == "contamination" or kinds.is_outside("clean", name) for name in config.clean)


def _rounds_with(run: Run, clients: Sequence[str]) -> list[int]:
    """Return the rounds, counted from 1, for which one of the clients was asked."""
    found = []
    for line in read(run.directory.metrics_file):
        if line.get("event") in ("round", "repeated"):
            asked = {*line["clients"], *line["failures"], *line.get("over_selected", ())}
            if run.config.fed_alg == "central" or asked & set(clients):
                found.append(int(line["round"]))
    return found


def prepare(forgetting: Forgetting) -> None:
    """Write the new run as far as the old one may be kept: `weft sft --resume` would go on with it.

    Raises:
        ConfigError: there is something at its place.
    """
    old, new = forgetting.run.directory, RunDir(str(forgetting.keys["output_dir"]))
    if new.path.exists() and any(new.path.iterdir()):
        raise ConfigError(f"'{new.path}' is there already: give another --output_dir.")
    new.path.mkdir(parents=True, exist_ok=True)
    origin: JsonObject = {
        "run": str(old.path.absolute().name),
        "head": head_of(old.chain_file),
        "rounds_kept": forgetting.start,
        "method": forgetting.method,
        # Who is forgotten stands in config.yaml where the new run needs to know it; of rows, only their number.
        "rows": forgetting.rows,
    }
    origin |= {"scores": forgetting.scores} if forgetting.scores else {}
    write_atomic(new.path / FORGOTTEN, (json.dumps(origin, indent=1) + "\n").encode())
    text = yaml.safe_dump(forgetting.keys, sort_keys=False, allow_unicode=True)
    if forgetting.start:
        _keep(forgetting, old, new)
    write_atomic(new.config_file, (HEADER + text).encode())


def _keep(forgetting: Forgetting, old: RunDir, new: RunDir) -> None:
    """Copy the state before the first round that depends on what is forgotten, and the logs up to it."""
    start, gone = forgetting.start, set(forgetting.keys.get("forgotten") or ())
    for name in ("tokenizer", "template.jinja"):
        source = old.path / name
        if source.is_dir():
            shutil.copytree(source, new.path / name)
        elif source.exists():
            shutil.copy2(source, new.path / name)
    sizes = {}
    for log in ("metrics.jsonl", "timing.jsonl"):
        # Evaluations of before are left out: they hold scores on rows that are forgotten.
        kept = [line for line in read(old.path / log) if line["round"] <= start and line.get("event") != "eval"]
        content = "".join(to_line(line) + "\n" for line in kept).encode()
        write_atomic(new.path / log, content)
        sizes[log.partition(".")[0]] = len(content)
    # With the secrets that the rounds before were drawn from: what they saw is drawn again, such as canaries.
    for name in (SECRET, COMMON):
        if (old.path / name).exists():
            shutil.copy2(old.path / name, new.path / name)
    left_out = {new.client_dir(name).name for name in gone}
    for folder in old.clients.glob("*"):
        for file in (checkpoint.memory_file(folder, start), folder / SECRET):
            if file is not None and file.exists() and folder.name not in left_out:
                (new.clients / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, new.clients / folder.name / file.name)
    extra = checkpoint.extra_of(old, start)
    tally = extra["tally"] | {"evaluation": None, "best": None}
    new_extra = {"chain": 0, "head": "", "tally": tally, **sizes}
    state = checkpoint.at(old, start) if forgetting.state is None else forgetting.state
    checkpoint.save(new, state, new_extra, keep_every=int(forgetting.keys["save_model_freq"] or 0))
    labels = [f"of the client '{name}'" for name in forgetting.clients]
    made = {name: value for name, value in read_fingerprints(old).items() if not any(map(name.endswith, labels))}
    write_atomic(new.fingerprints_file, (json.dumps({"made_from": made, "changes": []}, indent=1) + "\n").encode())
