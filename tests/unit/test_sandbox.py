"""Programs that a model wrote: what they cannot do, or are said to be able to do, and when they count as passed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from weft.errors import ConfigError, RunError
from weft.tasks import harness
from weft.tasks import isolation as trying
from weft.tasks.isolation import detect
from weft.tasks.sandbox import Isolation, Limits, attempt, run

SHORT = Limits(seconds=4, cpu_seconds=2)
PROCESSES = "the number of processes"


def best() -> Isolation | None:
    try:
        return detect(None, False)
    except ConfigError:
        return None


@pytest.fixture(scope="module", params=["bubblewrap", "hook", "unsafe"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Each isolation that this machine has; the hook stands for a container, and contains nothing."""
    if request.param == "hook":
        return detect(f"{trying._interpreter()} -I -S -", False)
    if request.param == "unsafe":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trying, "_bubblewraps", lambda disk: iter(()))
            return detect(None, True)
    found = best()
    if found is None:
        pytest.skip("bubblewrap is not installed, or user namespaces are refused")
    return found


@pytest.fixture(scope="module")
def bubblewrap() -> Isolation:
    found = best()
    if found is None:
        pytest.skip("bubblewrap is not installed, or user namespaces are refused")
    return found


def one(program: str, isolation: Isolation, limits: Limits = SHORT):
    (outcome,) = run([program], isolation, limits)
    return outcome


def test_a_program_passes_when_its_tests_do(isolation: Isolation):
    assert isolation.name in isolation.words()
    programs = ["assert 1 + 1 == 2", "assert 1 + 1 == 3", "x = (", "def f():\n  return 1\nassert f() == 1\nprint('é')"]
    outcomes = run(programs, isolation, SHORT, workers=2)
    assert [outcome.passed for outcome in outcomes] == [True, False, False, True]
    assert [outcome.reason for outcome in outcomes] == ["passed", "failed", "failed", "passed"]
    assert "AssertionError" in outcomes[1].output
    assert outcomes[3].output == "é"


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "print('passed')\nraise ValueError",
        "import os\nfor fd in range(9):\n  try: os.write(fd, b'\\n0 passed\\n')\n  except OSError: pass\nos._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os\nif os.fork():\n  os._exit(0)\nimport time; time.sleep(60)",
        "import os\nos.closerange(0, 99)",
        "import sys\nprint(sys.stdin.read(), open('/proc/self/fd/0').read())\nassert 0",
        "\ud800",
    ],
)
def test_a_program_that_does_not_run_to_its_end_passes_nothing(isolation: Isolation, program: str):
    begun = time.monotonic()
    outcome = one(program + "\nassert False", isolation)
    assert not outcome.passed
    assert time.monotonic() - begun < SHORT.seconds + 2
    assert "token" not in outcome.output


def test_tests_count_without_assertions_too(isolation: Isolation):
    """A container's PYTHONOPTIMIZE would take the tests out of the program."""
    optimised = isolation._replace(command=tuple("-O" if word == "-S" else word for word in isolation.command))
    assert optimised != isolation
    assert not one("assert False", optimised).passed


def test_programs_that_end_late_or_need_much_memory_are_told_apart(isolation: Isolation):
    late, busy, greedy, loud = run(
        [
            "import time; time.sleep(60)",
            "while True: pass",
            "x = bytearray(3 << 30)",
            "while True: print('x' * 1000)",
        ],
        isolation,
        Limits(seconds=2, cpu_seconds=1),
        workers=4,
    )
    reasons = (late.reason, busy.reason, greedy.reason, loud.reason)
    assert reasons == ("timeout", "timeout", "memory", "timeout"), loud.output[-400:]
    assert len(loud.output) <= 2 * 4096
    assert "memory" not in isolation.uncontained


def test_a_file_of_a_gigabyte_is_not_written(isolation: Isolation):
    outcome = one("with open('f', 'wb') as f:\n  for _ in range(1 << 10): f.write(bytes(1 << 20))", isolation)
    assert not outcome.passed
    assert "File too large" in outcome.output or "No space" in outcome.output


def test_files_outside_are_neither_read_nor_written_or_it_is_said(isolation: Isolation, tmp_path: Path):
    secret = tmp_path / ".ssh" / "id_rsa"
    secret.parent.mkdir()
    secret.write_text("PRIVATE")
    reads = one(f"print(open({str(secret)!r}).read())", isolation)
    assert ("PRIVATE" in reads.output) <= ("files outside are read" in isolation.uncontained)
    one(f"open({str(tmp_path / 'new')!r}, 'w').write('x')", isolation)
    assert (tmp_path / "new").exists() <= ("files outside are written" in isolation.uncontained)


def test_a_socket_is_refused_or_it_is_said(isolation: Isolation):
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = one(f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}))", isolation)
    assert outcome.passed <= ("the network is reached" in isolation.uncontained)


def test_ten_thousand_forks_end_with_the_program_or_it_is_said(isolation: Isolation):
    if PROCESSES in isolation.uncontained:
        pytest.skip("it is said: the number of processes is not limited here")
    program = "import os, time\nfor n in range(10**4):\n  if os.fork() == 0: time.sleep(61.5)\nprint('all')"
    begun = time.monotonic()
    outcome = one(program, isolation)
    assert "Resource temporarily unavailable" in outcome.output
    assert time.monotonic() - begun < SHORT.seconds
    # The children of a bomb go with the program; as they sleep, only a kill ends them.
    while (left := _running()) and time.monotonic() - begun < SHORT.seconds:
        time.sleep(0.05)
    assert not left


def _running() -> list[str]:
    """Programs on this machine, by their interpreter's options."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"\0".join(option.encode() for option in trying.PYTHON) in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_bubblewrap_contains_all_that_is_tried(bubblewrap: Isolation, tmp_path: Path):
    assert set(bubblewrap.uncontained) <= {PROCESSES}
    program = """
import os
for folder in ("/", "/usr", "/dev", "/dev/shm", "/proc/sys/kernel", os.path.dirname(os.__file__)):
    try:
        open(folder + "/x", "w").close()
    except OSError:
        continue
    raise SystemExit(folder + " can be written")
with open("/tmp/x", "w") as file:
    file.write("x")
assert sorted(set(os.environ) - {"PWD", "LC_CTYPE"}) == ["HOME", "PYTHONHASHSEED"]
assert len([name for name in os.listdir("/proc") if name.isdigit()]) <= 4
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapPrm"))]
assert [int(cap, 16) for cap in caps] == [0, 0], caps
assert os.listdir("/tmp") == ["x"]
seen = set(os.listdir("/"))
assert not seen & {"home", "etc/passwd", "var", "work", "srv"}, seen
"""
    outcome = one(program, bubblewrap)
    assert outcome.passed, outcome.output


@pytest.mark.skipif(os.uname().machine not in harness.SYSTEM_CALLS, reason="no filter for this kind of machine")
def test_no_namespace_in_which_memory_could_be_mounted(isolation: Isolation):
    """Neither by unshare nor by clone; threads and other programs, which are made by clone too, go on."""
    assert "user namespaces are made" not in isolation.uncontained
    number = harness.SYSTEM_CALLS[os.uname().machine][2]
    program = f"""
import ctypes, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
assert (libc.unshare({harness.NEW_USER}), ctypes.get_errno()) == (-1, 1)
assert libc.syscall({number}, {harness.NEW_USER} | 17, 0, 0, 0, 0) == -1
assert (libc.syscall({harness.CLONE3}, 0, 0), ctypes.get_errno()) == (-1, 38)
done = []
thread = threading.Thread(target=done.append, args=(1,))
thread.start()
thread.join()
assert done == [1]
assert subprocess.run(["/bin/sh", "-c", "exit 3"]).returncode == 3
"""
    outcome = one(program, isolation)
    assert outcome.passed, outcome.output


def test_all_files_together_are_bounded(bubblewrap: Isolation):
    outcome = one("for n in range(64): open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))", bubblewrap)
    assert "No space left" in outcome.output


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only the root user takes another")
def test_a_user_without_rights_is_contained_as_the_root_user_is(monkeypatch: pytest.MonkeyPatch):
    python = next(
        (path for name in ("python3.13", "python3.12", "python3.11") if (path := shutil.which(name, path="/usr/bin"))),
        None,
    )
    if python is None or best() is None:
        pytest.skip("no Python that every user can run, or no bubblewrap")
    monkeypatch.setattr(trying, "_interpreter", lambda: python)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    ways = [way._replace(command=user + way.command) for way in trying._bubblewraps(1 << 24)]
    monkeypatch.setattr(trying, "_bubblewraps", lambda disk: iter(ways))
    isolation = detect(None, False)
    assert isolation.uncontained == ()
    test_ten_thousand_forks_end_with_the_program_or_it_is_said(isolation)


def test_without_a_sandbox_programs_are_refused_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"apt install bubblewrap.*--allow_code_execution unsafe"):
        detect(None, False)
    isolation = detect(None, True)
    assert isolation.name == "unsafe"
    assert "files outside are read" in isolation.uncontained
    assert "not contained: " in isolation.words()


def put_bubblewrap(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a script the first bwrap on the path."""
    (folder / "bwrap").write_text(script)
    (folder / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_bubblewrap_that_does_not_work_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    put_bubblewrap(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n", tmp_path, monkeypatch
    )
    with pytest.raises(ConfigError, match="No permissions to create new namespace"):
        detect(None, False)


def test_bubblewrap_that_contains_nothing_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    put_bubblewrap('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n', tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="files outside are read"):
        detect(None, False)


@pytest.mark.parametrize("hook", ["/no/such/command", "true", "echo hello", "'", "", "sh -c 'cat > /dev/null; exit 3'"])
def test_a_hook_that_runs_no_program_is_refused(hook: str):
    with pytest.raises(ConfigError, match=r"--code_sandbox .* does not run a Python program"):
        detect(hook, True)


def test_a_sandbox_that_no_longer_starts_fails_no_program():
    gone = Isolation("hook", ("/no/such/command",))
    with pytest.raises(RunError, match=r"no longer starts .*run the same command again"):
        run(["assert True"], gone)
    assert attempt("assert True", gone, SHORT)[0] is False


def test_ctrl_c_waits_for_no_program(monkeypatch: pytest.MonkeyPatch):
    isolation = Isolation("unsafe", (trying._interpreter(), *trying.PYTHON))
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(["import time; time.sleep(30)"] * 8, isolation, Limits(seconds=30), workers=2)
    assert time.monotonic() - begun < 5
