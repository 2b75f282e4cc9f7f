"""A run that was interrupted is used as it is, and one that is done goes on, from any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import weft
from support.flags import flags
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.errors import ConfigError
from weft.launch.commits import Commits


@pytest.fixture
def kept(keys) -> dict[str, object]:
    """A run of five rounds, all of which keep their checkpoint."""
    return keys | {"num_rounds": 5, "checkpoint_seconds": 0, "save_model_freq": 1}


def interrupt(monkeypatch: pytest.MonkeyPatch, keys: dict[str, object], rounds: int, **how: object) -> None:
    """Train until so many rounds are done, and stop as Ctrl-C does."""
    with monkeypatch.context() as patch:
        committed = Commits.commit

        def commit(commits: Commits, behind) -> None:
            committed(commits, behind)
            if behind.state.round == rounds:
                raise KeyboardInterrupt

        patch.setattr(Commits, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            weft.train(keys, **how)


def adapter(folder: Path) -> dict:
    return {name: value.tolist() for name, value in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("fed_alg", ["fedavg", "local"])
def test_an_interrupted_run_gives_the_weights_of_any_round(kept, tmp_path, monkeypatch, capsys, fed_alg):
    keys = kept | {"fed_alg": fed_alg, "sample_clients": 3, "eval_every": 0}
    # A constant rate, so that a run of two rounds is the beginning of one of five.
    keys |= {"lr_scheduler_type": "constant"}
    client = ["--client", "client_1"] if fed_alg == "local" else []
    named = "client_1" if client else None
    interrupt(monkeypatch, keys | {"output_dir": str(tmp_path / "broken")}, 3)
    for rounds in (2, 3):
        whole = weft.train(keys | {"num_rounds": rounds, "output_dir": str(tmp_path / f"whole{rounds}")})
        out = tmp_path / f"out{rounds}"
        words = [] if rounds == 3 else ["--round", "2"]
        assert main(["export", str(tmp_path / "broken"), "--out", str(out), *client, *words]) == 0
        assert f"the model after round {rounds} of 5" in capsys.readouterr().err
        assert adapter(out) == adapter(whole.weights(named))
        assert (out / "tokenizer.json").exists()
    assert main(["chat", str(tmp_path / "broken"), "--prompt", "What?", "--max_new_tokens", "2", *client]) == 0
    assert main(["export", str(tmp_path / "broken"), "--merge", "--out", str(tmp_path / "merged"), *client]) == 0
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert main(["export", str(tmp_path / "broken"), "--round", "7", "--out", str(tmp_path / "x"), *client]) == 2
    assert "no checkpoint of round 7: write --round and one of 1, 2, 3" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    if client:
        assert main(["export", str(tmp_path / "broken"), "--out", str(tmp_path / "x")]) == 2
        assert "name one with --client" in capsys.readouterr().err
        assert main(["export", str(tmp_path / "broken"), "--client", "nobody", "--out", str(tmp_path / "x")]) == 2
        assert "no client 'nobody'" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_a_finished_run_is_extended(kept, tmp_path, capsys, monkeypatch):
    run = str(kept["output_dir"])
    assert main(["sft", *flags(kept | {"num_rounds": 2})]) == 0
    first = weft.open_run(run)
    assert first.finished
    before = (first.path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["sft", "--output_dir", run, "--resume", "--num_rounds", "5"]) == 0
    said = capsys.readouterr().err
    schedule = {"peak": 1e-3, "floor": 1e-6}
    assert "num_rounds was 2 and is now 5: from here on the learning rate follows a schedule over 5 rounds" in said
    lines = [json.loads(line) for line in (first.path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["round"]: line["learning_rate"] for line in lines if line["event"] == "round"}
    assert f"{rates[3]:.3g} in round 3 after {rates[2]:.3g} in round 2" in said
    assert schedule["floor"] < rates[2] < rates[3] < schedule["peak"]
    assert (first.path / "metrics.jsonl").read_bytes().startswith(before)
    assert weft.open_run(run).summary["rounds"] == 5
    assert weft.open_run(run).config.num_rounds == 5
    # What is done cannot be undone by a smaller number, and the remedy works.
    assert main(["sft", "--output_dir", run, "--resume", "--num_rounds", "3"]) == 2
    assert "has finished 5 rounds" in capsys.readouterr().err
    assert weft.open_run(run).config.num_rounds == 5
    assert main(["export", run, "--round", "3", "--out", str(tmp_path / "third")]) == 0


def test_an_extension_that_is_interrupted_is_not_taken_for_the_finished_run(kept, tmp_path, monkeypatch, capsys):
    run = weft.train(kept | {"num_rounds": 2})
    first = adapter(run.weights())
    interrupt(monkeypatch, kept, 4, resume=True)
    opened = weft.open_run(run.path)
    assert not opened.finished
    with pytest.raises(ConfigError, match="not finished"):
        _ = opened.summary
    assert adapter(opened.weights()) != first
    assert adapter(weft.open_run(run.path, round=2).weights()) == first


def test_flags_beside_resume_stand_for_changes_of_the_saved_run(kept, capsys):
    assert main(["sft", *flags(kept | {"num_rounds": 1})]) == 0
    run = str(kept["output_dir"])
    assert main(["sft", "--output_dir", run, "--resume", "--learning_rate", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "learning_rate was 0.001 and is now 0.5" in said
    assert said.count(" was ") == 1
    assert "No data" not in said
    assert main(["sft", "--resume", "--output_dir", run + "x"]) == 2
    assert "There is no run in" in capsys.readouterr().err


def test_a_run_is_gone_on_with_from_another_folder(kept, tiny_model, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "data").mkdir(parents=True)
    there.mkdir()
    (here / "base").symlink_to(tiny_model)
    for name in "abc":
        rows = [row | {"instruction": f"{row['instruction']} ({name})"} for row in colour_rows(40)]
        write_rows(here / "data" / f"{name}.jsonl", rows)
    clients = [{"name": name, "data": f"data/{name}.jsonl"} for name in "ab"]
    clients[0]["eval"] = "data/c.jsonl"
    own = {"model_name_or_path": "base", "dataset_name": None, "clients": clients, "output_dir": "runs/one"}
    own |= {"num_clients": None}
    monkeypatch.chdir(here)
    keys = kept | own | {"num_rounds": 1}
    weft.train(keys)
    saved = yaml.safe_load((here / "runs" / "one" / "config.yaml").read_text())
    assert saved["model_name_or_path"] == str(here / "base")
    assert saved["clients"][0] == {
        "name": "a",
        "data": str(here / "data" / "a.jsonl"),
        "eval": str(here / "data" / "c.jsonl"),
    }
    assert saved["output_dir"] == str(here / "runs" / "one")
    weft.train(keys, resume=True, num_rounds=2)
    monkeypatch.chdir(there)
    assert main(["sft", "--output_dir", "../here/runs/one", "--resume", "--num_rounds", "3"]) == 0
    assert main(["chat", "../here/runs/one", "--prompt", "What?", "--max_new_tokens", "2"]) == 0
    assert main(["export", "../here/runs/one", "--merge", "--out", "merged"]) == 0
    with pytest.raises(ConfigError, match=r"no model folder './base'"):
        weft.train(keys | {"model_name_or_path": "./base", "output_dir": "other"})
    # What is gone is not taken for another configuration.
    monkeypatch.chdir(here)
    (here / "data" / "b.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"no file or folder '/.*/b.jsonl'"):
        weft.train(keys, resume=True, num_rounds=3)
