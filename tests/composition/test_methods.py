"""Algorithms in whole runs: identities to the last bit, what clients remember, and models of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import weft
from support.results import same_values, weights
from support.rows import colour_rows, write_rows
from support.tolerances import STEADY, UNIT, after_steps
from weft.runs import checkpoint
from weft.runs.layout import RunDir

SAME_AS_FEDAVG = {
    "fedprox, mu 0": {"fed_alg": "fedprox", "prox_mu": 0},
    "fedprox in the gradient, mu 0": {"fed_alg": "fedprox", "prox_mu": 0, "fed_args": {"form": "gradient"}},
    "fednova, equal steps": {"fed_alg": "fednova"},
    "diloco, outer lr 1, no momentum": {
        "fed_alg": "diloco",
        "fed_args": {"outer_lr": 1, "momentum": 0, "inner_state": "reset"},
    },
    "feddyn, alpha 0": {"fed_alg": "feddyn", "fed_args": {"alpha": 0}},
    "feddyn in the gradient, alpha 0": {"fed_alg": "feddyn", "fed_args": {"alpha": 0, "form": "gradient"}},
    "fedbuff, full synchronous buffer": {"fed_alg": "fedbuff"},
    "fedavgm, no momentum": {"fed_alg": "fedavgm", "fedopt_beta1": 0},
    "fedcm, alpha 1": {"fed_alg": "fedcm", "fed_args": {"alpha": 1}},
    "ditto's shared model": {"fed_alg": "ditto"},
    "fedit by name": {"lora_aggregation": "average"},
    "ranks all the same": {"client_ranks": [8]},
    "a quorum that is met": {"min_clients": 2},
}


@pytest.mark.parametrize("use_peft", [True, False])
@pytest.mark.slow
def test_special_cases_are_fedavg_bit_for_bit(keys, use_peft: bool, tmp_path: Path):
    shared = keys | {"use_peft": use_peft, "eval_every": 0, "peft_lora_dropout": 0.1 if use_peft else None}
    plain = weights(weft.train(shared | {"output_dir": str(tmp_path / "fedavg")}))
    for name, changes in SAME_AS_FEDAVG.items():
        if use_peft or "client_ranks" not in changes:
            found = weft.train(shared | changes | {"output_dir": str(tmp_path / name)})
            assert same_values(plain, weights(found)), name


def test_ditto_without_a_pull_is_local_training(keys, tmp_path: Path):
    everybody = keys | {"sample_clients": 3}
    ditto = weft.train(everybody | {"fed_alg": "ditto", "fed_args": {"strength": 0}, "output_dir": str(tmp_path / "d")})
    local = weft.train(everybody | {"fed_alg": "local", "output_dir": str(tmp_path / "l")})
    for client in ("client_0", "client_1", "client_2"):
        assert same_values(weights(ditto, client), weights(local, client))


@pytest.mark.parametrize("space", ["gradient", "update"])
def test_the_mean_of_the_clients_variates_is_the_servers(keys, space: str):
    run = weft.train(keys | {"fed_alg": "scaffold", "sample_clients": 3, "fed_args": {"space": space}})
    directory = RunDir(run.path)
    state, _ = checkpoint.latest(directory)
    own = [checkpoint.load_client_memory(directory, f"client_{i}", state.round)["rule.control"] for i in range(3)]
    clients = json.loads(directory.split_file.read_text())["clients"]
    held = {name: scores["rows"] for name, scores in run.summary["clients"].items()}
    weight = [clients[f"client_{i}"]["rows"] - held[f"client_{i}"] for i in range(3)]
    for name, value in state.memory["control"].items():
        mean = sum(w * one[name] for w, one in zip(weight, own, strict=True)) / sum(weight)
        # Both are sums of three terms, the server's over three rounds: 9 roundings of the largest term.
        largest = max(float(one[name].abs().max()) for one in own)
        torch.testing.assert_close(value, mean, rtol=0, atol=9 * UNIT * largest)
    assert any(value.any() for value in state.memory["control"].values())


def test_fedprox_stays_closer_to_where_the_round_began(keys, tmp_path: Path):
    one = keys | {"num_rounds": 1, "max_steps": 5, "lr_scheduler_type": "constant"}
    start = weights(weft.train(one | {"learning_rate": 0, "output_dir": str(tmp_path / "start")}))

    def moved(name: str, **changes: object) -> float:
        end = weights(weft.train(one | changes | {"output_dir": str(tmp_path / name)}))
        return sum(float((end[key] - start[key]).norm() ** 2) for key in end) ** 0.5

    plain = moved("plain")
    assert moved("weak", fed_alg="fedprox", prox_mu=100) < plain
    assert moved("strong", fed_alg="fedprox", prox_mu=500) < 0.8 * plain


def test_diloco_keeps_the_moments_where_it_is_told(keys, tmp_path: Path):
    for state, there in (("keep", True), ("reset", False), ("average", False)):
        arguments = {"fed_alg": "diloco", "fed_args": {"inner_state": state}, "sample_clients": 3}
        run = RunDir(weft.train(keys | arguments | {"output_dir": str(tmp_path / state)}).path)
        memory = checkpoint.load_client_memory(run, "client_0", 3)
        assert bool(memory) == there
        if there:
            assert {float(v) for v in memory["rule.step"].values()} == {6.0}
        latest, _ = checkpoint.latest(run)
        assert ("exp_avg_sq" in latest.memory) == (state == "average")
        if state == "average":
            assert {float(count) for count in latest.memory["step"].values()} == {6.0}


def test_kept_moments_make_rounds_of_one_client_one_long_training(keys, tmp_path: Path):
    """DiLoCo with one client, outer lr 1 and no momentum is AdamW that never stopped."""
    one = keys | {"num_clients": 1, "sample_clients": 1, "lr_scheduler_type": "constant", "peft_lora_dropout": 0}
    one |= {"eval_every": 0, "learning_rate": 1e-2} | STEADY
    kept = {"fed_alg": "diloco", "fed_args": {"outer_lr": 1, "momentum": 0}, "num_rounds": 4, "max_steps": 2}
    rounds_ = weights(weft.train(one | kept | {"output_dir": str(tmp_path / "rounds")}))
    whole = weights(weft.train(one | {"num_rounds": 1, "max_steps": 8, "output_dir": str(tmp_path / "whole")}))
    reset = weights(weft.train(one | {"num_rounds": 4, "max_steps": 2, "output_dir": str(tmp_path / "reset")}))
    for name, value in whole.items():
        torch.testing.assert_close(rounds_[name], value, **after_steps(8, 1e-2))
    far = 10 * after_steps(8, 1e-2)["atol"]
    assert any(not torch.allclose(reset[name], value, rtol=0, atol=far) for name, value in whole.items())


def test_fedadamw_is_adamw_with_what_the_server_sent(keys):
    """A round against a loop written out: m from zero and corrected by the round's steps, v from the server's means."""
    from weft.algorithms.fedadamw import COUNT, DIRECTION, MEANS, FedAdamW
    from weft.core.types import Task

    start = {"w": torch.tensor([1.0, -2.0])}
    v0, behind, lr, alpha = 0.04, 20, 0.1, 0.5
    extra = {MEANS: {"w": torch.tensor(v0)}, DIRECTION: {"w": torch.tensor([0.3, 0.1])}}
    extra[COUNT] = {"w": torch.tensor(float(behind))}
    rule = FedAdamW(alpha=alpha).rule(Task("a", 2, 2, start, extra), {})
    parameter = torch.nn.Parameter(rule.begin(start)["w"].clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.0, weight_decay=0.0)
    rule.prepare({"w": parameter})
    optimizer.state[parameter] = {key: values["w"].clone() for key, values in rule.moments().items()}
    y, m, v = start["w"].clone(), torch.zeros(2), torch.full((2,), v0)
    for step, grad in enumerate([torch.tensor([0.5, -0.1]), torch.tensor([0.2, 0.4])]):
        parameter.grad = grad
        optimizer.param_groups[0]["lr"] = lr * rule.lr_factor(step)
        optimizer.step()
        with torch.no_grad():
            rule.after_step({"w": parameter}, lr)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (behind + step + 1))
        y = y - lr * (m_hat / (v_hat.sqrt() + 1e-8) + alpha * extra[DIRECTION]["w"])
        torch.testing.assert_close(parameter.detach(), y, rtol=1e-5, atol=1e-6)


def test_shared_and_personal_models_are_measured_on_own_and_on_all_rows(keys, tmp_path: Path):
    run = weft.train(keys | {"personal_steps": 3, "learning_rate": 1e-2})
    models = run.summary["models"]
    assert models["shared"]["loss"] == pytest.approx(run.summary["eval"]["loss"], rel=1e-5)
    assert models["own"]["loss"] < models["shared"]["loss"]
    assert set(models["clients"]["client_0"]) == {"shared", "own", "own_on_everybody"}
    assert not same_values(weights(run, "client_0"), weights(run, "client_1"))
    local = weft.train(keys | {"fed_alg": "local", "output_dir": str(tmp_path / "local")}).summary["models"]
    assert "shared" not in local
    assert local["own_on_everybody"]["loss"] > 0


def test_share_keeps_the_rest_with_the_client(keys):
    run = weft.train(keys | {"share": ["*.layers.0.*"], "sample_clients": 3})
    shared, own = weights(run), [weights(run, f"client_{i}") for i in range(3)]
    for name in shared:
        assert torch.equal(own[0][name], own[1][name]) == (".layers.0." in name), name
    full = weft.train(keys | {"output_dir": str(keys["output_dir"]) + "-full"})
    assert run.summary["bytes_up"] < full.summary["bytes_up"]


def test_with_uniform_weights_the_mean_is_that_of_clients_alone(keys, tmp_path: Path):
    sizes = {"a": 10, "b": 60}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", colour_rows(size, size)) for name, size in sizes.items()}
    shared = {k: v for k, v in keys.items() if k not in ("dataset_name", "num_clients")} | {
        "clients": [{"name": name, "data": str(path)} for name, path in files.items()],
        "num_rounds": 1,
        "eval_fraction": 0,
    }
    mean = weights(weft.train(shared | {"client_weight": "uniform", "output_dir": str(tmp_path / "all")}))
    alone = [
        weights(weft.train(shared | {"fed_alg": f"local{i}", "output_dir": str(tmp_path / f"{i}")})) for i in (0, 1)
    ]
    for name, value in mean.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2, rtol=1e-6, atol=1e-7)
