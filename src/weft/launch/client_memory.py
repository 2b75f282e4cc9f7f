"""Clients' memories in the directory of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from weft.core.promises import FILE as PROMISES
from weft.core.promises import Promises
from weft.core.secret import BYTES, COMMON_FILE, FILE, Common, Secret, read_or_create
from weft.core.types import Streams
from weft.errors import ClientFailed
from weft.federation.clients import InMemory
from weft.runs import checkpoint
from weft.runs.layout import RunDir


@dataclass(frozen=True)
class DiskMemory:
    """Client memories in the run directory; what an uncommitted round wrote is not seen after a resume."""

    run: RunDir
    at_site: bool = False
    """The checkpoints are elsewhere, at the server."""
    rows: str = ""
    """A digest of the client's rows: from others, other random numbers follow. Else a task that comes once more would
    get the same noise on another sum, and the difference of both would tell which rows changed."""

    kit_key: Common | None = None
    """At a site: what its kit and those of the other sites have in common; None: nothing."""
    former: tuple[RunDir, int] | None = None
    """The run whose models of clients' own are evaluated, and after how many rounds; None: the run itself has what
    clients remember."""

    def load(self, client: str, round: int) -> Streams:
        """Return what the client remembers after `round` rounds, of a former run after those that are evaluated.

        Raises:
            ClientFailed: there is nothing of the former run.
        """
        if self.former is None:
            return checkpoint.load_client_memory(self.run, client, round)
        run, rounds = self.former
        if not (kept := checkpoint.load_client_memory(run, client, rounds)):
            raise ClientFailed(f"has no model of its own of the run '{run.path.name}'")
        return kept

    def save(self, client: str, round: int, streams: Streams) -> None:
        """Keep what the client remembers after `round` rounds."""
        checkpoint.save_client_memory(self.run, client, round, streams, at_site=self.at_site)

    def drop(self, client: str, round: int) -> None:
        """Forget what the client kept after `round` rounds."""
        checkpoint.drop_client_memory(self.run, client, round)

    def secret(self, client: str) -> Secret:
        """Return the client's secret, which is kept beside its memory."""
        secret = Secret.load_or_create(self.run.client_dir(client) / FILE)
        return Secret(secret.bytes(BYTES, "rows", self.rows)) if self.rows else secret

    def secret_name(self, client: str) -> str:
        """Return what names the client's secret, whatever its rows are, and tells nothing of it."""
        return Secret.load_or_create(self.run.client_dir(client) / FILE).bytes(16, "name").hex()

    def promises(self, client: str) -> Promises:
        """Return what the client has bound itself to, which is kept beside its secret."""
        return Promises(self.run.client_dir(client) / PROMISES)

    def common(self, make: Callable[[], bytes]) -> Common:
        """Return what all clients have in common: of simulated ones, it lies beside their memories."""
        if not self.at_site:
            return Common(read_or_create(self.run.path / COMMON_FILE, make))
        if self.kit_key is None:
            raise ClientFailed("has no key in its kit that all sites have in common")
        return self.kit_key


@dataclass(frozen=True)
class MemoryAside(DiskMemory):
    """What clients of a run remember, with secrets and promises of its own: what is asked of them leaves no trace."""

    aside: InMemory = field(default_factory=InMemory)

    def secret(self, client: str) -> Secret:
        """Return a secret of the client that is not kept."""
        return self.aside.secret(client)

    def promises(self, client: str) -> Promises:
        """Return promises of the client that are not kept."""
        return self.aside.promises(client)

    def common(self, make: Callable[[], bytes]) -> Common:
        """Return what all clients have in common, which is not kept."""
        return self.aside.common(make)
