"""The checkpoints of a run under way: when they are written, and in which thread."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from weft.config import RunConfig
from weft.core.types import ServerState
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.runs import checkpoint
from weft.runs.chain import ChainLog
from weft.runs.layout import RunDir
from weft.runs.metrics import MetricsLog


class Logs(NamedTuple):
    """What a run writes line by line."""

    metrics: MetricsLog
    timing: MetricsLog
    chain: ChainLog

    def truncate(self, metrics: int, timing: int, chain: int) -> None:
        """Forget what was written after so many bytes of each; raises as they do."""
        for log, offset in zip(self, (metrics, timing, chain), strict=True):
            log.truncate(offset)


class Position(NamedTuple):
    """How far a run is: a state, and what belongs to it of the logs (their lengths in bytes), sums and the record."""

    state: ServerState
    metrics: int
    timing: int
    tally: JsonObject
    chain: int = 0
    head: str = ""
    """The hash of the record's newest line."""


class Commits:
    """Writes checkpoints, one at a time, in a thread where no round has to wait for them.

    No round changes a state in place, so that a state can be written while the next rounds are computed. When this
    context is left, nothing is being written.
    """

    committed: Position | None = None
    """Of the newest checkpoint, or the start."""

    def __init__(self, config: RunConfig, run: RunDir, logs: Logs, plan: Plan) -> None:
        """Begin without a write.

        Args:
            config: says when a checkpoint is due.
            run: where it is written.
            logs: whose lines are durable before a checkpoint counts them.
            plan: tells which rounds wait for their checkpoint. A site cannot see the server's checkpoints and keeps
                its memory of the last rounds alone. Clients open one sum of a round, so a round whose sum is open must
                not be begun again: its checkpoint is written at once.
        """
        self.config, self.run, self.logs = config, run, logs
        self.seconds = 0.0 if plan.protection.sum_only else config.checkpoint_seconds
        self.waits = (plan.clients_remember and config.runtime == "nvflare") or not self.seconds
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._write: Future[None] | None = None
        self._begun = time.monotonic()

    def offer(self, position: Position, *, now: bool = False) -> None:
        """Commit a position if a checkpoint is due; raise the error of the one before.

        A checkpoint by time is not due while another one is being written; one by `save_model_freq` waits for it, and
        one that is asked for by `now`, too.
        """
        freq = self.config.save_model_freq
        is_free = self._write is None or self._write.done()
        is_due = is_free and time.monotonic() - self._begun >= self.seconds
        if not (now or is_due) and (not freq or position.state.round % freq):
            return
        self._wait()
        if self.waits:
            self.commit(position)
        else:
            for log in self.logs:
                log.flush()
            self._write = self._pool.submit(self._sync_and_save, position)
        self._begun = time.monotonic()

    def finish(self, position: Position) -> None:
        """Wait for the checkpoint that is being written, and commit a position if it is a later one's."""
        self._wait()
        # Every round, a repeated one too, adds a line.
        if self.committed is None or position.metrics > self.committed.metrics:
            self.commit(position)

    def commit(self, position: Position) -> None:
        """Write a checkpoint; what is logged of the round after it, where that was interrupted, is forgotten."""
        self.logs.truncate(position.metrics, position.timing, position.chain)
        self._save(position)

    def _sync_and_save(self, position: Position) -> None:
        for log in self.logs:
            log.sync()
        self._save(position)

    def _save(self, position: Position) -> None:
        extra = {"metrics": position.metrics, "timing": position.timing, "tally": position.tally}
        extra |= {"chain": position.chain, "head": position.head}
        freq, most = self.config.save_model_freq, self.config.save_total_limit
        best = position.tally.get("best") or {}
        # The best one before too: a run that goes on from an older checkpoint, after a damage, still has it.
        kept = [round for name in ("round", "former") if (round := best.get(name)) is not None]
        checkpoint.save(self.run, position.state, extra, keep_every=freq, keep_most=most, keep_also=kept)
        self.committed = position

    def _wait(self) -> None:
        """Wait until nothing is being written; raise the error of the last write, each time."""
        if self._write is not None:
            self._write.result()

    def __enter__(self) -> Commits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
