"""The Ray runtime: the numbers of one process, from several."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run_tasks import asked  # noqa: F401

import weft
from support.flags import flags
from support.own_parts import PARTS, once
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.errors import ConfigError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests here: to start one takes seconds."""
    from weft.config import build
    from weft.launch.ray_actor import join

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else actors wait for whatever else the machine does
        join(build({"dataset_name": "any"}), cpus=2)
        yield
        ray.shutdown()


@pytest.fixture
def spread(keys) -> dict[str, object]:
    own = {"runtime": "ray", "num_actors": 2, "threads": 1, "sample_clients": 3, "eval_every": 1, "num_rounds": 2}
    return keys | own


def result(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*model.safetensors")
    return load_file(file)


PAIRS = {"objective": "preference", "loss": "dpo", "num_actors": 1}
PAIRS |= {"lora_aggregation": "stack", "client_ranks": [2, 4, 8]}
KINDS = {
    "fedavg": {},
    "scaffold": {"fed_alg": "scaffold", "client_failure_rate": 0.3, "client_speed": [1.0, 0.5, 1.0], "num_actors": 1},
    "flora by dpo": PAIRS,
    "masked": {"protection": "masks", "num_actors": 1},
    "encrypted": {"protection": "ckks"},
    "delayed": {"fed_alg": "diloco", "fed_args": {"delay": 1}, "sample_clients": 2, "num_clients": 2, "num_rounds": 4},
    "few bytes": {"codec": "int4", "codec_down": "topk", "client_failure_rate": 0.3, "num_rounds": 4},
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=kind, marks=[pytest.mark.slow] * (kind != "scaffold"))
        for kind, changes in KINDS.items()
    ],
)
def test_results_are_those_of_one_process_bit_for_bit(spread, changes: dict[str, object], tmp_path: Path):
    if changes.get("protection") == "ckks":
        pytest.importorskip("tenseal", reason="the extra he is not installed")
    given = spread | changes
    if changes is PAIRS:
        rows = [row | {"prompt": row["instruction"], "chosen": row["output"]} for row in colour_rows(60)]
        rows = [row | {"rejected": "none"} for row in rows]
        given |= {"dataset_name": str(write_rows(tmp_path / "pairs.jsonl", rows))}
    there = weft.train(given, quiet=True)
    here = weft.train(given | {"runtime": "inprocess", "output_dir": str(tmp_path / "here")}, quiet=True)
    assert (there.path / "metrics.jsonl").read_bytes() == (here.path / "metrics.jsonl").read_bytes()
    ours, theirs = result(there), result(here)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tasks_are_scored_as_in_one_process(asked, tmp_path: Path):  # noqa: F811
    keys = asked | {"best_metric": "colours", "num_rounds": 2, "eval_every": 1}
    there = weft.train(keys | {"runtime": "ray", "num_actors": 1, "threads": 1})
    here = weft.train(keys | {"output_dir": str(tmp_path / "here"), "threads": 1})
    assert (there.path / "metrics.jsonl").read_bytes() == (here.path / "metrics.jsonl").read_bytes()
    assert there.summary["best"] == here.summary["best"]


@pytest.mark.slow
def test_actors_use_a_part_of_a_users_own_file(spread, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(PARTS)
    own = {"codec": f"{file}:MyCodec", "fed_alg": f"{file}:MyAlgorithm", "codec_args": {"keep": 0.25}}
    run = weft.train(once(spread) | own, quiet=True)
    assert run.finished
    assert sorted((tmp_path / "seen").read_text().splitlines()) == ["codec 0.25"] * 3 + ["fed_alg 0.5"]


@pytest.mark.slow
def test_a_dead_actors_client_is_answered_by_another(spread, tmp_path: Path):
    """A process of an actor is killed while the run is under way."""
    killed = []

    def kill() -> None:
        while not killed:
            for line in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if b"ray::RayActor" in line.read_bytes():
                        os.kill(int(line.parent.name), signal.SIGKILL)
                        killed.append(int(line.parent.name))
                        return
                except (OSError, ValueError):
                    continue
            time.sleep(0.05)

    # A run that was begun in one process goes on by Ray.
    given = spread | {"num_rounds": 3, "save_model_freq": 1, "checkpoint_seconds": 0}
    begun = weft.train(given | {"runtime": "inprocess"}, quiet=True)
    for path in begun.path.glob("checkpoints/round_00000[23]"):
        shutil.rmtree(path)
    thread = threading.Thread(target=kill)
    thread.start()
    run = weft.train(given, resume=True, quiet=True)
    thread.join()
    assert killed
    assert run.summary["failures"] == {}
    here = {"runtime": "inprocess", "output_dir": str(tmp_path / "here"), "num_rounds": 3}
    other = weft.train(spread | here, quiet=True)
    assert (run.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_plain_text_is_read_by_every_actor(spread, tmp_path: Path):
    rows = [{"text": row["instruction"] + " " + row["output"]} for row in colour_rows(60)]
    data = {
        "objective": "causal_lm",
        "dataset_name": str(write_rows(tmp_path / "text.jsonl", rows)),
        "num_rounds": 1,
        "num_actors": 1,
        "template": None,
    }
    there = weft.train(spread | data, quiet=True)
    here = weft.train(spread | data | {"runtime": "inprocess", "output_dir": str(tmp_path / "here")}, quiet=True)
    assert json.loads((there.path / "metrics.jsonl").read_text().splitlines()[-1]) == json.loads(
        (here.path / "metrics.jsonl").read_text().splitlines()[-1]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_actors": 9}, "room for 2 actors"),
        ({"client_resources": {"gpu": 1.0}}, "room for 0 actors"),
        ({"parallel": "fsdp", "use_peft": False}, "leave out --parallel"),
    ],
)
def test_keys_that_do_not_go_with_ray_are_refused(spread, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(spread | changes, quiet=True)


def test_client_resources_other_than_cpu_and_gpu_are_refused(spread, capsys):
    assert main(["sft", *flags(spread | {"client_resources": "tpu=1"}), "--dry_run"]) == 2
    assert "cpu and gpu, not 'tpu'" in capsys.readouterr().err


SHARED_OUT: list[dict[str, object]] = [
    {"noise_at": "client", "min_clients": 3},
    {"client_sampling": "poisson"},
    {"privacy_unit": "row"},
    {"privacy_unit": "output"},
]


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.slow] * (how != SHARED_OUT[1]), id=str(how)) for how in SHARED_OUT]
)
def test_noise_and_secret_cohorts_are_those_of_one_process(spread, tmp_path: Path, how: dict[str, object]):
    """Given the same secrets, which never leave the process that runs the rounds but in messages to its own actors."""
    pytest.importorskip("dp_accounting")
    given = spread | {"privacy_unit": "client", "noise_multiplier": 1.0, "clip_norm": 0.1, "save_model_freq": 1} | how
    there = weft.train(given, quiet=True)
    copy = tmp_path / "here"
    shutil.copytree(there.path, copy)
    shutil.rmtree(copy / "checkpoints")
    here = weft.train(given | {"runtime": "inprocess", "output_dir": str(copy)}, resume=True, quiet=True)
    assert all(torch.equal(value, result(here)[name]) for name, value in result(there).items())
    assert (there.path / "metrics.jsonl").read_bytes() == (copy / "metrics.jsonl").read_bytes()
