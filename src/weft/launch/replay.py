"""Rounds of a run, repeated from their checkpoints, and compared bit by bit with the record.

Whatever a repeated round writes goes to a temporary directory; the run is only read.
"""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from weft.core import tensors
from weft.core.files import write_atomic
from weft.core.secret import FILE as SECRET
from weft.core.types import ServerState, Tensors
from weft.core.witness import state_digest
from weft.errors import ConfigError
from weft.federation.loop import RoundDone, Rounds, run_rounds
from weft.federation.state import begin
from weft.json_types import JsonObject
from weft.launch import compose
from weft.launch.canaries import why_lost
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory
from weft.launch.malicious import attacked, malicious_of
from weft.launch.population import Population
from weft.launch.provenance import base_of, data_of
from weft.launch.recorder import environment
from weft.launch.run import Run
from weft.launch.tokenizer import with_tokenizer
from weft.runs import checkpoint, fingerprints
from weft.runs.chain import ROUND, beginning
from weft.runs.layout import RunDir
from weft.runtimes.inprocess import InProcess

HERE = {"runtime": "inprocess", "parallel": "none"}
"""Keys of what is repeated in this process."""
ROUNDING = 0.05
"""Largest distance, as a share of the length of a round's step, that another machine may make."""


class Replayed(NamedTuple):
    """A round that was repeated."""

    round: int
    """Counted from 1."""
    equal: bool
    """All bits of the state are those of the record."""
    clients: tuple[str, ...] = ()
    """Clients whose replies differ from the record."""
    distance: float | None = None
    """Where bits differ: length of the difference of the parameters, as a share of that of the round's step; None: the
    state after the round is not on disk."""


class Replays(NamedTuple):
    """Repeated rounds, and how this machine differs from the run's."""

    rounds: list[Replayed]
    elsewhere: JsonObject
    """What of versions and machine differs, as {name: [then, now]}."""

    @property
    def passed(self) -> bool:
        """Whether all bits are equal, or where the machine differs, all but the last ones: what cannot be compared
        does not pass."""
        near = [one.distance is not None and one.distance <= ROUNDING for one in self.rounds if not one.equal]
        return all(near) if self.elsewhere else not near


def startable(run: RunDir, entries: list[JsonObject]) -> list[int]:
    """Return the rounds, counted from 1, that can be repeated: the state before each is on disk, or is the base.

    Those before a key changed are left out: the run's keys are now others.
    """
    starts = {0, *run.rounds}
    changes = [number for number, entry in enumerate(entries) if "config" in entry]
    rounds = [entry["round"] for entry in entries[max(changes, default=0) :] if entry.get("event") == ROUND]
    return [round for round in rounds if round - 1 in starts]


def replay(opened: Run, entries: list[JsonObject], count: int, note: Callable[[str], None]) -> Replays:
    """Repeat random rounds of a run.

    Args:
        opened: the run.
        entries: the lines of its record.
        count: rounds to repeat, at most.
        note: called with a sentence where fewer can be.

    Raises:
        ConfigError: its rows are at sites, its base or rows changed, or no round can be repeated.
    """
    if opened.config.runtime == "nvflare":
        raise ConfigError(
            f"The rows of the run in '{opened.path}' are at its sites, so no round can be repeated here: leave out "
            "--replay; signatures and hashes are checked all the same."
        )
    run = opened.directory
    possible = startable(run, entries)
    if not possible:
        raise ConfigError(
            f"No round of the run in '{run.path}' can be repeated, because no state before one is on disk: runs keep "
            "the checkpoints that --save_model_freq names."
        )
    if len(possible) < min(count, done := sum(entry.get("event") == ROUND for entry in entries)):
        note(
            f"{len(possible)} of {done} rounds can be repeated: the states before the others are not kept, which "
            "--save_model_freq 1 does."
        )
    with bench(opened) as federation:
        began, now = beginning(entries), environment(federation.device)
        elsewhere = {
            name: [began[part][name], value]
            for part, values in now.items()
            for name, value in values.items()
            if name in began.get(part, {}) and began[part][name] != value
        }
        chosen = _chosen(possible, set(run.rounds) if elsewhere else set(), count)
        return Replays([_replayed(federation, run, entries, round) for round in chosen], elsewhere)


def _chosen(possible: list[int], first: set[int], count: int) -> list[int]:
    """Return random rounds in their order, at most `count`, those of `first` before others."""
    drawn = random.SystemRandom().sample(possible, len(possible))
    return sorted(sorted(drawn, key=lambda round: round not in first)[:count])


class Bench:
    """The parts of a run, put together once more, to repeat rounds with."""

    def __init__(self, opened: Run, scratch: RunDir) -> None:
        """Load model and rows; raises as the run itself does, and ConfigError where these changed."""
        config, run = opened.config.model_copy(update=HERE), opened.directory
        fingerprints.check(run, base_of(config) | data_of(config), accept=opened.accept_changed)
        config = with_tokenizer(config, run.path / "tokenizer")
        if (run.path / SECRET).exists():
            shutil.copy2(run.path / SECRET, scratch.path / SECRET)
        self.config, self.run, self.scratch = config, run, scratch
        self._lay_secrets(opened.client_names)
        builder = ClientBuilder(config)
        self.population: Population = builder.read(DiskMemory(scratch))
        reference = scratch.reference_file
        if run.reference_file.exists():
            shutil.copy2(run.reference_file, reference)
        self.host, self.values = builder.host(reference=reference, conditions=compose.conditions(config))
        self.plan, self.device = self.host.plan, self.host.model.device

    def _lay_secrets(self, names: Sequence[str]) -> None:
        """Copy the secrets of clients, from which canaries among the rows are drawn again.

        Raises:
            ConfigError: they are gone, so that the rows would be others.
        """
        if why := why_lost(self.config, names, self.run):
            raise ConfigError(why)
        for file in self.run.clients.glob(f"*/{SECRET}"):
            copy = self.scratch.clients / file.parent.name
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy / SECRET)

    def start(self, round: int) -> ServerState:
        """Return the state after so many rounds, and put what clients remembered then in its place."""
        shutil.rmtree(self.scratch.clients, ignore_errors=True)
        for folder in self.run.clients.glob("*"):
            copy = self.scratch.clients / folder.name
            copy.mkdir(parents=True)
            kept = [path for path in folder.glob("memory_*.safetensors") if _round_of(path) <= round]
            # Promises stay behind: what clients have bound themselves to is of the run, and this is none.
            for path in [*sorted(kept, key=_round_of)[-1:], folder / SECRET]:
                if path.exists():
                    shutil.copy2(path, copy / path.name)
        if not round:
            return begin(self.plan, dict(self.values), self.host.model.fixed)
        return checkpoint.at(self.run, round)

    def rounds(self, state: ServerState) -> Iterator[RoundDone]:
        """Yield the rounds after a state, without evaluations."""
        config, population = self.config, self.population
        names = population.trained.names
        schedule = Rounds(
            config.num_rounds,
            compose.selection(config, population, self.scratch.secret),
            config.eval_every,
            config.max_attempts,
            self.host.conditions,
            population.trained.sizes(),
            config.max_bad_updates,
            self.scratch.secret,
            config.product_error,
            self.device,
            population.left_out,
        )
        runtime = attacked(self.plan, InProcess(self.host), config.seed, malicious_of(config, population.names))
        plan = replace(self.plan, reports=False)
        return run_rounds(plan, state, runtime, schedule, clients=names, eval_clients=())


@contextmanager
def bench(opened: Run) -> Iterator[Bench]:
    """Put the parts of a run together in a temporary directory, which is deleted in the end."""
    with tempfile.TemporaryDirectory(prefix="weft-replay-") as folder:
        scratch = RunDir(folder)
        write_atomic(scratch.config_file, opened.directory.config_file.read_bytes())
        yield Bench(opened, scratch)


def _replayed(federation: Bench, run: RunDir, entries: list[JsonObject], round: int) -> Replayed:
    """Repeat a round, counted from 1, and compare."""
    recorded = next(entry for entry in entries if entry.get("event") == ROUND and entry["round"] == round)
    start = federation.start(round - 1)
    result = next(done for done in federation.rounds(start) if not done.record.repeated)
    if state_digest(result.state) == recorded["state"]:
        return Replayed(round, True)
    received = recorded.get("received")
    differing = () if received is None else _differing(received, result.record.received)
    distance = None
    if round in run.rounds:
        then = checkpoint.at(run, round)
        distance = _length(then.params, result.state.params) / max(_length(then.params, start.params), 1e-30)
    return Replayed(round, False, differing, distance)


def _differing(recorded: dict[str, list[str]], found: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(sorted(name for name in {**recorded, **found} if recorded.get(name) != found.get(name)))


def _length(left: Tensors, right: Tensors) -> float:
    return math.sqrt(tensors.squared_norm(tensors.subtract(left, {name: right[name].cpu() for name in left})))


def _round_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])
