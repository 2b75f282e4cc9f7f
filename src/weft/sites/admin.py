"""Admin sessions with the server of a federation: submit runs, read their status, stop them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from weft.config import RunConfig
from weft.errors import ConfigError, MissingExtra, ServerAway
from weft.json_types import JsonObject
from weft.sites.job import REPORT, STOP, write_job
from weft.sites.provisioning import kind_of_kit

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

STDOUT_LOCK = threading.RLock()
CLOSING = 3.0
"""Seconds that FLARE gets to close a session by itself."""
EMPTY_LIST = 0.3
"""Seconds after which an empty list of jobs is asked for again."""
EMPTY_TRIES = 8
"""How often it is."""
STOP_NOTICE = 2.5
"""Seconds in which a watcher (`weft.sites.watcher`) reads from the status that the run is stopped."""
ABANDONED = "FINISHED:ABANDONED"
"""State of a job whose server died under it."""
RESUBMITTABLE = (ABANDONED, "FINISHED:CAN_NOT_SCHEDULE")
"""States of jobs that are resubmitted even if they never started."""
OVER = ("FINISHED", "ABORTED", "FAILED", "REJECTED", "DELETED")
"""Beginnings of the states of jobs that have ended."""


class AdminSession:
    """An open session with a server."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def submit(self, config: RunConfig, name: str) -> str:
        """Submit a run; return the id of its job.

        Raises:
            ConfigError: another run has the name: it goes on, or it is done.
        """
        self._check_name(name, config.num_rounds)
        with tempfile.TemporaryDirectory() as folder:
            job = str(write_job(config, name, Path(folder)))
            try:
                with quiet_flare():
                    return str(self.session.submit_job(job))
            except Exception:
                self._check_name(name, config.num_rounds)  # another may have taken it meanwhile
                raise

    def _check_name(self, name: str, rounds: int) -> None:
        """Raise ConfigError if a run has the name; the server refuses it too, without saying why."""
        for job in self.jobs():
            if name != str(job.get("job_name") or job.get("name")):
                continue
            if not str(job.get("status")).startswith(OVER):
                raise ConfigError(
                    f"The run '{name}' goes on already: wait for it with `weft status {name}`, end it with `weft stop "
                    f"{name}`, or give another --name."
                )
            status = self.status(str(job["job_id"])) or {}
            if status.get("state") == "done" and rounds <= int(status.get("num_rounds") or 0):
                raise ConfigError(
                    f"The run '{name}' is done, with {status['num_rounds']} rounds: give another --name, or more "
                    "--num_rounds to go on with it."
                )
            if status:
                return  # the newest job that began says how the run is

    def resubmit(self, job: str) -> str:
        """Submit a copy of a job; return the id of the copy."""
        with quiet_flare():
            return str(self.session.clone_job(job))

    def jobs(self, limit: int | None = None) -> list[JsonObject]:
        """Return the descriptions of all jobs, or of the newest `limit`; the newest is first."""
        with quiet_flare():
            jobs = self.session.list_jobs(detailed=True, limit=limit, reverse=True)
            for _ in range(EMPTY_TRIES):  # FLARE's list was seen to be empty for a moment while a job ended
                if jobs:
                    break
                time.sleep(EMPTY_LIST)
                jobs = self.session.list_jobs(detailed=True, limit=limit, reverse=True)
            server_start = self.server_start()
        jobs = [job | {"status": state_of(job, server_start)} for job in jobs]
        return sorted(jobs, key=lambda job: str(job.get("submit_time_iso") or job.get("submit_time")), reverse=True)

    def state(self, job: str) -> str:
        """Return the state of a job in FLARE's words."""
        with quiet_flare():
            return state_of(self.session.get_job_meta(job), self.server_start())

    def status(self, job: str) -> JsonObject | None:
        """Return the status that the run last reported in this job, or None if it has not begun."""
        try:
            with quiet_flare():
                status = self.session.get_job_meta(job).get(REPORT)  # weft.sites.job_store adds it
        except Exception:
            return None
        return dict(status) if isinstance(status, dict) else None

    def end(self, job: str) -> bool:
        """End a job so that it is not resubmitted; return whether it ran, as `stop` does."""
        # A job that has not started cannot receive the command, and has no status that would need it.
        with contextlib.suppress(Exception):
            with quiet_flare():
                self.session.do_app_command(job, STOP, {})
            time.sleep(STOP_NOTICE)
        return self.stop(job)

    def delete(self, job: str) -> None:
        """Delete a job that is over, so that it is not resubmitted."""
        with contextlib.suppress(Exception), quiet_flare():
            self.session.delete_job(job)

    def stop(self, job: str) -> bool:
        """End a job; its committed rounds stay. Return whether it ran: a job whose server was killed did not."""
        try:
            with quiet_flare():
                self.session.abort_job(job)
        except Exception:
            return False
        return True

    def server_start(self) -> float:
        """Return when the server was started, in seconds since 1970."""
        with quiet_flare():
            return float(self.session.get_system_info().server_info.start_time)

    def sites(self) -> dict[str, float]:
        """Return the connected sites, and when each last connected, in seconds since 1970."""
        with quiet_flare():
            system = self.session.get_system_info()
        return {str(site.name): float(site.last_connect_time) for site in system.client_info}


@contextmanager
def admin_session(kit: Path, patience: float = 10.0) -> Iterator[AdminSession]:
    """Open a session with the administrator's kit, or the supervisor's.

    Args:
        kit: folder of the kit.
        patience: seconds to wait for the server.

    Raises:
        ConfigError: `kit` is not an administrator's kit.
        MissingExtra: FLARE is not installed.
        ServerAway: the server cannot be reached, or does not know this administrator.
    """
    if kind_of_kit(kit) != "admin":
        raise ConfigError(f"'{kit}' is not the administrator's kit: give the folder `admin` of the kits by --kit.")
    try:
        from nvflare.fuel.flare_api.flare_api import new_secure_session
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    logging.getLogger().addHandler(logging.NullHandler())  # errors of its threads are raised below as ServerAway
    try:
        with quiet_flare():
            session = new_secure_session(_user_name(kit), str(kit.resolve()), timeout=patience)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ServerAway(
            f"The server cannot be reached with '{kit}' ({reason}): see that `weft server start` runs, and that the "
            "host and the port in the kit lead to it."
        ) from None
    try:
        yield AdminSession(session)
    finally:
        with quiet_flare():
            _close(session)


def _close(session: Session) -> None:
    """Close a session.

    FLARE waits forever for a connection that is opened while it closes the existing ones, as happens when the server
    has just been restarted; so connections are closed repeatedly until it is done.
    """

    def close() -> None:
        with contextlib.suppress(Exception):
            session.close()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(CLOSING)
    for _ in range(20):
        if not closing.is_alive():
            return
        with contextlib.suppress(Exception):
            for connector in list(session.api.cell.core_cell.communicator.conn_manager.connectors.values()):
                connector.driver.shutdown()
        closing.join(0.5)


def state_of(job: Mapping[str, object], server_start: float) -> str:
    """Return the state of a job; one that started before its server is abandoned, though FLARE says that it runs."""
    state, job_start = str(job.get("status", "")), job.get("start_time")
    if state.startswith(OVER) or not job_start:
        return state
    return ABANDONED if datetime.fromisoformat(str(job_start)).timestamp() < server_start else state


def _user_name(kit: Path) -> str:
    settings = json.loads((kit / "startup" / "fed_admin.json").read_text(encoding="utf-8"))
    return str(settings["admin"]["username"])


@contextmanager
def quiet_flare() -> Iterator[None]:
    """Discard what FLARE prints and logs; one thread at a time, as there is one standard output."""
    with STDOUT_LOCK:
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            logging.disable(level)
