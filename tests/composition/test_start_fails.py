"""A start that fails leaves nothing behind, so that the corrected command is not refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import weft
from support.flags import flags
from support.rows import write_rows
from weft.cli import main
from weft.federation.client_host import ClientHost
from weft.launch import client as launch_client
from weft.runs import checkpoint


def of_words(tmp_path: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    return {"dataset_name": str(write_rows(tmp_path / "rows.jsonl", rows))}


WRONG = {
    "no model": lambda tmp: {"model_name_or_path": str(tmp / "none")},
    "a model without weights": lambda tmp: {"model_name_or_path": str(tmp / "hollow")},
    "no data": lambda tmp: {"dataset_name": str(tmp / "none.jsonl")},
    "broken data": lambda tmp: {"dataset_name": str(tmp / "broken.jsonl")},
    "columns of another kind": lambda tmp: of_words(tmp, [{"a": "b"}]),
    "more clients than rows": lambda tmp: of_words(tmp, [{"instruction": "a?", "output": "b"}]),
    "no row within the length": lambda tmp: {"seq_length": "8"},
    "a template that there is not": lambda tmp: {"template": "chat"},
    "rows longer than the context": lambda tmp: {"seq_length": "100000"},
    "modules that there are not": lambda tmp: {"peft_lora_target_modules": "nowhere"},
    "nothing to share": lambda tmp: {"share": "nowhere"},
}


@pytest.fixture
def places(tmp_path: Path, tiny_model: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "hollow")
    (tmp_path / "hollow" / "model.safetensors").unlink()
    (tmp_path / "broken.jsonl").write_text('{"instruction": "a?", "output": "b"}\n{"instruction\n')
    return tmp_path


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_left(keys, places, capsys, wrong):
    run = places / "runs" / "one"
    words = flags(keys | {"output_dir": str(run)} | WRONG[wrong](places))
    before = sorted(os.listdir(places))
    assert main(["sft", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir(places)) == before
    run.mkdir(parents=True)
    assert main(["sft", *words]) == 2
    assert os.listdir(run) == []
    (run / "mine.txt").write_text("mine")
    assert main(["sft", *words]) == 2
    assert (run / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("when", ["load", "first round"])
def test_what_breaks_before_a_round_is_done_leaves_nothing(keys, places, monkeypatch, error, when):
    run = Path(str(keys["output_dir"]))

    def broken(*_: object, **__: object):
        raise error("broken")

    words = "interrupted before a round was done; nothing is left in" if error is KeyboardInterrupt else "broken"
    with monkeypatch.context() as patch:
        patch.setattr(*((launch_client, "resident") if when == "load" else (ClientHost, "reply")), broken)
        with pytest.raises(error, match=words):
            weft.train(keys)
    assert not run.exists()
    assert weft.train(keys | {"num_rounds": 1}).finished
    # A run that is there is not lost by a start that fails: one that goes on, or one that would have overwritten it.
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for how in ({"resume": True, "num_rounds": 3}, {"overwrite": True, "fed_alg": "fedprox"}):
        with monkeypatch.context() as patch:
            patch.setattr(*((launch_client, "resident") if when == "load" else (ClientHost, "reply")), broken)
            with pytest.raises(error, match="interrupted" if error is KeyboardInterrupt else "broken"):
                weft.train(keys, **how)
        kept = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
        for volatile in (".lock", "split.json"):
            kept.pop(run / volatile, None)
        assert kept == {file: content for file, content in before.items() if file in kept}
        assert {file.name for file in before} - {file.name for file in kept} <= {".lock", "split.json"}
        assert not list(run.parent.glob(".*overwritten"))


def test_an_interrupt_before_the_first_round_is_done_says_what_is_left(keys, monkeypatch, capsys):
    def interrupted(*_: object, **__: object):
        raise KeyboardInterrupt

    words, run = ["sft", *flags(keys | {"num_rounds": 1}), "--quiet"], Path(str(keys["output_dir"]))
    with monkeypatch.context() as patch:
        patch.setattr(ClientHost, "reply", interrupted)
        assert main(words) == 130
        assert f"interrupted before a round was done; nothing is left in '{run}'." in capsys.readouterr().err
        assert not run.exists()
    assert main(words) == 0
    before = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(ClientHost, "reply", interrupted)
        assert main([*words, "--overwrite"]) == 130
    assert f"before a round was done; the former run is kept in '{run}'." in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


def test_work_that_is_done_is_kept_whatever_breaks_the_run(keys, monkeypatch):
    """Also what no checkpoint was due for: a run that breaks in its third round goes on behind the second."""
    replied, seen = ClientHost.reply, []

    def reply(client_host: ClientHost, message, *more):
        seen.append(message.round)
        if message.round == 2:
            raise RuntimeError("broken")
        return replied(client_host, message, *more)

    with monkeypatch.context() as patch:
        patch.setattr(ClientHost, "reply", reply)
        with pytest.raises(RuntimeError, match="broken"):
            weft.train(keys | {"eval_every": 0})
    assert weft.open_run(str(keys["output_dir"])).rounds == [2]
    assert weft.train(keys | {"eval_every": 0}, resume=True).finished


def test_verbs_that_write_elsewhere_leave_nothing(keys, tiny_model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "out"
    assert main(["emulate", str(tiny_model), "--out", str(out), "--keep_layers", "9"]) == 2
    assert main(["emulate", str(tmp_path / "none"), "--out", str(out), "--keep_layers", "2"]) == 2
    assert main(["split", *flags(keys | {"output_dir": str(out), "dataset_name": str(tmp_path / "none.json")})]) == 2
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    assert main(["split", *flags(keys | {"output_dir": str(tmp_path / "file" / "out")})]) == 2
    assert "give another --output_dir" in capsys.readouterr().err
    run = weft.train(keys | {"num_rounds": 1})
    assert main(["export", str(run.path), "--plug_in", str(tiny_model), "--out", str(out)]) == 2
    assert main(["export", str(run.path), "--client", "nobody", "--out", str(out)]) == 2
    damaged = run.path / "adapter" / "adapter_config.json"
    damaged.write_text(json.dumps(json.loads(damaged.read_text()) | {"r": 3}))
    assert main(["export", str(run.path), "--merge", "--out", str(out)]) == 2
    assert not (tmp_path / "deep").exists()
    assert main(["export", str(run.path), "--out", str(tmp_path / "file")]) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_split_is_not_written_over_that_of_a_run(keys, capsys):
    run = weft.train(keys | {"num_rounds": 1})
    split = (run.path / "split.json").read_bytes()
    words = flags(keys | {"num_clients": 5})
    assert main(["split", *words]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert main(["split", *words, "--dry_run"]) == 0
    assert (run.path / "split.json").read_bytes() == split


def test_a_checkpoint_that_cannot_be_written_is_no_checkpoint(keys, monkeypatch):
    def broken(*_: object, **__: object):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", broken)
        with pytest.raises(OSError, match="Input/output"):
            weft.train(keys)
    assert not Path(str(keys["output_dir"])).exists()
