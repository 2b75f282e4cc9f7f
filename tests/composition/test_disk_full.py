"""A disk that is full: the run says which, and goes on when there is room."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import weft
from support.fake_sites import NAMES, FakeSites
from support.full_disk import no_file_over
from weft.cli import main
from weft.config import build
from weft.core import files
from weft.errors import RunError
from weft.launch.client import ClientBuilder
from weft.launch.commits import Commits
from weft.launch.trainer import Trainer
from weft.models.fingerprint import fingerprint
from weft.runtimes.mailbox import Mailbox
from weft.sites.agreement import own_config
from weft.sites.model_process import ModelProcess
from weft.sites.server import serve


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
    committed = Commits.commit
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:

        def commit(commits: Commits, behind) -> None:
            committed(commits, behind)
            if behind.state.round == 2:
                stack.enter_context(no_file_over(size))

        patch.setattr(Commits, "commit", commit)
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


def test_a_site_with_a_full_disk_says_so_and_no_path(run, sites: FakeSites, tmp_path: Path, tiny_model: Path):
    """One site's process may write no file as large as what it has to remember; the others go on."""
    (tmp_path / "site.yaml").write_text(
        yaml.safe_dump(
            {
                "data": sites.policies["hospital_a"].data.path,
                "accept": {"models": [str(tiny_model)], "min_report_rows": 1},
                "threads": 1,
            }
        )
    )
    folder = tmp_path / "full"
    process = ModelProcess(tmp_path / "site.yaml", folder, "hospital_a")
    with no_file_over(64_000):
        process.start()
    sites.mailboxes["hospital_a"] = Mailbox(process.work, process.progress)
    for site in sites.site_clients.values():
        site.version = version("weft")
    given = run | {"fed_alg": "scaffold", "use_peft": False, "num_rounds": 2, "min_clients": 2, "eval_every": 0}
    try:
        done = serve(given | {"silence_timeout": 60.0}, sites, list(NAMES), version("weft"))
    finally:
        process.close()
    rounds = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    failures = [line["failures"] for line in rounds if line["event"] == "round"]
    assert failures == [{"hospital_a": '"its disk is full; its own log says which"'}] * 2
    # Each folder that the site writes to is on this disk; the sentence names the fullest.
    assert re.search("The disk that holds '/.*' is full, .*: make room there", (folder / "site.log").read_text())
    assert str(tmp_path) not in json.dumps(rounds)


def test_a_site_without_room_for_a_new_run_refuses_it_with_that_reason(run, sites: FakeSites):
    own = own_config(sites.policies["hospital_a"], run, "hospital_a")
    base = fingerprint(ClientBuilder(build(own)).model)
    request = {"run": run, "id": "run", "index": 0, "clients": 3, "base": base, "birth": "b"}
    with no_file_over(16):
        answer = json.loads(sites.site_clients["hospital_a"].work(json.dumps(request).encode()))
    assert answer == {"refused": "its disk is full; its own log says which"}


def test_a_disk_without_room_for_a_log_ends_no_work_of_a_site(tmp_path: Path):
    """Where the folder of the log cannot be made, the process begins all the same; else its site seems hostile."""
    (tmp_path / "file").write_text("")
    process = ModelProcess(tmp_path / "site.yaml", tmp_path / "file" / "weft", "hospital_a")
    process.start()
    assert process._process is not None
    assert process._process.poll() is None
    process.close()


def test_a_result_that_has_no_room_never_looks_whole(keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The weights have room, the tokenizer's files have none; the result of before stays until the new one is whole."""
    keys = keys | {"num_rounds": 1, "eval_every": 0, "peft_lora_r": 1}
    limits = contextlib.ExitStack()
    finish = Trainer._finish

    def full(training: Trainer, state) -> None:
        limits.enter_context(no_file_over(10_000))
        finish(training, state)

    monkeypatch.setattr(Trainer, "_finish", full)
    with pytest.raises(RunError, match="is full"), limits:
        weft.train(keys)
    run = Path(str(keys["output_dir"]))
    assert not (run / "adapter").exists()
    assert not list(run.glob(".*.tmp"))
    monkeypatch.undo()
    weft.train(keys, resume=True)
    whole = {file.name: file.read_bytes() for file in (run / "adapter").iterdir()}
    monkeypatch.setattr(Trainer, "_finish", full)
    with pytest.raises(RunError, match="is full"), limits:
        weft.train(keys | {"num_rounds": 2}, resume=True)
    assert {file.name: file.read_bytes() for file in (run / "adapter").iterdir()} == whole
