"""A disk that is full: the run says which, and goes on when there is room."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from pathlib import Path

import pytest

import weft
from weft.cli import main
from weft.core import files
from weft.errors import RunError
from weft.launch.trainer import Trainer


@contextlib.contextmanager
def no_file_over(size: int):
    """Let the system refuse to write more than that into one file, as it refuses what a disk has no room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def results(run: Path) -> dict[str, bytes]:
    found = [run / "metrics.jsonl", run / "adapter" / "adapter_model.safetensors"]
    return {file.name: file.read_bytes() for file in found}


@pytest.mark.parametrize("fed_alg", ["fedavg", "scaffold"])
@pytest.mark.parametrize("size", [64, 2500, 6000])
@pytest.mark.slow
def test_when_a_disk_fills_it_is_named_and_the_run_can_be_resumed(keys, tmp_path, monkeypatch, fed_alg, size):
    """Of these files no line of a log, no server state, and no client memory has room."""
    keys = keys | {"num_rounds": 4, "checkpoint_seconds": 0, "fed_alg": fed_alg}
    whole = weft.train(keys | {"output_dir": str(tmp_path / "whole")})
    run = tmp_path / "broken"
    committed = Trainer._commit
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:

        def commit(training: Trainer, behind) -> None:
            committed(training, behind)
            if behind.state.round == 2:
                stack.enter_context(no_file_over(size))

        patch.setattr(Trainer, "_commit", commit)
        with pytest.raises(RunError) as refused:
            weft.train(keys | {"output_dir": str(run)})
    said = str(refused.value)
    assert "The disk that holds '" in said
    assert f"go on with `weft sft --output_dir {run} --resume`: 2 rounds are kept" in said
    assert not list(run.rglob("*.tmp"))
    assert main(["sft", "--output_dir", str(run), "--resume"]) == 0
    assert results(run) == results(whole.path)


def test_a_start_without_room_leaves_nothing(keys, tmp_path):
    with no_file_over(64), pytest.raises((RunError, weft.errors.ConfigError)) as refused:
        weft.train(keys)
    assert not Path(str(keys["output_dir"])).exists()
    assert "go on" not in str(refused.value)


def test_an_export_without_room_leaves_nothing(keys, tmp_path, capsys):
    run = weft.train(keys | {"num_rounds": 1})
    (tmp_path / "empty").mkdir()
    for out in ("new/deep", "empty"):
        with no_file_over(6000):
            assert main(["export", str(run.path), "--merge", "--out", str(tmp_path / out)]) == 1
        assert "is full" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert os.listdir(tmp_path / "empty") == []


def test_the_fullest_disk_is_the_one_that_is_named(tmp_path, monkeypatch):
    room = {str(tmp_path / "a"): 5, str(tmp_path / "b"): 3_500_000}
    monkeypatch.setattr(files, "_room", lambda folder: room[str(folder)])
    assert files.full_disk([tmp_path / "b", tmp_path / "a"]).startswith(
        f"The disk that holds '{tmp_path / 'a'}' is full"
    )
    assert "3.5 MB are free" in files.full_disk([tmp_path / "b"])
    assert files.is_full(OSError(errno.ENOSPC, "no space"))
    assert not files.is_full(OSError(errno.ENOENT, "no file"))
    assert not files.is_full(ValueError("(os error 28)"))


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_modes_of_written_files_follow_the_umask(keys, tmp_path, umask):
    former = os.umask(umask)
    try:
        run = weft.train(keys | {"num_rounds": 1, "fed_alg": "scaffold"})
        assert main(["export", str(run.path), "--merge", "--out", str(tmp_path / "merged")]) == 0
        weft.train(keys | {"num_rounds": 1, "use_peft": False, "output_dir": str(tmp_path / "full")})
    finally:
        os.umask(former)
    written = [
        file for folder in ("run", "merged", "full") for file in (tmp_path / folder).rglob("*") if file.is_file()
    ]
    assert len([file for file in written if file.suffix == ".safetensors"]) >= 6
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o666 & ~umask}
