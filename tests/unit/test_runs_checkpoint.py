import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core.types import ServerState
from weft.errors import RunError
from weft.runs import checkpoint
from weft.runs.layout import RunDir


def state(round: int, value: float | None = None) -> ServerState:
    params = {"b.weight": torch.full((3, 2), float(round if value is None else value)), "a.weight": torch.zeros(2)}
    return ServerState(params=params, memory={"control": {"a.weight": torch.ones(2)}, "empty": {}}, round=round)


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def rounds(run: RunDir) -> list[str]:
    return sorted(os.listdir(run.checkpoints))


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensor_sets(draw) -> dict:
    result = {}
    for name in draw(
        st.lists(st.text(max_size=8) | st.sampled_from(["a/b", "a", "b", "__metadata__"]), unique=True, max_size=3)
    ):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        result[name] = torch.randn(shape, generator=generator).mul(100).to(dtype)
    return result


STREAMS = st.dictionaries(
    st.text(max_size=6) | st.sampled_from(["a", "a/b", "a%2Fb", "params"]), tensor_sets(), max_size=3
)


@settings(max_examples=60, deadline=None)
@given(tensor_sets(), STREAMS, st.integers(0, 2_000_000))
def test_any_state_comes_back_bit_for_bit_and_in_order(tmp_path_factory, params, memory, round):
    run = RunDir(tmp_path_factory.mktemp("run"))
    extra = {"offset": 12, "seconds": 0.1 + 0.2, "counts": {"client": 1}}
    checkpoint.save(run, ServerState(params=params, memory=memory, round=round), extra)
    found, found_extra = checkpoint.latest(run)
    assert found.round == round
    assert found_extra == extra
    assert same(found.params, params)
    assert list(found.memory) == list(memory)
    assert all(same(found.memory[stream], memory[stream]) for stream in memory)
    checkpoint.save_client_memory(run, "client", round, memory)
    loaded = checkpoint.load_client_memory(run, "client", round)
    assert list(loaded) == list(memory)
    assert all(same(loaded[stream], memory[stream]) for stream in memory)


def test_views_shared_storage_and_special_values_come_back_bit_for_bit(tmp_path):
    base = torch.tensor([[1.0, float("nan")], [float("-inf"), -0.0]])
    params = {"all": base, "same": base, "row": base[1], "turned": base.t(), "grad": base.clone().requires_grad_()}
    run = RunDir(tmp_path)
    checkpoint.save(run, ServerState(params=params), {})
    found, _ = checkpoint.latest(run)
    assert same(found.params, params)


def test_latest_is_none_where_there_is_no_checkpoint(tmp_path):
    assert checkpoint.latest(RunDir(tmp_path / "nothing")) is None


def test_the_newest_and_every_nth_checkpoint_are_kept(tmp_path):
    run = RunDir(tmp_path)
    for round in range(1, 8):
        checkpoint.save(run, state(round), {}, keep_every=3)
    assert rounds(run) == ["round_000003", "round_000006", "round_000007"]
    checkpoint.save(run, state(8), {}, keep=1, keep_every=3, keep_most=1)
    assert rounds(run) == ["round_000006", "round_000008"]
    checkpoint.save(run, state(9), {}, keep_every=3, keep_most=0)
    assert rounds(run) == ["round_000008", "round_000009"]


@pytest.mark.parametrize("damage", ["cut", "flip", "no tensors", "no state", "bad state"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    run = RunDir(tmp_path)
    checkpoint.save(run, state(1), {})
    newest = checkpoint.save(run, state(2), {})
    tensors, record = newest / "server.safetensors", newest / "state.json"
    content = tensors.read_bytes()
    match damage:
        case "cut":
            tensors.write_bytes(content[:-1])
        case "flip":
            tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "no tensors":
            tensors.unlink()
        case "no state":
            record.unlink()
        case "bad state":
            record.write_text(record.read_text()[:-9])
    notes: list[str] = []
    found, _ = checkpoint.latest(run, notes.append)
    assert found.round == 1
    assert len(notes) == 1
    assert "round_000002" in notes[0]
    checkpoint.save(run, state(2), {})
    assert checkpoint.latest(run)[0].round == 2
    assert rounds(run) == ["round_000001", "round_000002"]


def test_when_all_checkpoints_are_damaged_a_run_stops_with_an_error(tmp_path):
    run = RunDir(tmp_path)
    shutil.rmtree(checkpoint.save(run, state(1), {}) / "server.safetensors", ignore_errors=True)
    (run.checkpoints / "round_000001" / "state.json").write_text("{}")
    with pytest.raises(RunError, match="--overwrite"):
        checkpoint.latest(run, lambda note: None)


def test_saving_a_round_again_replaces_it_at_no_instant_without_one(tmp_path):
    run = RunDir(tmp_path)
    checkpoint.save(run, state(1), {"try": 1}, keep=1)
    (run.checkpoints / "round_000001").rename(run.checkpoints / "round_000001.old")  # killed between the two renames
    (run.checkpoints / ".round_000001.tmp").mkdir()
    assert checkpoint.latest(run)[1] == {"try": 1}
    checkpoint.save(run, state(1), {"try": 2}, keep=1)
    checkpoint.save(run, state(1), {"try": 3}, keep=1)
    assert checkpoint.latest(run)[1] == {"try": 3}
    assert rounds(run) == ["round_000001"]


def test_client_memory_is_that_of_the_round_and_never_of_a_later_one(tmp_path):
    run = RunDir(tmp_path)
    assert checkpoint.load_client_memory(run, "../x", 5) == {}
    for round in (2, 4, 5):
        checkpoint.save_client_memory(run, "../x", round, {"control": {"w": torch.tensor(round)}}, at_site=True)
    assert checkpoint.load_client_memory(run, "../x", 4)["control"]["w"] == 4
    assert checkpoint.load_client_memory(run, "../x", 9)["control"]["w"] == 5
    assert checkpoint.load_client_memory(run, "../x", 3) == {}
    assert checkpoint.load_client_memory(run, "other", 9) == {}
    assert len(list(run.client_dir("../x").iterdir())) == 2


def test_client_memory_outlives_rounds_without_a_checkpoint(tmp_path):
    run = RunDir(tmp_path)
    for round in range(1, 11):
        checkpoint.save_client_memory(run, "a", round, {"s": {"w": torch.tensor(round)}})
        if round in (3, 6):
            checkpoint.save(run, state(round), {})
    for round in (3, 6, 10):
        assert checkpoint.load_client_memory(run, "a", round)["s"]["w"] == round
    checkpoint.rewind(run, 6)
    assert checkpoint.load_client_memory(run, "a", 10)["s"]["w"] == 6
    checkpoint.rewind(run, 3)
    assert checkpoint.latest(run)[0].round == 3
    checkpoint.rewind(RunDir(tmp_path / "nothing"), 0)


def test_damaged_client_memory_is_named(tmp_path):
    run = RunDir(tmp_path)
    checkpoint.save_client_memory(run, "a", 1, {"s": {"w": torch.ones(4)}})
    path = run.client_dir("a") / "memory_000001.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(RunError, match="client 'a'"):
        checkpoint.load_client_memory(run, "a", 1)


def test_killed_at_any_instant_the_newest_checkpoint_is_whole(tmp_path):
    program = (
        "import sys, torch\n"
        "from weft.core.types import ServerState\n"
        "from weft.runs import checkpoint\n"
        "from weft.runs.layout import RunDir\n"
        "run, begin = RunDir(sys.argv[1]), int(sys.argv[2])\n"
        "for r in range(begin, 10**6):\n"
        "    checkpoint.save_client_memory(run, 'a', r, {'s': {'w': torch.full((9,), r)}})\n"
        "    checkpoint.save(run, ServerState(params={'w': torch.full((2000,), r)}, round=r), {'r': r})\n"
        "    print(r, flush=True)\n"
    )
    run = RunDir(tmp_path)
    committed = 0
    for delay in (0.0, 0.003, 0.011):
        arguments = [sys.executable, "-c", program, str(tmp_path), str(committed + 1)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
            reported = [committed + 1, *map(int, writer.stdout.read().split())][-1]
        found, extra = checkpoint.latest(run, pytest.fail)
        assert found.round in (reported, reported + 1)
        assert extra == {"r": found.round}
        assert found.params["w"].eq(found.round).all()
        assert checkpoint.load_client_memory(run, "a", found.round)["s"]["w"].eq(found.round).all()
        committed = found.round
    checkpoint.save(run, state(committed + 1), {})
    assert len(rounds(run)) == 2


def test_the_record_of_a_checkpoint_is_readable_json(tmp_path):
    path = checkpoint.save(RunDir(tmp_path), state(12), {"offset": 3})
    record = json.loads((path / "state.json").read_text())
    assert path.name == "round_000012"
    assert (record["round"], record["extra"]) == (12, {"offset": 3})
