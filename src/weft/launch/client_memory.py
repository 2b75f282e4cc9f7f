"""Clients' memories in the directory of a run."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.promises import FILE as PROMISES
from weft.core.promises import Promises
from weft.core.secret import FILE, Secret
from weft.core.types import Streams
from weft.runs import checkpoint
from weft.runs.layout import RunDir


@dataclass(frozen=True)
class DiskMemory:
    """Client memories in the run directory; what an uncommitted round wrote is not seen after a resume."""

    run: RunDir
    at_site: bool = False
    """The checkpoints are elsewhere, at the server."""

    def load(self, client: str, round: int) -> Streams:
        """Return what the client remembers after `round` rounds."""
        return checkpoint.load_client_memory(self.run, client, round)

    def save(self, client: str, round: int, streams: Streams) -> None:
        """Keep what the client remembers after `round` rounds."""
        checkpoint.save_client_memory(self.run, client, round, streams, at_site=self.at_site)

    def drop(self, client: str, round: int) -> None:
        """Forget what the client kept after `round` rounds."""
        checkpoint.drop_client_memory(self.run, client, round)

    def secret(self, client: str) -> Secret:
        """Return the client's secret, which is kept beside its memory."""
        return Secret.load_or_create(self.run.client_dir(client) / FILE)

    def promises(self, client: str) -> Promises:
        """Return what the client has bound itself to, which is kept beside its secret."""
        return Promises(self.run.client_dir(client) / PROMISES)
