"""Which isolation of programs there is on this machine, found by trying.

A trial program tries to reach what is outside (a file, a socket, another process) and to exceed its limits, and prints
what it could do. So what is said of an isolation was seen, of a user's own container too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from weft.errors import ConfigError
from weft.tasks.sandbox import Isolation, Limits, Outcome, attempt, split_command

PYTHON = ("-s", "-S", "-B", "-P", "-X", "utf8", "-")
"""Options of the interpreter: no packages, no files of compiled code, no modules of the working folder."""
OUTSIDE = (
    "files outside are read",
    "files outside are written",
    "the network is reached",
    "other processes are reached",
)
"""What bubblewrap must contain to count as working."""
TRIAL = """
import json, os, socket
told = json.loads(PAYLOAD)
done = []
try:
    if open(told["file"]).read() == told["text"]:
        done.append("files outside are read")
except OSError:
    pass
try:
    with open(told["file"] + ".new", "w") as file:
        file.write(told["text"])
except OSError:
    pass
for kind, address in ((socket.SOCK_STREAM, ("127.0.0.1", told["port"])), (socket.SOCK_DGRAM, ("192.0.2.1", 9))):
    try:
        with socket.socket(socket.AF_INET, kind) as line:
            line.settimeout(1)
            line.connect(address)
        done.append("the network is reached")
        break
    except OSError:
        pass
try:
    os.kill(told["process"], 0)
    with open("/proc/%d/cmdline" % told["process"]) as file:
        if file.read() == told["line"]:
            done.append("other processes are reached")
except OSError:
    pass
try:
    bytearray(told["memory"] + 1)
    done.append("memory")
except MemoryError:
    pass
here, there = os.pipe()
try:
    for _ in range(told["processes"] + 1):
        if os.fork() == 0:
            os.close(there)
            os.read(here, 1)
            os._exit(0)
    done.append("the number of processes")
except OSError:
    pass
try:
    import ctypes
    if ctypes.CDLL(None).unshare(0x10000000) == 0:
        done.append("user namespaces are made")
except (ImportError, AttributeError, OSError):
    pass
print("did", json.dumps(done))
"""
"""Tries what a program must not do. A datagram socket that is connected sends nothing, but needs a way out; children
wait for the end of their parent."""


def detect(hook: str | None, allow_unsafe: bool, limits: Limits | None = None) -> Isolation:
    """Return what contains programs here, with what it does not contain.

    Args:
        hook: the user's command, which reads a Python program from its standard input and runs it; None: there is none.
        allow_unsafe: whether programs may run without a sandbox, where there is none.
        limits: of each program; None: the defaults.

    Raises:
        ConfigError: the hook does not run a program; there is no sandbox and `allow_unsafe` is false.
    """
    limits = limits or Limits()
    if hook is not None:
        return _detect_hook(hook, limits)
    why = ""
    for candidate in _bubblewraps(limits.disk):
        trial, outcome = _try(candidate, limits)
        if trial is not None and not set(OUTSIDE) & set(trial.uncontained):
            return trial
        why = _last_line(outcome) if trial is None else ", ".join(trial.uncontained)
    if allow_unsafe:
        for candidate in _unsafes():
            trial, _ = _try(candidate, limits)
            if trial is not None:
                return trial
    found = f"bubblewrap does not work here ({why})" if why else "bubblewrap is not installed"
    raise ConfigError(
        f"Programs that a model wrote are run in a sandbox only, and {found}: install the package 'bubblewrap' "
        "(Debian: `apt install bubblewrap`), name a container by --code_sandbox, or write "
        "`--allow_code_execution unsafe` where nothing can be lost."
    )


def _detect_hook(hook: str, limits: Limits) -> Isolation:
    command = split_command(hook)
    trial, outcome = _try(Isolation("hook", command, keeps_environment=True), limits) if command else (None, None)
    if trial is None:
        raise ConfigError(
            f"The command of --code_sandbox ('{hook}') does not run a Python program from its standard input"
            f"{f' ({_last_line(outcome)})' if outcome and outcome.output else ''}: write one that does, such as "
            "'docker run --rm -i --network none python:3.11 python -I -'."
        )
    return trial


def _last_line(outcome: Outcome) -> str:
    return outcome.output.rpartition("\n")[2][:200] or f"a program in it ends by {outcome.reason}"


def _try(isolation: Isolation, limits: Limits) -> tuple[Isolation | None, Outcome]:
    """Run the trial program; return the isolation with what the program could do, or None if it did not even run."""
    text = os.urandom(8).hex()
    with (
        tempfile.TemporaryDirectory(prefix="weft-outside-") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        file = Path(folder) / "file"
        file.write_text(text)
        told = {"file": str(file), "text": text, "port": server.getsockname()[1]}
        told |= {"memory": limits.memory, "processes": limits.processes, "process": os.getpid(), "line": _line()}
        _, outcome = attempt(TRIAL.replace("PAYLOAD", repr(json.dumps(told))), isolation, limits)
        written = Path(f"{file}.new").exists()
    _, said, done = outcome.output.rpartition("did ")
    if not outcome.passed or not said:
        return None, outcome
    breaches = [*json.loads(done), *([OUTSIDE[1]] if written else [])]
    return isolation._replace(uncontained=tuple(breaches)), outcome


def _line() -> str:
    """Return the command line of this process, by which the trial knows it from one of the same number."""
    line = Path("/proc/self/cmdline")
    return line.read_text(encoding="utf-8", errors="replace") if line.exists() else ""


def _bubblewraps(disk: int) -> Iterator[Isolation]:
    """Yield the ways to call bubblewrap, with so many bytes for files; the stricter first."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return
    command = [bwrap, "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    inside = [*_root(disk), "--chdir", "/tmp", "--", _interpreter(), *PYTHON]
    if os.geteuid() == 0:
        # Without a user namespace, so that the program becomes a user whose processes are counted (see FOREIGN_UIDS).
        spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        rights = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        yield Isolation("bubblewrap", (*command, *spaces, *rights, *inside), other_user=True)
    # Newer ones keep a program from a user namespace of its own, in which it could mount memory without end.
    yield Isolation("bubblewrap", (*command, "--unshare-all", "--unshare-user", "--disable-userns", *inside))
    yield Isolation("bubblewrap", (*command, "--unshare-all", *inside))


def _root(disk: int) -> list[str]:
    """Return what a program sees of the disk: libraries and the interpreter, read only, and an empty /tmp."""
    seen = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            seen += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            seen += ["--ro-bind", name, name]
    seen += ["--proc", "/proc", "--dev", "/dev"]
    seen += ["--perms", "1777", "--size", str(disk), "--tmpfs", "/tmp"]
    for path in (Path(_interpreter()), *(Path(sys.base_prefix, name) for name in ("lib", "lib64"))):
        if path.exists() and not path.is_relative_to("/usr"):
            for folder in [*path.parents][-2::-1]:  # else those of a private folder would be as private
                seen += ["--perms", "0755", "--dir", str(folder)]
            seen += ["--ro-bind", str(path), str(path)]
    seen += ["--ro-bind-try", "/nix/store", "/nix/store"]
    return [*seen, "--remount-ro", "/dev", "--remount-ro", "/"]


def _interpreter() -> str:
    """Return the interpreter itself: that of a virtual environment is a link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _unsafes() -> Iterator[Isolation]:
    """Yield the ways to run without a sandbox, the stricter first: without network, as far as the system allows it."""
    unshare, python = shutil.which("unshare"), (_interpreter(), *PYTHON)
    if unshare is not None:
        yield Isolation("unsafe", (unshare, "-r", "-n", "-p", "--fork", "--kill-child=SIGKILL", *python))
        yield Isolation("unsafe", (unshare, "-r", "-n", *python))
    yield Isolation("unsafe", python)
