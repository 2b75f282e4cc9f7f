"""Checkpoints that a thread writes while the rounds go on."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

import weft
from weft.cli import main
from weft.core.types import ServerState
from weft.errors import RunError
from weft.launch.client_memory import DiskMemory
from weft.launch.trainer import Trainer
from weft.runs import checkpoint
from weft.runs.layout import RunDir

AT_ONCE = {"num_rounds": 6, "max_steps": 1, "checkpoint_seconds": 1e-9, "save_total_limit": 10}
"""A checkpoint is due after every round, except while another is being written."""


def results(run: Path) -> dict[str, bytes]:
    found = [run / "metrics.jsonl", run / "adapter" / "adapter_model.safetensors"]
    return {file.name: file.read_bytes() for file in found}


def copy_if_there(file: str, copy: str) -> str:
    """Copy a file unless a round that goes on has deleted it since it was listed."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(file, copy)
    return copy


class Slow:
    """Saves that wait in their thread until two rounds have ended; the state must not change meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads, self.rounds = list[threading.Thread](), list[int]()
        self.during = 0
        self.saving = False
        save, record = checkpoint.save, Trainer._record

        def slow(run: RunDir, state: ServerState, extra: dict[str, object], **how: object) -> Path:
            self.threads.append(threading.current_thread())
            before = {name: value.clone() for name, value in state.params.items()}
            self.saving = True
            until, rounds = time.monotonic() + 1.0, self.during + 2
            is_main = threading.current_thread() is threading.main_thread()
            while not is_main and self.during < rounds and time.monotonic() < until:
                time.sleep(0.01)
            assert all(torch.equal(value, before[name]) for name, value in state.params.items())
            path = save(run, state, extra, **how)
            self.saving = False
            self.rounds.append(state.round)
            return path

        def noted(training: Trainer, done) -> None:
            self.during += self.saving
            record(training, done)

        monkeypatch.setattr(checkpoint, "save", slow)
        monkeypatch.setattr(Trainer, "_record", noted)


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedadam", "scaffold"])
def test_rounds_go_on_while_a_checkpoint_is_written_and_the_last_one_is_the_result(
    keys, tmp_path, monkeypatch, fed_alg: str
):
    keys = keys | AT_ONCE | {"fed_alg": fed_alg}
    whole = weft.train(keys | {"checkpoint_seconds": 0, "output_dir": str(tmp_path / "whole")})
    slow = Slow(monkeypatch)
    run = weft.train(keys)
    assert slow.during >= 2  # rounds that ended while a checkpoint was being written
    assert not slow.saving  # for the last one everything waits, whichever thread writes it
    assert any(thread is not threading.main_thread() for thread in slow.threads)
    assert len(slow.rounds) < 6
    assert slow.rounds[-1] == 6
    assert results(run.path) == results(whole.path)


def test_rounds_wait_where_sites_remember_something(keys, tmp_path):
    """A site cannot see the server's checkpoints, and keeps its memory of the last rounds alone."""
    kept = []
    for at_site in (True, False):
        memory = DiskMemory(RunDir(tmp_path / str(at_site)), at_site)
        for round in range(1, 6):
            memory.save("a", round, {"s": {"w": torch.tensor(round)}})
        kept.append(len(list(memory.run.client_dir("a").iterdir())))
    assert kept == [2, 5]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("too few")])
def test_a_run_that_is_interrupted_during_a_write_keeps_every_whole_round(keys, tmp_path, monkeypatch, error):
    keys = keys | AT_ONCE
    whole = weft.train(keys | {"output_dir": str(tmp_path / "whole")})
    with monkeypatch.context() as patch:
        slow = Slow(patch)
        record = Trainer._record

        def stop(training: Trainer, done) -> None:
            if done.state.round == 4:
                raise error
            record(training, done)

        patch.setattr(Trainer, "_record", stop)
        with pytest.raises(type(error)):
            weft.train(keys)
    assert not slow.saving
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
    assert max(RunDir(Path(str(keys["output_dir"]))).rounds) == 3
    assert main(["sft", "--output_dir", str(keys["output_dir"]), "--resume"]) == 0
    assert results(Path(str(keys["output_dir"]))) == results(whole.path)


@pytest.mark.parametrize(("fed_alg", "survivor"), [("fedavg", 1), ("fedavg", 2), ("scaffold", 1), ("ditto", 2)])
def test_a_checkpoint_that_lands_while_rounds_go_on_is_resumed_to_the_same_bytes(
    keys, tmp_path, monkeypatch, fed_alg: str, survivor: int
):
    """The folder is copied whenever a checkpoint has landed, with the lines of rounds after it: as a kill leaves it."""
    keys = keys | AT_ONCE | {"output_dir": str(tmp_path / "run"), "fed_alg": fed_alg}
    copies: list[Path] = []
    with monkeypatch.context() as patch:
        Slow(patch)
        save = checkpoint.save

        def copying(run: RunDir, *values: object, **how: object) -> Path:
            path = save(run, *values, **how)
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(run.path, copies[-1], copy_function=copy_if_there, ignore=shutil.ignore_patterns(".*.tmp"))
            return path

        patch.setattr(checkpoint, "save", copying)
        whole = weft.train(keys)
    killed = copies[survivor - 1]
    committed = max(RunDir(killed).rounds)
    assert 0 < committed < 6
    shutil.rmtree(whole.path / "checkpoints")
    expected = results(whole.path)
    shutil.rmtree(whole.path)
    killed.rename(whole.path)
    lines = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["round"] for line in lines) >= committed
    assert main(["sft", "--output_dir", str(whole.path), "--resume"]) == 0
    assert results(whole.path) == expected


def test_a_write_that_fails_in_the_thread_ends_the_run_as_one_that_fails_outside(keys, monkeypatch):
    save = checkpoint.save

    def full(run: RunDir, state: ServerState, *values: object, **how: object) -> Path:
        if state.round >= 2:
            raise OSError(errno.ENOSPC, "no space")
        return save(run, state, *values, **how)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(RunError) as refused:
        weft.train(keys | AT_ONCE | {"num_rounds": 50, "eval_every": 0})
    assert "The disk that holds '" in str(refused.value)
    assert "1 rounds are kept" in str(refused.value)
    lines = (Path(str(keys["output_dir"])) / "metrics.jsonl").read_text().splitlines()
    assert len(lines) < 10  # it is noticed at the next checkpoint, not at the end
