"""A run of sites as a job of NVIDIA FLARE: what its processes make of it, here and at the sites.

All use of FLARE's Collab API is in this file. The job holds two names of classes and the run's keys, no code: sites run
the Weft that is installed there (`weft.sites.provisioning` lets them load nothing else).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nvflare.collab import collab
from nvflare.collab.api.exceptions import RunAborted
from nvflare.fuel.utils import buffer_list

from weft.core.files import write_atomic
from weft.errors import ConfigError, RunError, RunInUse, WeftError
from weft.runtimes.mailbox import WAIT, Mailbox, PollResult, TransportBroken
from weft.sites.job import STATUS, STOP, check_name
from weft.sites.model_process import ModelProcess
from weft.sites.part_files import FOLDER

log = logging.getLogger("weft.site")
SERVER = "server"
"""The server's name in a job."""
SITE, KIT = "WEFT_SITE", "WEFT_KIT"
"""Environment variables: where site.yaml and the kit lie."""
MARGIN, SLOWEST = 10.0, 5e6
"""Seconds that a call may take beyond what a site holds its answer back for, at most, and bytes a second of a slow
line."""
PATIENCE = 90.0
"""Seconds that a run which is in use is waited for."""
LAST = 200
"""Rounds that a status tells of."""
LINGER = 3.0
"""Seconds that a job stays which failed, so that who watches it hears why."""


def _in_short(buffers: Any) -> str:
    """Return what FLARE is to say of a list of buffers, which is the contents of a large message.

    FLARE 2.9 puts the text of each message that comes into a line for its log, at a level that nobody asks for: four
    characters a byte, which for 100 MB takes longer than the way through TLS.
    """
    return f"<{len(buffers)} buffers>"


buffer_list.ConsumableBufferList.__repr__ = _in_short


class NotTheServer(WeftError):
    """A call that does not come from the server of the job."""


class CollabTransport:
    """Carries bytes by Collab calls; the sender of an answer is the site that was called, as its certificate says."""

    def __init__(self, proxies: dict[str, Any]) -> None:
        self._proxies = proxies
        self._sizes: dict[str, int] = {}

    def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> PollResult:
        """Call a site."""
        # An answer is about as large as what was sent.
        size = self._sizes[client] = len(raw) if raw is not None else self._sizes.get(client, 0)
        try:
            patience = wait + min(MARGIN, 4 * wait) + size / SLOWEST
            said = self._proxies[client](timeout=patience).ask(ticket, raw, wait)
        except RunAborted:
            raise RunError("the job was ended") from None
        except Exception as error:
            raise TransportBroken(type(error).__name__) from None
        # A site may send anything that FLARE reads, such as arrays, which have no truth value.
        if not isinstance(said, dict) or not isinstance(said.get("progress"), int):
            raise TransportBroken("an answer of no known form")
        if said.get("unknown") is True:
            raise KeyError(ticket)
        answer = said.get("answer")
        answer = answer if isinstance(answer, bytes) else None
        return PollResult(said["progress"], answer, said.get("taken") is not False)


class ServerJob:
    """The server's half of a job."""

    def __init__(self, run: dict[str, Any], name: str) -> None:
        self.run, self.name = run, name
        self.status: dict[str, Any] = {"name": name, "state": "begins", "rounds": []}
        self._file: Path | None = None
        """Where the status is kept, for the supervisor and for when the job is over."""

    @collab.main  # type: ignore[untyped-decorator]
    def main(self) -> str:
        """Run all rounds; what is said goes to the run's log."""
        from weft.sites.server import serve

        check_name(self.name)  # whoever may hand in jobs need not have done so by `weft submit`
        folder = Path(os.environ[KIT]) / "runs" / self.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        proxies = {proxy.name: proxy for proxy in collab.clients}
        engine = collab.fl_ctx.get_engine()
        engine.register_app_command(STATUS, lambda *_, **__: json.loads(json.dumps(self.status)))
        engine.register_app_command(STOP, self._stopped)
        self._file = folder.parent / f"{self.name}.json"
        self._tell({"state": "begins", "job": str(collab.fl_ctx.get_job_id())})
        keys = self.run | {"output_dir": str(folder)}
        with (
            open(folder.parent / f"{self.name}.log", "a", encoding="utf-8", buffering=1) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                self._tell({"state": "asks the sites"})
                self._serve(serve, keys, CollabTransport(proxies), list(proxies))
            except Exception as error:
                known = isinstance(error, WeftError)
                if not known:
                    traceback.print_exc()
                said = str(error) if known else f"{type(error).__name__}; its log at the server says more"
                print(f"weft: {said}", file=sys.stderr)
                if not self.status.get("final"):
                    self._tell({"state": "failed", "error": said, "final": isinstance(error, ConfigError)})
                    time.sleep(LINGER)
                raise
        self._tell({"state": "done"})
        return "done"

    def _serve(self, serve: Any, keys: dict[str, Any], line: CollabTransport, sites: list[str]) -> None:
        """Run; wait a while for a process of a server that was killed to let go of the run."""
        until, parts = time.monotonic() + PATIENCE, Path(os.environ[KIT]) / FOLDER
        while True:
            try:
                serve(keys, line, sites, version("weft"), resume=True, parts=parts, hear=self._tell)
                return
            except RunInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)

    def _stopped(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Note that an administrator ends the run, so that nobody begins it again."""
        self._tell({"state": "stopped", "final": True})
        return {}

    def _tell(self, said: dict[str, Any]) -> None:
        rounds = self.status["rounds"]
        if "round" in said or "evaluation" in said:
            rounds.append(said)
            del rounds[:-LAST]
            if len(rounds) > 1:
                return
            self.status["state"] = "stopped" if self.status.get("final") else "trains"
        else:
            self.status |= said
        if self._file is not None:
            write_atomic(self._file, json.dumps(self.status).encode())


class SiteJob:
    """A site's half of a job: it passes messages to one long-lived process, where the model stays between rounds."""

    def __init__(self) -> None:
        self._child: ModelProcess | None = None
        self._mailbox: Mailbox | None = None

    @collab.init  # type: ignore[untyped-decorator]
    def begin(self) -> None:
        """Begin the process with the model when the first message comes."""
        folder = Path(os.environ[KIT]) / "weft"
        self._child = ModelProcess(Path(os.environ[SITE]), folder, str(collab.site_name))
        self._mailbox = Mailbox(self._child.work, self._child.progress)

    @collab.final  # type: ignore[untyped-decorator]
    def end(self) -> None:
        """End that process with the job."""
        if self._child is not None:
            self._child.close()

    @collab.publish  # type: ignore[untyped-decorator]
    def ask(self, ticket: str, raw: bytes | None, wait: float) -> dict[str, Any]:
        """Take a message of the server, or say how far the one before is.

        FLARE lets every party of a job call this. The caller is the message's origin, which FLARE's server binds to
        the sender's certificate before it passes anything on (a test forges it).

        Raises:
            NotTheServer: another site calls.
        """
        assert self._mailbox is not None
        if collab.caller != SERVER:
            log.warning("a call of '%s' was refused: only the server may ask this site", collab.caller)
            raise NotTheServer("only the server may ask this site")
        wait = min(max(0.0, float(wait)), WAIT)  # in this order: NaN becomes 0
        try:
            heard = self._mailbox.ask(ticket, raw, wait)
        except KeyError:
            return {"progress": 0, "unknown": True}
        return {"progress": heard.progress, "answer": heard.answer, "taken": heard.accepted}
