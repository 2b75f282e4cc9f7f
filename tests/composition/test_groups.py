"""Clients that want opposed things: several models instead of one, and weights by what each client fares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.rows import write_rows
from weft.aggregation.mean import Mean
from weft.algorithms.clustered import Clustered
from weft.algorithms.fedavgm import FedAvgM
from weft.core.types import DELTA, WEIGHTS, Update
from weft.errors import ConfigError
from weft.runs import checkpoint
from weft.runs.layout import RunDir
from weft.weighting.gain import Gain
from weft.weighting.minimax import Minimax

OPPOSED = {"north": "red", "south": "blue"}


@pytest.fixture
def opposed(keys, tmp_path: Path) -> dict[str, object]:
    """Four clients, two of which prefer what the other two reject."""
    clients = []
    for place, wanted in OPPOSED.items():
        other = "blue" if wanted == "red" else "red"
        for number in range(2):
            rows = [
                {"prompt": f"What colour is number {n} of {number}?", "chosen": wanted, "rejected": other}
                for n in range(30)
            ]
            path = write_rows(tmp_path / f"{place}{number}.jsonl", rows)
            clients.append({"name": f"{place}{number}", "data": str(path)})
    own = {"objective": "preference", "peft_lora_dropout": 0.0, "learning_rate": 1e-2, "dtype": "float32"}
    own |= {"clients": clients, "sample_clients": 4, "num_rounds": 6, "max_steps": 4, "eval_every": 0}
    return {name: value for name, value in keys.items() if name not in ("dataset_name", "num_clients")} | own


def test_two_clusters_learn_opposed_preferences_that_one_model_cannot(opposed, tmp_path: Path):
    one = weft.train(opposed | {"output_dir": str(tmp_path / "one")}, quiet=True).summary
    run = weft.train(opposed | {"cluster": 2, "output_dir": str(tmp_path / "two")}, quiet=True)
    assert one["eval"]["preference_accuracy"] == 0.5
    assert run.summary["eval"]["preference_accuracy"] == 1.0
    own = {
        name: load_file(run.path / "clients" / name / "adapter" / "adapter_model.safetensors")
        for name in ("north0", "north1", "south0", "south1")
    }
    for name, value in own["north0"].items():
        assert torch.equal(value, own["north1"][name])
    assert any(not torch.equal(value, own["south0"][name]) for name, value in own["north0"].items())
    assert not (run.path / "adapter").exists()  # there is no model for everybody
    chosen = {name: client["cluster"] for name, client in run.summary["clients"].items()}
    assert chosen["north0"] == chosen["north1"] != chosen["south0"] == chosen["south1"]
    assert run.summary["bytes_down"] == 2 * one["bytes_down"]
    assert run.summary["bytes_up"] == pytest.approx(one["bytes_up"], rel=0.01)


def test_the_cluster_model_with_the_least_loss_is_chosen_and_only_it_changes():
    algorithm = Clustered(FedAvgM(), 3, 0)
    state = algorithm.init({"w": torch.zeros(2)})
    for chosen, delta in ((1, 4.0), (2, -2.0)):
        streams = {DELTA: {"w": torch.full((2,), delta)}, "cluster": {"chosen": torch.tensor(float(chosen))}}
        update = Update("a", state.round, state.round, streams, 1.0)
        state = algorithm.step(state, algorithm.combine([update], Mean()))
    task = algorithm.task(state, "a", 2)
    losses = {0.0: 3.0, 4.0: 2.0, -2.0: 1.0}
    taken, said = algorithm.choice.choose(task, lambda params: losses[float(params["w"][0])])
    assert (float(taken.params["w"][0]), float(said["cluster"]["chosen"])) == (-2.0, 2.0)
    assert state.round == 2
    # each cluster has a momentum of its own, and the first has none
    assert sorted(name for name in state.memory if "momentum" in name) == ["1|momentum", "2|momentum"]


def test_minimax_weights_equal_those_worked_by_hand():
    rule = Minimax(rate=2.0)
    first, memory = rule.factor("a", {"loss_sum": 6.0, "loss_tokens": 2.0}, {})
    assert first == 1.0  # alone, a client is the mean
    second, more = rule.factor("b", {"loss_sum": 1.0, "loss_tokens": 1.0}, memory)
    assert second == pytest.approx(torch.tensor(-2.0).exp().item())  # 2 (1 - (3 + 1) / 2)
    third, _ = rule.factor("a", {"loss_sum": 3.0, "loss_tokens": 1.0}, memory | more)
    assert third == pytest.approx(torch.tensor(2.0).exp().item())


def test_gain_weights_equal_those_worked_by_hand():
    rule = Gain(rate=1.0)
    first, memory = rule.factor("a", {"answers": 4.0, "reward_sum": 2.0}, {})
    assert (first, float(memory["a"])) == (1.0, 0.5)
    second, memory = rule.factor("a", {"answers": 4.0, "reward_sum": 3.0}, memory)
    assert second == pytest.approx(torch.tensor(0.5).exp().item())  # (0.75 - 0.5) / 0.5
    assert float(memory["a"]) == 0.625
    worse, _ = rule.factor("a", {"loss_sum": 2.0, "loss_tokens": 1.0}, {"a": torch.tensor(-1.0)})
    assert worse == pytest.approx(torch.tensor(-1.0).exp().item())


@pytest.mark.parametrize(("weight", "kept"), [("minimax", 8), ("gain", 4)])
def test_weights_are_part_of_the_checkpoint(opposed, weight: str, kept: int):
    run = weft.train(opposed | {"client_weight": weight, "num_rounds": 2}, quiet=True)
    found = checkpoint.latest(RunDir(run.path))
    assert found is not None
    assert len(found[0].memory[WEIGHTS]) == kept


def test_the_worst_off_weigh_more(opposed, tmp_path: Path):
    """Three clients against one: with equal weights the three win, with minimax weights the one is heard."""
    clients = [*opposed["clients"][:2], opposed["clients"][0] | {"name": "north2"}, opposed["clients"][2]]
    worst = {}
    for weight in ("uniform", "minimax"):
        keys = {"clients": clients, "client_weight": weight, "output_dir": str(tmp_path / weight)}
        keys |= {"weight_rate": 5.0} if weight == "minimax" else {}
        summary = weft.train(opposed | keys, quiet=True).summary
        worst[weight] = max(client["loss"] for client in summary["clients"].values())
    assert worst["minimax"] < worst["uniform"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": 2, "fed_alg": "scaffold"}, "leave out --cluster"),
        ({"cluster": 2, "fed_alg": "local"}, "leave out --cluster"),
        ({"cluster": 2, "fed_alg": "fedbuff"}, "leave out --cluster"),
        ({"cluster": 2, "lora_aggregation": "stack"}, "clusters are several"),
        ({"cluster": 0}, "cluster"),
        ({"client_weight": "minmax"}, "Did you mean 'minimax'"),
        ({"client_weight": "minimax", "fed_alg": "local"}, "--client_weight size"),
    ],
)
def test_keys_that_do_not_go_with_groups_are_refused(opposed, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(opposed | changes, quiet=True)


@pytest.mark.parametrize("fed_alg", "fedprox fedavgm fedadam fedyogi fedadagrad fednova fedexp fedcm fedadamw".split())
@pytest.mark.parametrize("lora_aggregation", ["average", "rolora"])
@pytest.mark.slow
def test_clusters_are_trained_by_every_algorithm(opposed, fed_alg: str, lora_aggregation: str):
    changes = {"cluster": 2, "fed_alg": fed_alg, "lora_aggregation": lora_aggregation, "num_rounds": 2, "max_steps": 1}
    assert weft.train(opposed | changes, quiet=True).summary["failures"] == {}
