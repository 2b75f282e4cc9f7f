"""One model in two processes, or with its layers on disk: the same run as in one, up to rounding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flags import flags
from support.fork_server import ForkServer
from support.tolerances import LOSS, STEADY, after_steps
from weft import registry
from weft.core.parts import LocalRule
from weft.errors import ConfigError


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_tokenizer) -> Path:
    """The tiny model with an output layer of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("untied")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=False)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def together(keys: dict, output: Path, *more: str) -> subprocess.CompletedProcess:
    """Run `weft sft` in two processes."""
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "weft",
        "sft",
    ]
    words += [*flags(keys | {"output_dir": str(output)}), "--quiet", *more]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:weft"}
    return subprocess.run(words, capture_output=True, text=True, timeout=240, env=env)


def at_once(forks: ForkServer, keys: dict, output: Path) -> None:
    """Run `weft sft` in two processes as torchrun begins them, without waiting for what they import."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    words, logs = ["sft", *flags(keys | {"output_dir": str(output)}), "--quiet"], []
    pids = []
    for rank in ("0", "1"):
        logs.append(output.with_suffix(f".{rank}.log"))
        pids.append(forks.start(words, logs[-1], env | {"RANK": rank, "LOCAL_RANK": rank}))
    codes = [forks.code(pid, wait=True) for pid in pids]
    assert codes == [0, 0], [log.read_text()[-2000:] for log in logs]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = [*folder.glob("model/*.safetensors"), *folder.glob("adapter/*.safetensors")]
    return load_file(file)


WAYS = {
    "fsdp with kept moments, offloaded": {"parallel": "fsdp", "cpu_offload": True, "gradient_checkpointing": True},
    "fsdp, lora": {"parallel": "fsdp", "use_peft": True, "fed_alg": "fedavg", "peft_lora_dropout": 0.0},
    "tensor": {"parallel": "tensor"},
    "pipeline": {"parallel": "pipeline"},
    "fsdp, few-shot examples": {"parallel": "fsdp", "few_shot": 2, "seq_length": 64},
}


SLOW = ("fsdp with kept moments, offloaded", "fsdp, few-shot examples")


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS])
def test_two_processes_give_the_weights_of_one(keys, untied: Path, tmp_path: Path, way: str, forks: ForkServer):
    own = {"use_peft": False, "fed_alg": "diloco", "dtype": "float32", "num_rounds": 2, "eval_every": 1}
    given = keys | own | STEADY | {"model_name_or_path": str(untied)} | WAYS[way]
    at_once(forks, given, tmp_path / "two")
    alone = weft.train(given | {"parallel": "none", "cpu_offload": False, "output_dir": str(tmp_path / "one")})
    one, two = weights(alone.path), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    # DiLoCo's outer step multiplies a round's change by 0.7 (1 + 0.9) and adds 0.7 * 0.9^2 of the round before.
    near = after_steps(4, 1e-3, gain=0.7 * (1 + 0.9 + 0.9**2))
    for name, value in one.items():
        torch.testing.assert_close(two[name].float(), value.float(), **near)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (alone.path, tmp_path / "two")]
    for left, right in zip(*lines, strict=True):
        left, right = json.loads(left), json.loads(right)
        for key in ("round", "clients", "tokens", "examples", "bytes_up", "rows"):
            if key != "clients" or left["event"] == "round":
                assert left.get(key) == right.get(key)
        for key in ("train_loss", "loss", "accuracy"):
            assert left.get(key) == (None if left.get(key) is None else pytest.approx(right[key], rel=LOSS))


@pytest.mark.slow
def test_a_run_in_two_processes_is_resumed(keys, tmp_path: Path, forks: ForkServer):
    own = {"use_peft": False, "fed_alg": "diloco", "dtype": "float32", "parallel": "fsdp", "checkpoint_seconds": 0}
    given = keys | own | {"num_rounds": 3, "eval_every": 0, "save_model_freq": 1}
    at_once(forks, given, tmp_path / "whole")
    import shutil

    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for path in (*(tmp_path / "broken").glob("checkpoints/round_00000[23]"), tmp_path / "broken" / "model"):
        shutil.rmtree(path)
    (tmp_path / "broken" / "summary.json").unlink()
    done = together(given, tmp_path / "broken", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()


def test_layers_kept_on_disk_give_the_same_weights(keys, tmp_path: Path):
    given = keys | STEADY | {"dtype": "float32", "gradient_checkpointing": True}
    one = weft.train(given)
    two = weft.train(given | {"model_offload": "disk", "output_dir": str(tmp_path / "disk")})
    left, right = weights(one.path), weights(two.path)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, **after_steps(6, 1e-3))
    assert two.summary["eval"]["loss"] == pytest.approx(one.summary["eval"]["loss"], rel=LOSS)


def test_the_layers_are_not_in_memory(keys):
    from weft.config import build
    from weft.models.load import load_resident
    from weft.models.tokenizer import load_tokenizer

    config = build(keys | {"model_offload": "disk"})
    model = load_resident(config, load_tokenizer(config))
    layers = {name: p for name, p in model.model.named_parameters() if ".layers." in name}
    assert all(p.is_meta for name, p in layers.items() if not p.requires_grad)
    assert not any(p.is_meta for name, p in layers.items() if p.requires_grad)


BENDING = ("prepare", "loss_term", "adjust_grads", "after_step")


@pytest.mark.parametrize("name", [name for name in registry.ALGORITHMS if name != "central"])
def test_algorithms_say_whether_their_local_steps_are_plain(name: str):
    """The trait against the code: a rule with one of these hooks in the algorithm's file bends its steps."""
    import importlib
    import inspect

    module, _, kind = registry.ALGORITHMS[name].partition(":")
    found = importlib.import_module(module)
    rules = [one for _, one in inspect.getmembers(found, inspect.isclass) if issubclass(one, LocalRule)]
    bends = any(hook in vars(rule) for rule in rules if rule is not LocalRule for hook in BENDING)
    assert getattr(found, kind).plain_steps == (not bends)


BAD = {
    "without torchrun": ({"parallel": "fsdp"}, "start it by `torchrun"),
    "offload without adapters": ({"use_peft": False, "model_offload": "disk"}, "add --use_peft"),
    "to the cpu from the cpu": ({"model_offload": "cpu"}, "write --model_offload disk"),
    "aggregations that need the base": ({"model_offload": "disk", "lora_aggregation": "fedsb"}, "moves them out"),
    "bent steps": ({"parallel": "fsdp", "fed_alg": "scaffold"}, "changes every local step"),
    "own models": ({"parallel": "fsdp", "personal_steps": 1}, "not spread over processes"),
    "sealed updates": (
        {"parallel": "fsdp", "protection": "masks", "sample_clients": 3},
        "seals an update in one process",
    ),
    "adapters in a pipeline": ({"parallel": "pipeline"}, "leave out --use_peft"),
    "other aggregations": ({"parallel": "fsdp", "lora_aggregation": "stack"}, "write --lora_aggregation average"),
    "half precision": ({"parallel": "fsdp", "dtype": "float16"}, "--dtype float32 or bfloat16"),
    "offload of what is whole": ({"cpu_offload": True}, "add --parallel fsdp"),
    "offload and processes": ({"parallel": "fsdp", "model_offload": "disk"}, "--cpu_offload may help"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_keys_that_do_not_go_with_parallel_are_refused(keys, changes: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        weft.train(keys | changes)


@pytest.mark.slow
def test_torchrun_without_the_key_parallel_is_refused(keys, tmp_path: Path):
    done = together(keys, tmp_path / "run")
    assert done.returncode != 0
    assert "write --parallel fsdp, tensor or pipeline" in done.stderr


@pytest.mark.slow
def test_a_pipeline_of_a_model_with_tied_embeddings_is_refused(keys, tmp_path: Path):
    done = together(keys | {"use_peft": False, "parallel": "pipeline"}, tmp_path / "run")
    assert done.returncode != 0
    assert "one tensor, and a pipeline has them in two processes" in done.stderr
