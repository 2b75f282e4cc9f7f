"""The processes of a party: a server or a site is started, watched, and started again where it falls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from weft.errors import ConfigError, MissingExtra
from weft.sites.policy import read_policy
from weft.sites.provisioning import kind_of_kit, settle

PAUSE = 2.0
"""Seconds before a process that fell is started again."""
HUGE = "glibc.malloc.hugetlb=1"
"""Large pages for what comes and goes by the hundred megabytes: less time to get memory, where the system has them."""
PATIENCE = 20.0
"""Seconds that it has to end when it is asked to."""


def command(kit: Path, site: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the command of a party's process, and its environment.

    Args:
        kit: of the server, or of a client.
        site: the client's site.yaml.

    Raises:
        ConfigError: no such kit, or a law that cannot be read.
        MissingExtra: FLARE is not installed.
    """
    try:
        import nvflare  # noqa: F401
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    kit = kit.resolve()
    kind = kind_of_kit(kit)
    env = (
        {"GLIBC_TUNABLES": HUGE} | os.environ | {"WEFT_KIT": str(kit), "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "2"}
    )
    if kind == "admin":
        raise ConfigError(f"'{kit}' is the administrator's kit: use it with `weft submit`.")
    if kind == "client":
        if site is None:
            raise ConfigError("A site begins with its law: write --site site.yaml.")
        read_policy(site)
        env["WEFT_SITE"] = str(site.resolve())
        uid = json.loads((kit / "startup" / "fed_client.json").read_text(encoding="utf-8"))["client"]["fqsn"]
        own = ["uid=" + uid, "org=" + uid.replace("-", "_")]
    else:
        settle(kit)
        own = ["org=weft"]
    module = f"nvflare.private.fed.app.{kind}.{kind}_train"
    words = ["-m", str(kit), "-s", f"fed_{kind}.json", "--set", "secure_train=true", *own, "config_folder=config"]
    (kit / "transfer").mkdir(exist_ok=True)
    return [sys.executable, "-u", "-m", module, *words], env


def keep_running(kit: Path, site: Path | None, note: Callable[[str], None]) -> int:
    """Run a party until it is asked to end (Ctrl-C, SIGTERM); start it again where it falls."""
    words, env = command(kit, site)
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _: asked.append(got))
    supervisor: subprocess.Popen[bytes] | None = None
    while True:
        child = start(words, env, kit)
        while child.poll() is None and not asked:
            if site is None and (kit / "supervisor").is_dir() and (supervisor is None or supervisor.poll() is not None):
                supervisor = start_supervisor(kit)
            time.sleep(0.1)
        if asked:
            if supervisor is not None:
                supervisor.kill()
                supervisor.wait()
            end(child)
            return 0
        note(f"the process ended ({child.returncode}); it begins anew. Its words are in {kit / 'console.log'}.")
        kill_group(child)
        time.sleep(PAUSE)


def start(words: list[str], env: dict[str, str], kit: Path) -> subprocess.Popen[bytes]:
    """Start a party's process; its words go to a file in its kit."""
    with open(kit / "console.log", "ab") as log:
        return subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)


def start_supervisor(kit: Path) -> subprocess.Popen[bytes]:
    """Start what looks after a server's runs; it ends with this process."""
    with open(kit / "supervisor.log", "ab") as log:
        words = [sys.executable, "-u", "-m", "weft.sites.supervisor", str(kit.resolve())]
        return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask a process and its children to end, and end them if they do not."""
    kill_group(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(PATIENCE)
    kill_group(child)
    child.wait()


def kill_group(child: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
