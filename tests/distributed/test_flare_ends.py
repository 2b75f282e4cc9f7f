"""`weft up` as a process of its own: what it prints, and that it leaves no process behind however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import weft
from support.paths import ROOT

pytest.importorskip("nvflare")
pytestmark = [pytest.mark.xdist_group("flare"), pytest.mark.slow]

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}


def alive(work: Path) -> list[str]:
    """Return the commands of the processes that work in a folder, and are not this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            env = (path / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words and int(path.name) != os.getpid() and (str(work) in words or f"WEFT_KIT={work}" in env):
            found.append(words)
    return found


@pytest.fixture
def begun(tmp_path: Path, tiny_model: Path):
    """Returns a function that starts `weft up examples/hospitals.yaml`, as the README says, where the examples are."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    children: list[subprocess.Popen[str]] = []

    def start(*more: str) -> subprocess.Popen[str]:
        words = ["up", "examples/hospitals.yaml", "--model_name_or_path", str(tiny_model), "--max_steps", "2"]
        words += ["--threads", "1", "--batch_size", "4", "--seq_length", "128", *more]
        child = subprocess.Popen(
            [sys.executable, "-m", "weft", *words],
            cwd=tmp_path,
            **PIPES,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.terminate()  # not kill: it ends what it started
        child.communicate(timeout=90)


def test_up_runs_the_hospitals_as_the_readme_says_and_prints_nothing_alarming(begun, tmp_path: Path):
    child = begun("--num_rounds", "2", "--eval_every", "1")
    out, error = child.communicate(timeout=240)
    assert child.returncode == 0, (out, error)
    assert error.splitlines() == ["weft: logs and kits are in weft-up."]
    *lines, last = out.splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["round"]["failures"] for entry in entries if "round" in entry] == [{}, {}]
    assert entries[-1]["state"] == "done"
    assert last == "weft-up/kits/server/runs/hospitals"
    run = weft.open_run(tmp_path / "weft-up" / "kits" / "server" / "runs" / "hospitals")
    assert list(run.summary["clients"]) == ["hospital_a", "hospital_b", "hospital_c"]
    assert run.summary["failures"] == {}
    for name in ("hospital_a", "hospital_b", "hospital_c"):
        kept = tmp_path / "weft-up" / "kits" / name / "weft" / "hospitals" / "adapter" / "adapter_model.safetensors"
        assert kept.is_file()
    assert alive(tmp_path) == []
    work = tmp_path / "weft-up"
    assert [path for path in (work, *work.rglob("*")) if path.stat().st_mode & 0o077 and not path.is_symlink()] == []


def interrupt_a_watcher(tmp_path: Path, tiny_model: Path) -> None:
    """Ctrl-C of `weft submit --wait` ends this process alone, and says that the run goes on."""
    keys = {"model_name_or_path": str(tiny_model), "use_peft": True, "num_rounds": 1000, "max_steps": 2}
    (tmp_path / "second.yaml").write_text(json.dumps(keys))
    words = ["submit", "second.yaml", "--wait", "--kit", "weft-up/kits/admin"]
    child = subprocess.Popen([sys.executable, "-m", "weft", *words], cwd=tmp_path, **PIPES)
    line = child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=30)
    assert child.returncode == 130, (line, out, error)
    assert error.splitlines()[-1].startswith("weft: interrupted; the run 'second' goes on at the server")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process(begun, tmp_path: Path, tiny_model: Path, number: signal.Signals):
    child = begun("--num_rounds", "1000", "--eval_every", "0")
    for line in child.stdout:
        if '"round"' in line:
            break
    assert len(alive(tmp_path)) >= 5  # a server, three sites, and their jobs
    if number == signal.SIGINT:
        interrupt_a_watcher(tmp_path, tiny_model)
        assert child.poll() is None
    child.send_signal(number)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)  # people are impatient
    out, error = child.communicate(timeout=90)
    assert child.returncode == 130, (out, error)
    assert error.splitlines() == ["weft: interrupted."]
    until = time.monotonic() + 10
    while alive(tmp_path) and time.monotonic() < until:
        time.sleep(0.2)
    assert alive(tmp_path) == []
