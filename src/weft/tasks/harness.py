"""What runs inside a sandbox: sets limits, executes one program, and reports its end beside a token.

`weft.tasks.sandbox` sends the text of this module to a Python there, so it imports the standard library only, and runs
on Python 3.8 too (a user's container may be older than Weft's Python).

A first process waits, and stops a program that takes too long, since killing `docker run` from outside does not end
its container. A second one executes the program. What it reports stands beside a token that is new for each program, so
a program that exits early or prints passes no test.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
import traceback
import types

NEW_USER = 0x10000000
"""Linux's flag for a new user namespace, in which a program could mount memory without end."""
SYSTEM_CALLS = {"x86_64": (0xC000003E, 272, 56), "aarch64": (0xC00000B7, 97, 220)}
"""For each kind of machine its number in filters, and those of unshare and clone."""
CLONE3 = 435


def main(payload: str) -> None:
    """Run one program and end this process.

    Args:
        payload: JSON of program, token, uids (one of which to become; empty: stay), and limits: seconds of the clock,
            cpu_seconds, memory, file_bytes (bytes), open_files, processes.
    """
    job = json.loads(payload)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # standard input holds this text, and so the token
    os.close(null)
    _become(job["uids"])
    report = os.dup(1)
    os.dup2(1, 2)
    _say(report, job["token"], "began")
    child = os.fork()
    if child == 0:
        _limit(job["limits"])
        _execute(job["program"], job["token"], report)
    late = []

    def stop(*_: object) -> None:
        late.append(True)
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, job["limits"]["seconds"])
    _, status, usage = os.wait4(child, 0)
    computed = usage.ru_utime + usage.ru_stime >= job["limits"]["cpu_seconds"]
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if late or ended == signal.SIGXCPU or (ended == signal.SIGKILL and computed):
        _say(report, job["token"], "timeout")
    else:  # the system kills what it has no memory for
        _say(report, job["token"], "memory" if ended == signal.SIGKILL else f"failed {ended}")
    os._exit(1)


def _become(uids: list[int]) -> None:
    """Become the first of some users that the system has; the limit on processes holds for each but the root user."""
    for uid in uids:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        except OSError:  # no such user in this user namespace
            continue
        return
    if uids:
        sys.exit("no other user can be taken")


def _limit(limits: dict[str, int]) -> None:
    """Limit this process; what a system does not know (memory on macOS) is left, and the trial of a sandbox tells."""
    bounds = {
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_CPU": (limits["cpu_seconds"], limits["cpu_seconds"] + 1),
        "RLIMIT_FSIZE": (limits["file_bytes"],) * 2,
        "RLIMIT_NOFILE": (limits["open_files"],) * 2,
        "RLIMIT_NPROC": (limits["processes"],) * 2,
        "RLIMIT_AS": (limits["memory"],) * 2,
    }
    for name, (soft, hard) in bounds.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            most = resource.getrlimit(kind)[1]
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), min(hard, most)
            resource.setrlimit(kind, (soft, hard))
    with contextlib.suppress(ImportError, AttributeError, OSError):
        _refuse_namespaces()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out, the system stops a program first


def _refuse_namespaces() -> None:
    """Have Linux refuse new user namespaces to this process, where the machine is of a kind that is listed."""
    import ctypes

    machine = SYSTEM_CALLS.get(os.uname().machine)
    if machine is None or not sys.platform.startswith("linux"):
        return
    kind, unshare, clone = machine
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    steps = [
        (load, 0, 0, 4),  # the kind of machine
        (equal, 0, 9, kind),
        (load, 0, 0, 0),  # the system call
        (at_least, 7, 0, 0x40000000),  # those of another kind
        (equal, 6, 0, CLONE3),  # hides its flags; all callers fall back to clone
        (equal, 1, 0, unshare),
        (equal, 0, 2, clone),
        (load, 0, 0, 16),  # its flags
        (any_bit, 1, 0, NEW_USER),
        (end, 0, 0, 0x7FFF0000),  # is done
        (end, 0, 0, 0x00050000 | 1),  # is not permitted
        (end, 0, 0, 0x00050000 | 38),  # does not exist
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filters = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, without which a filter is refused
    libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(filters)), 0, 0)


def _execute(program: str, token: str, report: int) -> None:
    """Execute a program as a module that is not the main one, as the usual scorers of these benchmarks do."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    outcome = "failed"
    try:
        # With assertions whatever the options of this Python, and without this file's __future__.
        exec(compile(program, "<program>", "exec", dont_inherit=True, optimize=0), module.__dict__)
        outcome = "passed"
    except MemoryError:
        outcome = "memory"
    except BaseException:  # SystemExit too: the tests come last
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    if outcome != "failed":
        _say(report, token, outcome)
    os._exit(0)


def _say(report: int, token: str, words: str) -> None:
    os.write(report, f"\n{token} {words}\n".encode())
