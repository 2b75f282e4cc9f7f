"""The record of a run: what was changed by hand is named, and rounds that are repeated give the same bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weft
from support.kills import in_a_child
from weft.cli import main
from weft.core.chain import to_line
from weft.errors import ConfigError
from weft.launch.recorder import PACKAGES
from weft.launch.verify import verify
from weft.runs.chain import START, read_chain
from weft.runs.layout import RunDir

ALL = {"save_model_freq": 1, "checkpoint_seconds": 0, "num_rounds": 4, "eval_every": 2, "dtype": "float32"}
"""Every state is kept."""


@pytest.fixture
def run(keys) -> Path:
    return weft.train(keys | ALL).path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Return the exit code of `weft verify` and what it printed."""
    code = main(["verify", *words])
    out, err = capsys.readouterr()
    return code, out + err


def test_a_run_as_it_was_written_is_intact_and_its_card_has_the_head(run: Path, capsys):
    code, words = said(capsys, str(run))
    assert code == 0, words
    head = verify(RunDir(run)).head
    assert f"The record of 4 rounds is intact; its head is {head}." in words
    assert f"| record of the run | `{head}` |" in (run / "adapter" / "README.md").read_text()
    assert said(capsys, str(run), "--head", head)[0] == 0
    code, words = said(capsys, str(run), "--head", "0" * 64)
    assert code == 1
    assert "no line has the hash" in words


def test_each_line_of_a_round_says_what_was_received(run: Path):
    rounds = [entry for entry in read_chain(run / "chain.jsonl")[0] if entry["event"] == "round"]
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    for entry in rounds:
        logged = next(line for line in lines if line["event"] == "round" and line["round"] == entry["round"])
        assert list(entry["received"]) == entry["clients"] == logged["clients"]
        assert all(len(digest) == 64 for digests in entry["received"].values() for digest in digests)
    assert len({entry["state"] for entry in rounds}) == 4


def edit_line(run: Path, name: str, number: int, change: Callable[[dict], None]) -> None:
    """Change one line of JSON in place."""
    lines = (run / name).read_text().splitlines()
    line = json.loads(lines[number])
    change(line)
    lines[number] = json.dumps(line)
    (run / name).write_text("\n".join(lines) + "\n")


def flatter(run: Path) -> None:
    edit_line(run, "metrics.jsonl", 2, lambda line: line.update(loss=0.1))


def other_key(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))


def other_data(run: Path) -> None:
    file = run / "fingerprints.json"
    made = json.loads(file.read_text())
    made["made_from"] = dict.fromkeys(made["made_from"], "0" * 32)
    file.write_text(json.dumps(made))


def other_weights(run: Path) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    save_file({name: value + 1e-3 for name, value in load_file(file).items()}, file)


def other_checkpoint(run: Path) -> None:
    """Change a tensor of a checkpoint, and the digest beside it, so that it can be loaded."""
    import hashlib

    from safetensors import safe_open

    folder = run / "checkpoints" / "round_000002"
    file = folder / "server.safetensors"
    with safe_open(file, framework="pt") as opened:
        contents = opened.metadata()
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, file, metadata=contents)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))


def forged_line(run: Path) -> None:
    edit_line(run, "chain.jsonl", 2, lambda line: line.update(clients=["somebody"]))


def other_spelling(run: Path) -> None:
    """Write a line of the record otherwise, with the same meaning."""
    lines = (run / "chain.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('{"', '{"clients": ["somebody"], "', 1)
    (run / "chain.jsonl").write_text("\n".join(lines) + "\n")


def other_split(run: Path) -> None:
    (run / "split.json").write_text("{}")


def shorter(run: Path) -> None:
    """Take the last two lines of the record away."""
    lines = (run / "chain.jsonl").read_text().splitlines()
    (run / "chain.jsonl").write_text("\n".join(lines[:-2]) + "\n")


def without_end(run: Path) -> None:
    """Take the last line of the record away, and put other results in place."""
    lines = (run / "chain.jsonl").read_text().splitlines()
    (run / "chain.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    (run / "summary.json").unlink()
    other_weights(run)


def several_fields(run: Path) -> None:
    edit_line(run, "metrics.jsonl", 2, lambda line: line.update(loss=0.1, rows=1))


def without_line(run: Path, name: str, number: int) -> None:
    lines = (run / name).read_text().splitlines()
    del lines[number]
    (run / name).write_text("\n".join(lines) + "\n")


def twice(run: Path) -> None:
    """Put a line of the record in once more, at the end of the rounds."""
    lines = (run / "chain.jsonl").read_text().splitlines()
    (run / "chain.jsonl").write_text("\n".join([*lines[:-1], lines[2], lines[-1]]) + "\n")


def later_round(run: Path) -> None:
    edit_line(run, "chain.jsonl", 2, lambda line: line.update(round=3))


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (several_fields, "metrics.jsonl (round 2, the fields 'loss' and 'rows'): line 3 was changed."),
    (lambda run: without_line(run, "metrics.jsonl", 2), "metrics.jsonl (round 2): 1 line before line 3 is missing."),
    (lambda run: without_line(run, "metrics.jsonl", -1), "metrics.jsonl (round 4): 1 line at its end is missing."),
    (
        lambda run: (run / "metrics.jsonl").write_text('{"event": "round"}\n' + (run / "metrics.jsonl").read_text()),
        "metrics.jsonl: from line 1 on it has 1 line that the record has not.",
    ),
    (lambda run: without_line(run, "chain.jsonl", 2), "chain.jsonl (round 2): the record of round 2 is missing"),
    (lambda run: without_line(run, "chain.jsonl", 4), "chain.jsonl (round 4): the record of round 4 is missing"),
    (lambda run: without_line(run, "chain.jsonl", 0), "chain.jsonl: its first line is missing"),
    (twice, "chain.jsonl (round 2): line 6 was put in: the record has this round already."),
    (later_round, "chain.jsonl (round 3): line 3 was changed"),
]


def test_one_change_by_hand_is_one_finding_that_says_what_it_was(run: Path, tmp_path: Path):
    for number, (change, words) in enumerate(CHANGES):
        copy = tmp_path / f"copy_{number}" / run.name
        shutil.copytree(run, copy)
        assert not verify(RunDir(copy)).findings
        change(copy)
        assert [finding.sentence()[: len(words)] for finding in verify(RunDir(copy)).findings] == [words]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_end, "chain.jsonl (round 4): it has no line of the end of the run, though there are results"),
        (flatter, "metrics.jsonl (round 2, the field 'loss'): line 3 was changed"),
        (other_key, "config.yaml (the field 'learning_rate')"),
        (other_data, "fingerprints.json (the field 'the tokenizer')"),
        (other_weights, "adapter/adapter_model.safetensors (round 4)"),
        (other_checkpoint, "checkpoints/round_000002 (round 2): its tensors are not those that the round ended with"),
        (forged_line, "chain.jsonl (round 2): line 3 was changed"),
        (other_spelling, "chain.jsonl (round 2): line 3 was changed"),
        (other_split, "split.json (round 4): its content is not what the run wrote"),
        (shorter, "chain.jsonl (round 4): it ends before the checkpoint of the round"),
    ],
)
def test_what_was_changed_by_hand_is_named(run: Path, change: Callable[[Path], None], named: str, capsys):
    change(run)
    code, words = said(capsys, str(run))
    assert code == 1
    assert named in words
    assert "not as it was written" in words


def test_who_writes_the_whole_record_anew_is_found_by_the_checkpoints_or_the_card(run: Path, capsys):
    entries, chain, lines = read_chain(run / "chain.jsonl")[0], START, b""
    entries[2]["clients"] = ["somebody"]
    for entry in entries:
        chain, line = to_line(chain, entry)
        lines += line
    (run / "chain.jsonl").write_bytes(lines)
    code, words = said(capsys, str(run))
    assert code == 1
    assert "written anew" in words
    assert "adapter/README.md" in words


MASKED = {"protection": "masks", "sample_clients": 3}
BY_ROWS = {"use_peft": False, "privacy_unit": "row", "noise_multiplier": 1.0, "clip_norm": 0.1}
BY_CLIENTS = {"privacy_unit": "client", "noise_multiplier": 1.0, "clip_norm": 0.1}
CODECS = {"codec": "sparse_loco", "codec_args": {"keep": 300}, "codec_down": "int4"}


@pytest.mark.parametrize(
    "more",
    [
        {"fed_alg": "scaffold"},
        {"fed_alg": "fedadam"},
        {"canaries": 8, "canary_tokens": 8, "num_rounds": 3},
        BY_CLIENTS,
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in (
                {"fed_alg": "fedbuff"},
                {"fed_alg": "central"},
                {"fed_alg": "local"},
                {"aggregator": "median", "sample_clients": 3},
                {"client_failure_rate": 0.4, "min_clients": 2},
                MASKED,
                BY_ROWS,
                CODECS,
            )
        ),
    ],
)
def test_rounds_that_are_repeated_give_the_same_bits(keys, more: dict[str, object], capsys):
    run = weft.train(keys | ALL | more).path
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    code, words = said(capsys, str(run), "--replay", "4")
    assert code == 0, words
    assert words.count("all bits are equal") >= 3
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_budget_that_counts_on_hidden_cohorts_hides_them_in_the_record_too(keys):
    run = weft.train(keys | ALL | BY_CLIENTS).path
    entries = read_chain(run / "chain.jsonl")[0]
    rounds = [entry for entry in entries if entry["event"] == "round"]
    assert all(entry["epsilon"] > 0 and "ledger" in entry for entry in rounds)
    assert not any(name in entry for entry in rounds for name in ("received", "clients", "refused"))
    assert "client_" not in json.dumps(rounds)


def test_a_round_with_a_forged_update_is_found_by_its_replay(keys, capsys, monkeypatch):
    """A server that says that it received something else than it did: its chain fits, the replay does not."""
    from weft.federation import record

    digest = record.reply_digest
    with monkeypatch.context() as patch:
        patch.setattr(record, "reply_digest", lambda reply: digest(replace(reply, weight=reply.weight + 1)))
        patch.setattr("weft.launch.recorder.state_digest", lambda state: "0" * 64)
        run = weft.train(keys | ALL | {"num_rounds": 1}).path
    patched = verify(RunDir(run))
    assert [finding.file for finding in patched.findings] == ["checkpoints/round_000001"]
    shutil.rmtree(run / "checkpoints" / "round_000001")
    code, words = said(capsys, str(run), "--replay", "1")
    assert code == 1
    assert "bits differ; replies of client_" in words


def test_on_another_version_it_is_said_that_rounds_are_equal_up_to_rounding(keys, capsys, monkeypatch, tmp_path: Path):
    with monkeypatch.context() as patch:
        patch.setattr("weft.launch.recorder.versions", lambda: dict.fromkeys(("python", *PACKAGES), "0.1"))
        run = weft.train(keys | ALL | {"num_rounds": 2, "seed": 5}).path
    code, words = said(capsys, str(run), "--replay", "2")
    assert code == 0, words
    assert "torch was 0.1 and is " in words
    assert "equal only up to rounding" in words
    # Another machine sums in another order: a difference of the last bits is told as a number.
    multiply = torch.Tensor.mul
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "silu", lambda x, inplace=False: multiply(x, torch.sigmoid(x)) * (1 + 1e-7))
        code, words = said(capsys, str(run), "--replay", "2")
        assert code == 0, words
        assert "of the length of the round's step" in words
        assert "bits differ" in words
        # On the same machine and version such a difference is no rounding.
        here = weft.train(keys | ALL | {"num_rounds": 2, "seed": 5, "output_dir": str(tmp_path / "here")}).path
    code, words = said(capsys, str(here), "--replay", "2")
    assert code == 1, words


def test_a_repeated_round_that_nothing_can_be_compared_with_does_not_pass():
    from weft.launch.replay import Replayed, Replays, _chosen

    elsewhere = {"torch": ["0.1", "0.2"]}
    assert not Replays([Replayed(2, False)], elsewhere).passed
    assert Replays([Replayed(2, False, (), 1e-6)], elsewhere).passed
    assert Replays([Replayed(2, True)], elsewhere).passed
    # Where bits may differ, rounds whose state after is on disk are repeated first.
    assert all(_chosen([1, 2, 3, 4], {2, 4}, 2) == [2, 4] for _ in range(20))
    assert {2, 4} < set(_chosen([1, 2, 3, 4], {2, 4}, 3))
    assert len({tuple(_chosen([1, 2, 3, 4], set(), 2)) for _ in range(200)}) == 6


def test_a_run_that_is_overwritten_leaves_no_best_or_aligned_model(keys):
    run = weft.train(keys | ALL | {"num_rounds": 1}).path
    for name in ("best", "aligned"):
        (run / name / "adapter").mkdir(parents=True)
        (run / name / "adapter" / "adapter_model.safetensors").write_bytes(b"of the run before")
    weft.train(keys | ALL | {"num_rounds": 1}, overwrite=True)
    assert not (run / "best").exists()
    assert not (run / "aligned").exists()


def test_bad_input(run: Path, keys, capsys, tmp_path: Path):
    assert said(capsys, str(tmp_path / "nothing"))[0] == 2
    code, words = said(capsys, str(run), "--authority", "rootCA.pem")
    assert code == 2
    assert "has no sites" in words
    assert said(capsys, str(run), "--replay", "-1")[0] == 2
    assert said(capsys, str(run), "--head", "12")[0] == 2
    (run / "chain.jsonl").unlink()
    code, words = said(capsys, str(run))
    assert code == 2
    assert "an older version made it: resume it" in words
    weft.train(keys | ALL | {"num_rounds": 6}, resume=True)
    code, words = said(capsys, str(run))
    assert code == 1
    assert "rounds 1 to 4 are not in it" in words


def test_a_broken_record_is_not_continued(run: Path, keys):
    forged_line(run)
    with pytest.raises(ConfigError, match=r"changed by hand \(line 3 does not fit"):
        weft.train(keys | ALL | {"num_rounds": 6}, resume=True)


def test_a_run_that_goes_on_with_other_keys_says_so_and_only_later_rounds_are_repeated(run: Path, keys, capsys):
    weft.train(keys | ALL | {"num_rounds": 6}, resume=True)
    entries = read_chain(run / "chain.jsonl")[0]
    changed = [entry for entry in entries if entry["event"] == "changed"]
    assert [entry["config"] for entry in changed] == [{"num_rounds": 6}]
    assert changed[0]["after"] == 4
    code, words = said(capsys, str(run), "--replay", "6")
    assert code == 0, words
    assert "2 of 6 rounds can be repeated" in words


@pytest.mark.slow
def test_a_kill_at_any_flush_or_rename_leaves_a_run_that_ends_with_the_same_record(keys, tmp_path: Path, capsys):
    keys = keys | {"num_rounds": 2, "checkpoint_seconds": 0, "max_steps": 1, "eval_every": 0}
    whole = weft.train(keys | {"output_dir": str(tmp_path / "whole")}).path
    kills = 0
    for kill_at in range(1, 200, 5):
        path = tmp_path / f"killed_{kill_at}"
        own = keys | {"output_dir": str(path)}
        code = in_a_child(lambda own=own: weft.train(own), kill_at=kill_at)
        if code == 0:
            break
        assert code == 9
        kills += 1
        weft.train(own, resume=(path / "config.yaml").exists())
        assert (path / "chain.jsonl").read_bytes() == (whole / "chain.jsonl").read_bytes()
        assert not verify(RunDir(path)).findings
    assert kills >= 5


def test_more_rounds_than_a_run_has_are_all_that_it_has(run: Path, capsys):
    """It was said that states of other rounds are not kept, where there are no other rounds."""
    code, words = said(capsys, str(run), "--replay", "9")
    assert code == 0, words
    assert words.count("all bits are equal") == 4
    assert "not kept" not in words
