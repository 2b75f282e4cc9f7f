"""A run killed at any instant and resumed ends with the same bytes as one that was not."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from support.fork_server import ForkServer
from weft.runs.layout import RunDir

RESULTS = ("metrics.jsonl", "adapter/adapter_model.safetensors", "clients/*/adapter/adapter_model.safetensors")


@pytest.fixture(autouse=True)
def by_forks(forks: ForkServer) -> None:
    Process.forks = forks


class Process:
    """A `weft sft` of its own, whose words go to a file."""

    forks: ClassVar[ForkServer]

    def __init__(self, config: Path, *flags: str) -> None:
        self.file = config.with_suffix(f".{time.monotonic_ns()}.log")
        self.pid = self.forks.start(["sft", "--config", str(config), *flags], self.file)

    def running(self) -> bool:
        return self.forks.code(self.pid, wait=False) is None

    def stop(self, with_signal: signal.Signals) -> int:
        os.kill(self.pid, with_signal)
        return self.wait()

    def wait(self) -> int:
        code = self.forks.code(self.pid, wait=True)
        assert code is not None
        return code

    def said(self) -> str:
        return self.file.read_text()


def start(config: Path, *flags: str) -> Process:
    return Process(config, *flags)


def results(run: Path) -> dict[str, bytes]:
    files = [file for pattern in RESULTS for file in sorted(run.glob(pattern))]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def begun(run: Path, process: Process, rounds: int) -> None:
    """Wait until a process has logged some more rounds, or is done."""
    timing, seen = run / "timing.jsonl", 0
    before = timing.read_bytes().count(b"\n") if timing.exists() else 0
    while process.running() and seen < before + rounds:
        time.sleep(0.005)
        seen = timing.read_bytes().count(b"\n") if timing.exists() else 0


@pytest.fixture
def config(keys, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(keys | {"num_rounds": 30, "checkpoint_seconds": 0, "sample_clients": 1}))
    return path


IN_A_THREAD = "--checkpoint_seconds 0.0001"
"""A checkpoint is due after every round, and is written while the next ones are computed."""
ANSWERS = "--objective grpo --reward length --max_new_tokens 4 --num_generations 4 --batch_size 1 --grpo_iterations 2"
CODECS = "--codec sparse_loco --codec_args keep=300 --codec_down int4"
"""What a client has not sent yet, and what it holds, are in its memory; the server remembers who holds what."""

MASKS = "--protection masks --protection_args bits=9 --sample_clients 3"
"""Clients keep their secrets, and the server the bounds that it announces."""
CKKS = "--protection ckks --sample_clients 3"
"""Ciphertexts are drawn anew, and what is opened of them does not depend on that."""
HE = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="the extra he is not installed")


@pytest.mark.parametrize(
    ("fed_alg", "more"),
    [
        ("fedavg", ""),
        ("fedavg", IN_A_THREAD),
        ("local", ""),
        ("scaffold", ""),
        ("fedavg", ANSWERS),
        ("fedavg", CODECS),
        ("fedavg", MASKS),
        pytest.param("fedavg", CKKS, marks=HE),
    ],
)
def test_killed_runs_end_bit_identical(config: Path, fed_alg: str, more: str, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--fed_alg", fed_alg, *more.split(), "--num_rounds", "18", "--output_dir"]
    undisturbed = start(config, *flags, str(whole))
    process = start(config, *flags, str(broken))
    kills, rng = 0, random.Random(0)
    for _ in range(4):
        begun(broken, process, rng.randint(1, 4))
        time.sleep(rng.random() * 0.05)
        if not process.running():
            break
        process.stop(signal.SIGKILL)
        kills += 1
        process = start(config, *flags, str(broken), "--resume")
    assert process.wait() == 0, process.said()
    assert undisturbed.wait() == 0, undisturbed.said()
    assert kills > 0
    assert results(broken) == results(whole)
    assert len(results(whole)) == (4 if fed_alg == "local" else 2)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(config: Path, tmp_path: Path):
    run = tmp_path / "interrupted"
    process = start(config, "--output_dir", str(run))
    begun(run, process, 3)
    assert process.stop(signal.SIGINT) == 130
    said = process.said()
    assert "Traceback" not in said
    command = said.strip().splitlines()[-1].partition("Go on with: weft ")[2].split()
    assert command == ["sft", "--output_dir", str(run), "--resume"]
    again = subprocess.run([sys.executable, "-m", "weft.cli", *command], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    undisturbed = start(config, "--output_dir", str(tmp_path / "whole"))
    assert undisturbed.wait() == 0
    assert results(run) == results(tmp_path / "whole")


def test_a_second_process_in_the_same_run_is_refused(config: Path, tmp_path: Path):
    run = tmp_path / "shared"
    first = start(config, "--output_dir", str(run), "--num_rounds", "100000")
    begun(run, first, 1)
    second = start(config, "--output_dir", str(run), "--num_rounds", "100000", "--resume")
    assert second.wait() == 2
    assert "in use" in second.said()
    first.stop(signal.SIGKILL)
    assert RunDir(run).holds_run
