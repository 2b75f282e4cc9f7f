"""The budget of a site over all runs: what runs may still spend of it, and the ledger of what they did.

A run counts with the whole epsilon that it may spend, from its first training on: the site cannot see what the server
releases of it. Epsilons and deltas of several runs add up, whatever their units and samplings are.
"""

from __future__ import annotations

import fcntl
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.config import RunConfig
from weft.core.tensors import digest
from weft.core.types import Task
from weft.errors import ConfigError
from weft.federation.client_host import ClientHost
from weft.json_types import JsonObject
from weft.keys.privacy import is_private
from weft.launch.account import entry_of, steps_of
from weft.launch.budgets import deciding_units, guarantee_of
from weft.launch.client_memory import DiskMemory
from weft.privacy.accounting import composed
from weft.privacy.guarantee import Guarantee
from weft.privacy.ledger import Ledger
from weft.sites.policy import AcceptRules, SiteLedger


def refusal(accept: AcceptRules, ledger: SiteLedger | None, run: RunConfig) -> str | None:
    """Return the reason to refuse a run for what it may spend, in one sentence; None: there is none.

    Args:
        accept: the rules of the policy.
        ledger: the site's; None: it keeps none.
        run: the run.
    """
    if accept.max_epsilon is None and ledger is None:
        return None
    least = accept.max_epsilon if ledger is None else ledger.max_epsilon
    if not is_private(run):
        return f"the run has no differential privacy, and this site asks for an epsilon of {least:g} at most"
    if run.target_epsilon is None:
        return f"the run has no target_epsilon, and this site asks for one of {least:g} at most"
    if accept.max_epsilon is not None and run.target_epsilon > accept.max_epsilon:
        return (
            f"the run may spend an epsilon of {run.target_epsilon:g}, and this site accepts {accept.max_epsilon:g} at "
            "most"
        )
    if run.target_delta > accept.max_delta:
        return f"the run has a delta of {run.target_delta:g}, and this site accepts {accept.max_delta:g} at most"
    return None


RELEASES = "privacy.jsonl"
"""The ledger of one run at a site, in the run's folder there."""
ROUNDING = 1 + 1e-9
"""What a sum of decimal numbers may exceed a limit by: ten times 0.1 is 1."""
log = logging.getLogger("weft.site")


class SiteBudget:
    """What one run takes of a site's ledger."""

    def __init__(self, rules: SiteLedger, run: RunConfig, name: str, birth: str) -> None:
        """Look at a run.

        Args:
            rules: the ledger's file and limit.
            run: the run, which has a target_epsilon.
            name, birth: identify it.
        """
        assert run.target_epsilon is not None  # `refusal` asks for it
        self.rules, self.file = rules, Path(rules.file)
        self.entry: JsonObject = {
            "run": name,
            "birth": birth,
            "unit": run.privacy_unit,
            "epsilon": run.target_epsilon,
            "delta": run.target_delta,
        }

    @classmethod
    def of(cls, rules: SiteLedger | None, run: RunConfig, name: str, birth: str) -> SiteBudget | None:
        """Return what a run takes, where the site has a ledger; arguments as of the class."""
        return None if rules is None else cls(rules, run, name, birth)

    def refusal(self) -> str | None:
        """Return the reason to refuse the run, in one sentence; None: the ledger allows it."""
        return self._why_not(take=False)

    def take(self, secret: str = "") -> str | None:
        """Write down that the run spends its epsilon, once for a run; on disk when this returns. Returns as `refusal`.

        Args:
            secret: names the secret of the noise that the site adds; empty: it adds none. Under another secret the
                same run has other noise, and spends its epsilon again.

        Raises:
            OSError: it cannot be written.
        """
        if secret:
            self.entry = self.entry | {"secret": secret}
        return self._why_not(take=True)

    def _why_not(self, *, take: bool) -> str | None:
        limits = {"epsilon": self.rules.max_epsilon, "delta": self.rules.max_delta}
        try:
            with self._locked() as ledger:
                for (name, limit), spent in zip(limits.items(), spent_of(ledger, without=self.entry), strict=True):
                    if math.fsum([spent, more := float(self.entry[name])]) > limit * ROUNDING:
                        return (
                            f"the run may spend {'an' if name == 'epsilon' else 'a'} {name} of {more:g}, and of the "
                            f"{limit:g} that this site allows for all runs {max(0.0, limit - spent):g} is left"
                        )
                if take and self.entry not in ledger.entries:
                    ledger.append(self.entry)
        except ConfigError as error:
            log.error("%s", error)
            return "its ledger of privacy cannot be read, or does not fit its hashes; its own log says more"
        return None

    @contextmanager
    def _locked(self) -> Iterator[Ledger]:
        """Open the ledger while no other process writes to it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file.with_name(f"{self.file.name}.lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Ledger(self.file)


class Releases:
    """How often a site lets a run have something of its rows: as often as its budget allows, whoever asks.

    The site's own noise hides each release. A server that asks for a round again, or for rounds that the run has not,
    would learn more than the run may spend, so the site counts what it answers.
    """

    def __init__(self, file: Path, guarantee: Guarantee, birth: str, memory: DiskMemory, place: int) -> None:
        """Look at what the run had so far.

        Args:
            file: the ledger of this run.
            guarantee: of the site's own noise, by the keys of this handshake.
            birth: identifies the run among runs of the same name.
            memory: of the site, with the digest of what it trains on, and how: an answer from other rows, by other
                keys or with another memory is another one, even to the same task.
            place: of the site among the clients.
        """
        self.ledger, self.guarantee, self.birth, self.memory = Ledger(file), guarantee, birth, memory
        self.place = place

    @classmethod
    def of(cls, file: Path, host: ClientHost, config: RunConfig, birth: str, memory: DiskMemory) -> Releases | None:
        """Return what counts a run's releases; None where the site adds no noise, or the run has no target."""
        privacy = host.plan.privacy
        if config.target_epsilon is None or not (privacy.in_steps or privacy.noise_in_shares):
            return None
        clients = host.train_clients
        guarantee = guarantee_of(config, privacy, deciding_units(config, clients))
        return None if guarantee is None else cls(file, guarantee, birth, memory, clients.first)

    def take(self, task: Task) -> str | None:
        """Write down an answer to a task before it is made; the same task costs once.

        Returns:
            The reason to refuse it, in one sentence; None: the budget allows it.
        """
        entry: JsonObject = {"birth": self.birth, "round": task.round, "attempt": task.attempt}
        # Under another secret, or with the layers of another place among the clients, the same task has other noise.
        entry |= {"secret": self.memory.secret_name(task.client), "place": self.place}
        entry |= {"rows": self.memory.rows, "memory": digest(self.memory.load(task.client, task.round))}
        entry |= {"task": digest({"params": task.params, **task.extra}), **entry_of(self.guarantee)}
        so_far = [one for one in self.ledger.entries if one["birth"] == self.birth]
        if entry in so_far:
            return None
        # An earlier handshake may have asked for other noise, or for more steps: each answer counts as what it was.
        spent = composed([*map(steps_of, so_far), self.guarantee.release], self.guarantee.delta)
        if self.guarantee.target is not None and spent > self.guarantee.target:
            return f"the run was answered {len(so_far)} times, and its target_epsilon allows no more"
        self.ledger.append(entry)
        return None


def take(budget: SiteBudget | None, releases: Releases | None, task: Task) -> str | None:
    """Write down what an answer to a task spends of a site's and of a run's budget; returns and raises as both do."""
    secret = releases.memory.secret_name(task.client) if releases is not None else ""
    why = budget.take(secret) if budget is not None else None
    return why or (releases.take(task) if releases is not None else None)


def spent_of(ledger: Ledger, without: JsonObject | None = None) -> tuple[float, float]:
    """Return the epsilon and the delta of all runs in a ledger; of a run that asked for more later, the largest.

    What a run spent of one unit says nothing of another, so that its units are added up too, and so is what it spent
    under a secret that the site has no longer.

    Args:
        ledger: of a site.
        without: an entry whose run is left out; without a secret, whatever its secrets were.
    """
    runs: dict[tuple[str, ...], tuple[float, float]] = {}
    for entry in ledger.entries:
        epsilon, delta = runs.get(_run_of(entry), (0.0, 0.0))
        runs[_run_of(entry)] = max(epsilon, float(entry["epsilon"])), max(delta, float(entry["delta"]))
    if without is not None:
        mine = _run_of(without)
        for run in [run for run in runs if run == mine or (not mine[-1] and run[:-1] == mine[:-1])]:
            del runs[run]
    return math.fsum(epsilon for epsilon, _ in runs.values()), math.fsum(delta for _, delta in runs.values())


def _run_of(entry: JsonObject) -> tuple[str, ...]:
    return str(entry["run"]), str(entry["birth"]), str(entry["unit"]), str(entry.get("secret", ""))
