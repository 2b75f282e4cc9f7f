"""A start that fails leaves a run directory as it was."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from weft.core.types import ServerState
from weft.errors import ConfigError
from weft.runs import checkpoint
from weft.runs.layout import RunDir

CONFIG = {"fed_alg": "fedavg", "num_rounds": 3}
VOLATILE = frozenset({"num_rounds"})


class Failed(Exception):
    """A start that went wrong."""


def create(path: Path, config: dict = CONFIG, *, resume: bool = False, overwrite: bool = False) -> RunDir:
    return RunDir.create(path, config, resume=resume, overwrite=overwrite, volatile=VOLATILE)


def begin(path: Path, rounds: int = 0, **how: object) -> None:
    """Begin a run that fails after some rounds."""
    with suppress(Failed), create(path, **how) as run:
        run.metrics_file.write_text("new")
        run.client_dir("a").mkdir(parents=True, exist_ok=True)
        run.split_file.write_text("new")
        if rounds:
            checkpoint.save(run, ServerState({"w": torch.zeros(2)}, round=rounds), {})
        raise Failed


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_failed_start_removes_what_it_made_and_keeps_what_was_there(tmp_path):
    begin(tmp_path / "deep" / "er" / "run")
    assert os.listdir(tmp_path) == []
    (tmp_path / "deep").mkdir()
    begin(tmp_path / "deep" / "er" / "run")
    assert os.listdir(tmp_path / "deep") == []
    (tmp_path / "empty").mkdir()
    begin(tmp_path / "empty")
    assert os.listdir(tmp_path / "empty") == []
    create(tmp_path / "empty").close()


def test_a_failed_start_keeps_a_written_split_and_files_that_came_meanwhile(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "split.json").write_text("old")
    begin(run)
    assert os.listdir(run) == ["split.json"]
    (run / "split.json").unlink()
    with suppress(Failed), create(run):
        (run / "my notes.txt").write_text("mine")
        raise Failed
    assert os.listdir(run) == ["my notes.txt"]


def test_a_run_with_a_checkpoint_stays(tmp_path):
    begin(tmp_path / "run", rounds=1)
    assert RunDir(tmp_path / "run").holds_run
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="holds a run already"):
        create(tmp_path / "run")


def test_a_run_whose_overwriting_failed_is_there_again(tmp_path):
    begin(tmp_path / "run", rounds=1)
    (tmp_path / "run" / "my notes.txt").write_text("mine")
    before = content(tmp_path / "run")
    begin(tmp_path / "run", overwrite=True, config=CONFIG | {"fed_alg": "local"})
    assert content(tmp_path / "run") == before
    assert os.listdir(tmp_path) == ["run"]
    begin(tmp_path / "run", rounds=2, overwrite=True, config=CONFIG | {"fed_alg": "local"})
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["round_000002"]
    assert os.listdir(tmp_path) == ["run"]


def test_a_run_whose_overwriting_was_killed_is_overwritten_or_comes_back(tmp_path):
    begin(tmp_path / "run", rounds=1)
    before = content(tmp_path / "run")
    killed = create(tmp_path / "run", CONFIG | {"fed_alg": "local"}, overwrite=True)
    killed.metrics_file.write_text("of a start that was killed")
    killed.close()
    begin(tmp_path / "run", overwrite=True)
    assert content(tmp_path / "run") == before


def test_a_resume_that_failed_leaves_the_configuration(tmp_path):
    begin(tmp_path / "run", rounds=1)
    before = content(tmp_path / "run")["config.yaml"]
    with pytest.raises(Failed), create(tmp_path / "run", CONFIG | {"num_rounds": 9}, resume=True):
        raise Failed
    assert content(tmp_path / "run")["config.yaml"] == before
    begin(tmp_path / "run", rounds=2, resume=True, config=CONFIG | {"num_rounds": 9})
    assert b"num_rounds: 9" in content(tmp_path / "run")["config.yaml"]


def test_a_lock_that_was_removed_while_it_was_taken_is_taken_anew(tmp_path, monkeypatch):
    """A start that fails removes its lock; whoever opened the file just before must not believe to hold it."""
    taken = os.open
    removed = []

    def opened(path, *flags):
        descriptor = taken(path, *flags)
        if str(path).endswith(".lock") and not removed:
            removed.append(path)
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    with create(tmp_path / "run") as run:
        assert removed
        assert (run.path / ".lock").exists()


def test_what_a_kill_left_of_config_yaml_goes_with_the_next_start(tmp_path):
    run = tmp_path / "run"
    create(run).close()
    left = run / ".config.yaml.123.tmp"
    left.write_text("half a")
    create(run, resume=True).close()
    assert not left.exists()
