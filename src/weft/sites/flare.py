"""A run of sites as an NVIDIA FLARE job: the classes that its processes load, at the server and at the sites.

All use of FLARE's Collab API is in this file. The job contains two class names and the run's keys, no code: sites run
the Weft that is installed there (`weft.sites.kit_settings` lets them load nothing else).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from nvflare.collab import collab
from nvflare.collab.api.exceptions import RunAborted
from nvflare.fuel.utils import buffer_list

from weft.core.files import write_atomic
from weft.core.texts import printable
from weft.errors import ConfigError, RunError, RunInUse, WeftError
from weft.json_types import JsonObject
from weft.runtimes.mailbox import WAIT, Mailbox, Packed, PollResult, TransportBroken
from weft.sites import endpoints
from weft.sites.identity import AUTHORITY
from weft.sites.job import STOP, check_name
from weft.sites.model_process import ModelProcess
from weft.sites.part_files import FOLDER

log = logging.getLogger("weft.site")
SERVER = "server"
"""The server's name in a job."""
SITE, KIT = "WEFT_SITE", "WEFT_KIT"
"""Environment variables: where site.yaml and the kit lie."""
MARGIN, SLOWEST = 10.0, 5e6
"""Most seconds that a call may take beyond the time for which a site holds its answer back, and the bytes a second of a
slow transport."""
PATIENCE = 90.0
"""Seconds to wait for a run that another process still uses."""
LAST = 200
"""Most rounds and evaluations in a status."""
LINGER = 3.0
"""Seconds that a failed job stays, so that its watcher reads the reason from the status."""


def _short_text(buffers: buffer_list.ConsumableBufferList) -> str:
    """Return a short text for a list of buffers, which is the content of a large message.

    FLARE 2.9 formats each incoming message for a debug log that is off: four characters a byte, which for 100 MB takes
    longer than TLS does.
    """
    return f"<{len(buffers)} buffers>"


buffer_list.ConsumableBufferList.__repr__ = _short_text


class SiteProxy(Protocol):
    """FLARE's proxy of a site: called with a timeout in seconds, it returns an object with the site's methods."""

    def __call__(self, *, timeout: float) -> SiteJob:
        """Return the methods of the site, for one call."""
        ...


class NotTheServer(WeftError):
    """A call does not come from the server of the job."""


class CollabTransport:
    """Carries bytes by Collab calls; the sender of an answer is the site that was called, as its certificate says."""

    def __init__(self, proxies: dict[str, SiteProxy]) -> None:
        self._proxies = proxies
        self._sizes: dict[str, int] = {}

    def ask(self, client: str, ticket: str, raw: Packed | None, wait: float) -> PollResult:
        """Call a site; see `weft.runtimes.remote.Transport`."""
        # An answer is about as large as the message was.
        size = self._sizes[client] = len(raw) if raw is not None else self._sizes.get(client, 0)
        try:
            patience = wait + min(MARGIN, 4 * wait) + size / SLOWEST
            response: object = self._proxies[client](timeout=patience).ask(ticket, raw, wait)
        except RunAborted:
            raise RunError("the job was ended") from None
        except Exception as error:
            raise TransportBroken(type(error).__name__) from None
        # A site may send anything that FLARE decodes, such as arrays, which have no truth value.
        if not isinstance(response, dict) or not isinstance(response.get("progress"), int):
            raise TransportBroken("an answer of no known form")
        if response.get("unknown") is True:
            raise KeyError(ticket)
        answer = response.get("answer")
        progress, accepted = response["progress"], response.get("taken") is not False
        return PollResult(progress, answer if isinstance(answer, (bytes, memoryview)) else None, accepted)


class ServerJob:
    """The server's side of a job."""

    def __init__(self, run: JsonObject, name: str) -> None:
        self.run, self.name = run, name
        self.status: JsonObject = {"name": name, "state": "begins", "rounds": [], "num_rounds": run.get("num_rounds")}
        self._writing = threading.Lock()  # an administrator's stop comes from another thread
        self._file: Path | None = None
        """File with the status, for administrators and the supervisor; it outlives the job."""

    @collab.main  # type: ignore[untyped-decorator]
    def main(self) -> str:
        """Run all rounds; the output goes to the run's log."""
        from weft.sites.server import serve

        check_name(self.name)  # a job need not have been submitted by `weft submit`
        folder = Path(os.environ[KIT]) / "runs" / self.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        proxies = {proxy.name: proxy for proxy in collab.clients}
        engine = collab.fl_ctx.get_engine()
        engine.register_app_command(STOP, self._mark_stopped)
        self._file = folder.parent / f"{self.name}.json"
        self._update_status({"state": "begins", "job": str(collab.fl_ctx.get_job_id())})
        keys = self.run | {"output_dir": str(folder)}
        with (
            open(folder.parent / f"{self.name}.log", "a", encoding="utf-8", buffering=1) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                self._update_status({"state": "asks the sites"})
                self._serve(serve, keys, CollabTransport(proxies), list(proxies))
            except Exception as error:
                expected = isinstance(error, WeftError)
                if not expected:
                    traceback.print_exc()
                reason = str(error) if expected else f"{type(error).__name__}; its log at the server says more"
                print(f"weft: {reason}", file=sys.stderr)
                if not self.status.get("final"):
                    self._update_status({"state": "failed", "error": reason, "final": isinstance(error, ConfigError)})
                    time.sleep(LINGER)
                raise
        self._update_status({"state": "done"})
        return "done"

    def _serve(
        self, serve: Callable[..., object], keys: JsonObject, transport: CollabTransport, sites: list[str]
    ) -> None:
        """Run; wait a while for the lock of the run, which an earlier process of a killed server may still hold."""
        until, kit = time.monotonic() + PATIENCE, Path(os.environ[KIT])
        files = {"parts": kit / FOLDER, "endpoints": kit / endpoints.FILE, "authority": kit / AUTHORITY}
        while True:
            try:
                serve(keys, transport, sites, version("weft"), resume=True, hear=self._update_status, **files)
                return
            except RunInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)

    def _mark_stopped(self, *_: object, **__: object) -> JsonObject:
        """Record that an administrator ends the run, so that it is not resubmitted."""
        self._update_status({"state": "stopped", "final": True})
        return {}

    def _update_status(self, entry: JsonObject) -> None:
        """Add a round or an evaluation to the status, or other fields, and write it."""
        with self._writing:
            rounds = self.status["rounds"]
            if "round" in entry or "evaluation" in entry:
                rounds.append(entry)
                del rounds[:-LAST]
                going = "trains" if self.run.get("num_rounds", 1) else "evaluates"
                self.status["state"] = "stopped" if self.status.get("final") else going
            else:
                self.status |= entry
            if self._file is not None:
                write_atomic(self._file, json.dumps(self.status).encode())


class SiteJob:
    """A site's side of a job: it passes messages to one long-lived process, which holds the model between rounds."""

    def __init__(self) -> None:
        self._child: ModelProcess | None = None
        self._mailbox: Mailbox | None = None

    @collab.init  # type: ignore[untyped-decorator]
    def begin(self) -> None:
        """Prepare the model process, which starts with the first message."""
        folder = Path(os.environ[KIT]) / "weft"
        self._child = ModelProcess(Path(os.environ[SITE]), folder, str(collab.site_name))
        self._mailbox = Mailbox(self._child.work, self._child.progress)

    @collab.final  # type: ignore[untyped-decorator]
    def end(self) -> None:
        """End the model process with the job."""
        if self._child is not None:
            self._child.close()

    @collab.publish  # type: ignore[untyped-decorator]
    def ask(self, ticket: str, raw: Packed | None, wait: float) -> JsonObject:
        """Accept a message of the server, or report the progress of the current one.

        FLARE lets every party of a job call this. The caller is the message's origin, which FLARE's server checks
        against the sender's certificate before it forwards the message (a test forges it).

        Raises:
            NotTheServer: another site calls.
        """
        assert self._mailbox is not None
        if collab.caller != SERVER:
            log.warning("a call of '%s' was refused: only the server may ask this site", printable(str(collab.caller)))
            raise NotTheServer("only the server may ask this site")
        wait = min(max(0.0, float(wait)), WAIT)  # in this order: NaN becomes 0
        try:
            result = self._mailbox.ask(ticket, raw, wait)
        except KeyError:
            return {"progress": 0, "unknown": True}
        return {"progress": result.progress, "answer": result.answer, "taken": result.accepted}
