"""Data-parallel training: FedSGD, and DiLoCo with a single inner SGD step, against a loop written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.optimizers import step_along
from support.rows import write_rows
from support.tolerances import EPSILON, STEADY, after_plain_steps, after_steps
from weft.config import build
from weft.errors import ConfigError
from weft.federation.clients import InMemory
from weft.launch import compose
from weft.launch.population import populate
from weft.models.load import load_resident
from weft.models.tokenizer import load_tokenizer
from weft.training.optimizers import Optimizer
from weft.training.order import rows_of_round

TEXT = {"objective": "causal_lm", "use_peft": False, "clients": None, "eval_fraction": 0.0, "eval_every": 0}
TEXT |= {"template": None}


@pytest.fixture
def texts(keys, tmp_path: Path) -> dict:
    rows = [{"text": f"the {one} dog and the {two} cat"} for one in "abcd" for two in "efghij"]
    data = write_rows(tmp_path / "text.jsonl", rows)
    own = {"dataset_name": str(data), "num_clients": 2, "sample_clients": 2, "batch_size": 3, "max_steps": 1}
    own |= {"num_rounds": 4, "learning_rate": 0.05, "lr_scheduler_type": "cosine", "client_weight": "uniform"}
    return keys | TEXT | own | {"output_dir": str(tmp_path / "out"), "dtype": "float32"}


def weights(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*.safetensors")
    return load_file(file)


def by_hand(keys: dict, make) -> dict[str, torch.Tensor]:
    """Train one model on the mean of the clients' gradients, on the rows that they would draw."""
    config = build(keys)
    tokenizer = load_tokenizer(config)
    people = populate(config, tokenizer, InMemory(), rows="text", pool=False)
    model = load_resident(config, tokenizer)
    steps, objective = compose.local_steps(config), compose.plan(config).objective
    optimizer = make(list(model.masters.values()))
    model.model.train()
    for round in range(config.num_rounds):
        for site in people.trained:
            order = rows_of_round(len(site.train), config.batch_size, seed=config.seed, client=site.index, round=round)
            loss = objective.loss(model, objective.collate([site.train[int(row)] for row in order]))
            (loss.total / loss.targets / len(people.trained)).backward()
        torch.nn.utils.clip_grad_norm_(list(model.masters.values()), config.max_grad_norm or float("inf"))
        optimizer.param_groups[0]["lr"] = steps.schedule.at(round, 0, 1)
        optimizer.step()
        optimizer.zero_grad()
    return model.values()


def assert_trained_to(run, expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    for name, value in weights(run).items():
        torch.testing.assert_close(value, expected[name], **tolerance)


def test_fedsgd_is_data_parallel_adamw(texts):
    keys = texts | STEADY | {"fed_alg": "fedsgd", "learning_rate": 1e-2, "weight_decay": 0.1, "adam_beta2": 0.95}
    how = {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": EPSILON, "fused": False}
    expected = by_hand(keys, lambda params: torch.optim.AdamW(params, lr=0.0, **how))
    assert_trained_to(weft.train(keys), expected, **after_steps(4, 1e-2))


def test_diloco_with_one_sgd_step_is_data_parallel_sgd(texts, tmp_path: Path):
    keys = texts | {"optimizer": "sgd", "max_grad_norm": 0.0}
    expected = by_hand(keys, lambda params: torch.optim.SGD(params, lr=0.0))
    diloco = keys | {"fed_alg": "diloco", "fed_args": {"outer_lr": 1.0, "momentum": 0.0}}
    assert_trained_to(weft.train(diloco), expected, **after_plain_steps(4, 0.05))
    fedsgd = keys | {"fed_alg": "fedsgd", "output_dir": str(tmp_path / "g")}
    assert_trained_to(weft.train(fedsgd), expected, **after_plain_steps(4, 0.05))


def test_fedsgd_with_more_than_one_step_is_refused(texts):
    with pytest.raises(ConfigError, match="write --max_steps 1"):
        weft.train(texts | {"fed_alg": "fedsgd", "max_steps": 2})


def test_algorithms_on_moments_without_adamw_are_refused(texts):
    with pytest.raises(ConfigError, match="write --optimizer adamw"):
        weft.train(texts | {"fed_alg": "fedadamw", "optimizer": "sgd"})


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_goes_on_from_its_state(kind: str):
    if kind.endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    from weft.training.optimizers import moments_of

    torch.manual_seed(0)
    device, how = torch.device("cpu"), Optimizer(kind, weight_decay=0.1)
    begun = {"w": torch.randn(64, 80), "b": torch.randn(4)}
    gradients = [{name: torch.randn_like(value) for name, value in begun.items()} for _ in range(4)]

    whole = {name: value.clone().requires_grad_() for name, value in begun.items()}
    step_along(whole, how.make(whole, {}, device), gradients)
    halves = {name: value.clone().requires_grad_() for name, value in begun.items()}
    first = how.make(halves, {}, device)
    step_along(halves, first, gradients[:2])
    step_along(halves, how.make(halves, moments_of(first, halves), device), gradients[2:])
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert not torch.equal(whole["w"], begun["w"])


def test_diloco_with_one_client_and_kept_moments_is_uninterrupted_adamw(texts, tmp_path: Path):
    """One client, kept moments, outer learning rate 1, no momentum: rounds leave no trace."""
    own = {"num_clients": 1, "sample_clients": 1, "learning_rate": 1e-2} | STEADY
    rounds = {"fed_alg": "diloco", "fed_args": {"outer_lr": 1.0, "momentum": 0.0}, "num_rounds": 3, "max_steps": 4}
    whole = {"fed_alg": "central", "num_rounds": 1, "max_steps": 12, "output_dir": str(tmp_path / "whole")}
    one_training = weights(weft.train(texts | own | whole))
    assert_trained_to(weft.train(texts | own | rounds), one_training, **after_steps(12, 1e-2))
