"""The child process of a reward ends with its parent, and does not compute for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from weft.rewards.score import Claim, Judge

DEAF = """
import os, signal, time
from pathlib import Path


def reward(prompt, completion, answer):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    Path(prompt).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


def busy(prompt, completion, answer):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    while True:
        pass


def kind(prompt, completion, answer):
    return 1.0
"""
"""Rewards that switch off the alarm which would end them."""
PARENT = """
import sys
from weft.rewards.score import Claim, Judge
Judge(sys.argv[1], 60.0).score(Claim(sys.argv[2], "", ""))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "deaf.py"
    made.write_text(DEAF)
    return made


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waited(what, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no signal for it")
def test_a_reward_ends_with_a_parent_that_is_killed(file: Path, tmp_path: Path):
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, f"{file}:reward", str(note)])
    assert waited(lambda: note.exists() and note.read_text())
    child = int(note.read_text())
    assert alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert waited(lambda: not alive(child), 5.0), "the reward outlives its parent"


def test_a_reward_that_was_started_in_a_thread_outlives_the_thread(file: Path):
    """A site answers each message in a thread of its own: to Linux, that thread is the parent."""
    judge = Judge(f"{file}:kind", 5.0)
    thread = threading.Thread(target=judge.start)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert judge.score(Claim("", "", "")) == (1.0, None)


def test_a_reward_that_switches_off_its_alarm_computes_no_longer_than_its_limit(file: Path):
    """Nobody is left to kill it, as where the parent stands still."""
    with subprocess.Popen(
        [sys.executable, "-m", "weft.rewards.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps({"name": f"{file}:busy", "seconds": 0.1}).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline()) == {"ready": True}
        child.stdin.write(json.dumps(Claim("", "", "")._asdict()).encode() + b"\n")
        child.stdin.flush()
        try:
            assert child.wait(20) == -signal.SIGXCPU
        finally:
            child.kill()
