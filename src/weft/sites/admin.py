"""What an administrator does with the server of a federation of sites: hand in runs, ask how they are, stop them."""

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
from typing import Any

from weft.config import RunConfig
from weft.errors import ConfigError, MissingExtra, ServerAway
from weft.sites.job import STATUS, STOP, write_job
from weft.sites.provisioning import kind_of_kit

SILENCE = threading.RLock()
CLOSING = 3.0
"""Seconds that FLARE has to close a session by itself."""
HEARD = 2.5
"""Seconds that who watches a run has to hear that it is stopped."""
GONE = "FINISHED:ABANDONED"
"""What FLARE calls a job that a server left behind."""
LEFT = (GONE, "FINISHED:CAN_NOT_SCHEDULE")
"""States of jobs that may never have begun, and are handed in again nonetheless."""
OVER = ("FINISHED", "ABORTED", "FAILED", "REJECTED", "DELETED")


class AdminSession:
    """A session with a server, opened anew where it breaks."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def submit(self, config: RunConfig, name: str) -> str:
        """Hand in a run; return the number of its job."""
        with tempfile.TemporaryDirectory() as folder, hushed():
            return str(self.session.submit_job(str(write_job(config, name, Path(folder)))))

    def again(self, job: str) -> str:
        """Hand a job in again as it is; return the number of the new one."""
        with hushed():
            return str(self.session.clone_job(job))

    def jobs(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return what is known of all jobs, or of the newest, the newest first."""
        with hushed():
            found = self.session.list_jobs(detailed=True, limit=limit, reverse=True)
            since = self.since()
        found = [job | {"status": _state(job, since)} for job in found]
        return sorted(found, key=lambda job: str(job.get("submit_time_iso") or job.get("submit_time")), reverse=True)

    def state(self, job: str) -> str:
        """Return the state of a job in FLARE's words."""
        with hushed():
            return _state(self.session.get_job_meta(job), self.since())

    def status(self, job: str) -> dict[str, Any] | None:
        """Return what the run itself says, or None while it does not run."""
        try:
            with hushed():
                return dict(self.session.do_app_command(job, STATUS, {}))
        except Exception:
            return None

    def end(self, job: str) -> bool:
        """End a job for good; otherwise as `stop`."""
        with contextlib.suppress(Exception):  # one that has not begun cannot be told, and need not be
            with hushed():
                self.session.do_app_command(job, STOP, {})
            time.sleep(HEARD)
        return self.stop(job)

    def forget(self, job: str) -> None:
        """Let nobody hand in again what is over."""
        with contextlib.suppress(Exception), hushed():
            self.session.delete_job(job)

    def stop(self, job: str) -> bool:
        """End a job; what it has committed stays. Return whether it ran: one of a server that was killed does not."""
        try:
            with hushed():
                self.session.abort_job(job)
        except Exception:
            return False
        return True

    def since(self) -> float:
        """Return when the server was started, in seconds since 1970."""
        with hushed():
            return float(self.session.get_system_info().server_info.start_time)

    def sites(self) -> dict[str, float]:
        """Return the sites that are connected, and since when."""
        with hushed():
            found = self.session.get_system_info()
        return {str(one.name): float(one.last_connect_time) for one in found.client_info}


@contextmanager
def admin_session(kit: Path, patience: float = 10.0) -> Iterator[AdminSession]:
    """Open a session by the administrator's kit, or the supervisor's.

    Raises:
        ConfigError: no such kit.
        MissingExtra: FLARE is not installed.
        ServerAway: the server cannot be reached, or does not know this administrator.
    """
    if kind_of_kit(kit) != "admin":
        raise ConfigError(f"'{kit}' is not the administrator's kit: give the folder `admin` of the kits by --kit.")
    try:
        from nvflare.fuel.flare_api.flare_api import new_secure_session
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    logging.getLogger().addHandler(logging.NullHandler())  # what its threads complain of is said here, in words
    try:
        with hushed():
            session = new_secure_session(_who(kit), str(kit.resolve()), timeout=patience)
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ServerAway(
            f"The server cannot be reached with '{kit}' ({said}): see that `weft server start` runs, and that the host "
            "and the port in the kit lead to it."
        ) from None
    try:
        yield AdminSession(session)
    finally:
        with hushed():
            _close(session)


def _close(session: Any) -> None:
    """Close a session.

    FLARE waits for ever for a connection that is made anew while it closes the others, as happens where the server has
    just been started again; so they are closed again.
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


def _state(job: Mapping[str, Any], since: float) -> str:
    """Return the state of a job: what began before the server did runs no more, though FLARE says so."""
    said, began = str(job.get("status", "")), job.get("start_time")
    if said.startswith(OVER) or not began:
        return said
    return GONE if datetime.fromisoformat(str(began)).timestamp() < since else said


def _who(kit: Path) -> str:
    words = json.loads((kit / "startup" / "fed_admin.json").read_text(encoding="utf-8"))
    return str(words["admin"]["username"])


@contextmanager
def hushed() -> Iterator[None]:
    """Keep what the library prints from the user; one thread at a time, as there is one standard output."""
    with SILENCE:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            logging.disable(before)
