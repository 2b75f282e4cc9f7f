"""DiLoCo in fragments: a part of the parameters travels in a round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from weft.algorithms.diloco import _part
from weft.errors import ConfigError


def rounds(run) -> list[dict]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "round"]


def weights(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*.safetensors")
    return load_file(file)


@pytest.fixture
def streamed(keys) -> dict:
    own = {"fed_alg": "diloco", "use_peft": False, "dtype": "float32", "sample_clients": 3, "num_rounds": 6}
    return keys | own | {"eval_every": 0, "fed_args": {"fragments": 3, "outer_lr": 0.7}}


def test_parts_hold_everything_once_and_are_alike_in_size():
    params = {f"layers.{n}.{kind}": torch.zeros(10) for n in range(12) for kind in "ab"} | {"embed": torch.zeros(40)}
    parts = [_part(params, 4, round) for round in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(params)
    sizes = [sum(value.numel() for value in part.values()) for part in parts]
    assert sizes == [80, 60, 80, 60] or max(sizes) - min(sizes) <= 20
    assert _part(params, 4, 5).keys() == parts[1].keys()


def test_the_traffic_of_a_round_is_divided(streamed):
    whole = weft.train(streamed | {"fed_args": {}, "output_dir": streamed["output_dir"] + "-whole"})
    run = weft.train(streamed)
    full, parts = rounds(whole)[0], rounds(run)
    assert parts[0]["bytes_down"] == full["bytes_down"]
    assert sum(line["bytes_up"] for line in parts[:3]) == full["bytes_up"]
    assert sum(line["bytes_down"] for line in parts[1:4]) == full["bytes_down"]
    # The embeddings are one block, most of this tiny model.
    assert max(line["bytes_up"] for line in parts) < 0.8 * full["bytes_up"]
    begun = weft.train(
        streamed | {"num_rounds": 1, "learning_rate": 0.0, "output_dir": streamed["output_dir"] + "-none"}
    )
    assert run.summary["eval"]["loss"] < begun.summary["eval"]["loss"] - 0.3


def test_a_round_of_streaming_equals_the_one_worked_by_hand(streamed):
    """Two clients, outer learning rate 1, no momentum: after its round a part is the clients' mean, others wait."""
    from weft.algorithms.diloco import ANCHOR, DELTA, LOCAL, DiLoCo
    from weft.core.types import LocalWork, Total

    algorithm = DiLoCo(outer_lr=1.0, momentum=0.0, inner_state="reset", fragments=2)
    begun = {"0.w": torch.tensor([1.0]), "1.w": torch.tensor([10.0])}
    state = algorithm.init(begun)
    memories: dict[str, dict] = {"a": {}, "b": {}}
    moves = {"a": 0.5, "b": 1.5}
    from weft.federation.state import advance

    for _ in range(3):
        deltas = {}
        for client, move in moves.items():
            task = algorithm.task(state, client, state.round)
            assert len(task.params) == (2 if state.round == 0 else 1)
            rule = algorithm.rule(task, memories[client])
            start = rule.begin(task.params)
            done = rule.finish(LocalWork(start, {name: value + move for name, value in start.items()}, 1, 0.1))
            memories[client], deltas[client] = done.memory, done.streams[DELTA]
        mean = {name: (deltas["a"][name] + deltas["b"][name]) / 2 for name in deltas["a"]}
        state = advance(algorithm, state, Total({DELTA: mean}, ("a", "b"), 2.0), {})
    # Round 0 moves part 0 by 1; round 1 part 1 by two rounds of 1; round 2 part 0 again, by two.
    assert state.params["0.w"].item() == pytest.approx(1 + 1 + 2)
    assert state.params["1.w"].item() == pytest.approx(10 + 2)
    assert memories["a"][LOCAL]["1.w"].item() == pytest.approx(12 + 0.5)
    assert memories["a"][ANCHOR]["1.w"].item() == pytest.approx(12)


def test_who_missed_a_round_is_sent_everything(streamed):
    run = weft.train(streamed | {"client_failure_rate": 0.3, "num_rounds": 8})
    lines = rounds(run)
    assert any(line["failures"] for line in lines)
    part = max(line["bytes_down"] for line in lines[1:] if not any(p["failures"] for p in (lines[0], line)))
    assert part > 0
    assert torch.isfinite(torch.tensor(run.summary["eval"]["loss"]))


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_a_resumed_run_of_streaming_ends_bit_identical(streamed, tmp_path: Path, state: str):
    given = streamed | {"save_model_freq": 1, "checkpoint_seconds": 0}
    given["fed_args"] = {"fragments": 2, "inner_state": state}
    one = weft.train(given)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in (*broken.glob("checkpoints/round_00000[456]"), broken / "model"):
        shutil.rmtree(path)
    (broken / "summary.json").unlink()
    again = weft.train(given | {"output_dir": str(broken)}, resume=True)
    left, right = weights(one), weights(again)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (one.path / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


def test_adapters_travel_in_parts_too(streamed):
    run = weft.train(streamed | {"use_peft": True, "fed_args": {"fragments": 2}})
    lines = rounds(run)
    assert lines[1]["bytes_up"] == lines[0]["bytes_up"] == lines[0]["bytes_down"] / 2


def test_keys_that_do_not_go_with_streaming_are_refused(streamed):
    with pytest.raises(ConfigError, match="beyond 1 the inner state is kept or reset"):
        weft.train(streamed | {"fed_args": {"fragments": 2, "inner_state": "average"}})
    with pytest.raises(ConfigError, match="has only 4 blocks"):
        weft.train(streamed | {"fed_args": {"fragments": 9}})
