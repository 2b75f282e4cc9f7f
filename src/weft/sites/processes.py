"""Starts the process of a server or of a site, and restarts it when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from weft.errors import ConfigError, MissingExtra
from weft.sites.kit_files import read_kit
from weft.sites.kit_use import bound_logs, delete_old_jobs, kit_in_use
from weft.sites.policy import read_policy
from weft.sites.provisioning import check_current, kind_of_kit, settle
from weft.sites.signals import ENDING

PAUSE = 2.0
"""Seconds before a process that ended is restarted."""
HUGE = "glibc.malloc.hugetlb=1"
"""Large pages, where the system has them: buffers of hundreds of megabytes are allocated faster."""
PRIVATE = 0o077
"""umask of all processes: nobody but their user reads the files that they write."""
LOOK = 30.0
"""Seconds between two looks at the size of the logs."""
PATIENCE = 20.0
"""Seconds that a process has to end after SIGTERM."""
LINGER = 2.0
"""Seconds that the jobs of a server or site have to end after it."""


def command(kit: Path, site: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the command of the process of a server or site, and its environment.

    Args:
        kit: folder of the server's kit, or of a site's.
        site: the site's site.yaml; None for the server.

    Raises:
        ConfigError: `kit` is no such kit, or the site policy cannot be read.
        MissingExtra: FLARE is not installed.
    """
    try:
        import nvflare  # noqa: F401
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    kit = kit.resolve()
    kind = kind_of_kit(kit)
    read_kit(kit, kind if site is None else "client")
    env = (
        {"GLIBC_TUNABLES": HUGE} | os.environ | {"WEFT_KIT": str(kit), "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "2"}
    )
    if kind == "admin":
        raise ConfigError(f"'{kit}' is the administrator's kit: use it with `weft submit`.")
    check_current(kit, kind)
    if kind == "client":
        if site is None:
            raise ConfigError("A site needs its policy to start: write --site site.yaml.")
        read_policy(site)  # a mistake in it is reported here, not in a log
        env["WEFT_SITE"] = str(site.resolve())
        uid = json.loads((kit / "startup" / "fed_client.json").read_text(encoding="utf-8"))["client"]["fqsn"]
        options = ["uid=" + uid, "org=" + uid.replace("-", "_")]
    else:
        settle(kit)
        options = ["org=weft"]
    module = f"nvflare.private.fed.app.{kind}.{kind}_train"
    arguments = ["-m", str(kit), "-s", f"fed_{kind}.json", "--set", "secure_train=true"]
    arguments += [*options, "config_folder=config"]
    (kit / "transfer").mkdir(mode=0o700, exist_ok=True)
    return [sys.executable, "-u", "-m", module, *arguments], env


@contextmanager
def private_files() -> Iterator[None]:
    """Let this process, too, write files that nobody but its user reads, inside the context."""
    former = os.umask(PRIVATE)
    try:
        yield
    finally:
        os.umask(former)


def keep_running(kit: Path, site: Path | None, note: Callable[[str], None], ready: str = "it runs.") -> int:
    """Run a server or a site until Ctrl-C, SIGTERM or SIGHUP, and restart it when it ends before.

    Args:
        kit: folder of the kit.
        site: the site's site.yaml; None for the server, which gets its supervisor beside it.
        note: called with a sentence when the process is restarted.
        ready: the sentence that is noted once nothing keeps the process from starting.

    Raises:
        ConfigError: as `command`; or a process of this machine runs with the kit.
    """
    arguments, env = command(kit, site)
    with kit_in_use(kit) as lock:
        delete_old_jobs(kit)
        note(ready)
        return _keep_running(kit, site, note, arguments, env, lock)


def _keep_running(
    kit: Path, site: Path | None, note: Callable[[str], None], arguments: list[str], env: dict[str, str], lock: int
) -> int:
    signals: list[int] = []
    for number in ENDING:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # under `nohup`
        signal.signal(number, lambda number, _: signals.append(number))
    supervisor: subprocess.Popen[bytes] | None = None
    while True:
        child = start(arguments, env, kit, lock)
        looked = 0.0
        while child.poll() is None and not signals:
            if site is None and (kit / "supervisor").is_dir() and (supervisor is None or supervisor.poll() is not None):
                supervisor = start_supervisor(kit)
            if time.monotonic() - looked > LOOK:
                bound_logs(kit)
                looked = time.monotonic()
            time.sleep(0.1)
        if signals:
            if supervisor is not None:
                supervisor.kill()
                supervisor.wait()
            end(child)
            return 0
        note(f"the process ended ({child.returncode}); it is restarted. Its output is in {kit / 'console.log'}.")
        kill_group(child)  # its children may still hold ports and memory
        time.sleep(PAUSE)


def start(arguments: list[str], env: dict[str, str], kit: Path, lock: int | None = None) -> subprocess.Popen[bytes]:
    """Start the process of a server or site; its output goes to console.log in its kit.

    Args:
        arguments: as `command` returns them.
        env: the environment.
        kit: folder of the kit.
        lock: a descriptor that the process inherits, so that the kit is in use as long as it lives.
    """
    kept = () if lock is None else (lock,)
    with _private_log(kit / "console.log") as log:
        return subprocess.Popen(
            arguments, env=env, stdout=log, stderr=log, start_new_session=True, pass_fds=kept, umask=PRIVATE
        )


def start_supervisor(kit: Path) -> subprocess.Popen[bytes]:
    """Start the supervisor of a server; it ends with this process."""
    with _private_log(kit / "supervisor.log") as log:
        arguments = [sys.executable, "-u", "-m", "weft.sites.supervisor", str(kit.resolve())]
        return subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True, umask=PRIVATE)


def _private_log(path: Path) -> IO[bytes]:
    """Open a log for appending; a new one is readable for its owner only."""
    return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def end(child: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a process and its children, and kill them if they do not end."""
    import psutil  # a package that FLARE needs too

    # FLARE starts jobs in sessions of their own, which would go on for a while without their parent.
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(child.pid).children(recursive=True)
    kill_group(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(PATIENCE)
    kill_group(child)
    child.wait()
    for process in psutil.wait_procs(family, timeout=LINGER)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_group(child: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process and all its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
