"""`--adversarial_training`: perturbed embeddings with any algorithm; without a radius, the same bits as without it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from support.rows import colour_rows, write_rows
from weft.config import build
from weft.errors import ConfigError
from weft.federation.clients import InMemory
from weft.launch.client import ClientBuilder
from weft.objectives.adversarial import Adversarial, Perturbation, _norms
from weft.objectives.causal_lm import CausalLM

ON = {"adversarial_training": True}


def losses(run: weft.Run) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines if line["event"] == "round"]


def test_without_a_radius_it_is_plain_training_to_the_last_bit(keys):
    plain = weft.train(keys, quiet=True)
    zero = weft.train(keys | ON | {"adversarial_radius": 0, "output_dir": f"{plain.path}-0"}, quiet=True)
    assert (plain.path / "metrics.jsonl").read_bytes() == (zero.path / "metrics.jsonl").read_bytes()


def test_a_vanishing_radius_gives_plain_training(keys):
    no_dropout = keys | {"peft_lora_dropout": 0.0}
    plain = weft.train(no_dropout, quiet=True)
    tiny = weft.train(no_dropout | ON | {"adversarial_radius": 1e-8, "output_dir": f"{plain.path}-0"}, quiet=True)
    assert losses(tiny) == pytest.approx(losses(plain), abs=1e-6)
    assert tiny.summary["eval"]["loss"] == pytest.approx(plain.summary["eval"]["loss"], abs=1e-5)
    far = weft.train(no_dropout | ON | {"adversarial_radius": 0.5, "output_dir": f"{plain.path}-1"}, quiet=True)
    assert losses(far)[0] > losses(plain)[0] + 1e-4  # the control: a radius matters


@pytest.mark.parametrize(
    "changes",
    [
        {"fed_alg": "scaffold"},
        {"fed_alg": "ditto", "use_peft": False},
        {"fed_alg": "central"},
        {"lora_aggregation": "stack", "gradient_checkpointing": True},
        {"use_peft": False, "fed_alg": "diloco", "gradient_accumulation_steps": 2},
    ],
)
def test_it_goes_with_any_algorithm(keys, changes: dict[str, object]):
    run = weft.train(keys | ON | changes | {"num_rounds": 2}, quiet=True)
    assert np.isfinite(run.summary["eval"]["loss"])


def test_preferences_and_plain_text_train_on_perturbed_embeddings_too(keys, tmp_path: Path):
    pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "no"} for row in colour_rows(40)]
    texts = [{"text": f"{row['instruction']} {row['output']}"} for row in colour_rows(40)]
    more: list[dict[str, object]] = [
        {"objective": "preference", "dataset_name": str(write_rows(tmp_path / "p.jsonl", pairs))},
        {"objective": "causal_lm", "dataset_name": str(write_rows(tmp_path / "t.jsonl", texts)), "template": None},
    ]
    for number, changes in enumerate(more):
        out = {"output_dir": f"{keys['output_dir']}-{number}", "num_rounds": 2}
        run = weft.train(keys | ON | changes | out, quiet=True)
        assert np.isfinite(run.summary["eval"]["loss"])


def test_a_resumed_run_draws_the_same_perturbations(keys, tmp_path: Path):
    constant = keys | ON | {"lr_scheduler_type": "constant"}
    whole = weft.train(constant | {"num_rounds": 3, "output_dir": str(tmp_path / "whole")}, quiet=True)
    weft.train(constant | {"num_rounds": 1}, quiet=True)
    resumed = weft.train(constant | {"num_rounds": 3}, resume=True, quiet=True)
    assert losses(resumed) == losses(whole)


@pytest.fixture
def loaded(keys):
    builder = ClientBuilder(build(keys | {"peft_lora_dropout": 0.0}))
    people = builder.read(InMemory())
    table = people.trained.table
    rows = [table[int(row)] for row in people.trained.train[0][:6]]
    objective = CausalLM().for_model(builder.model)
    return builder.model, objective, objective.collate(rows).to(builder.model.device)


def test_a_perturbation_stays_in_its_ball_and_moves_up_the_loss(loaded):
    model, objective, batch = loaded
    embeddings = model.base.get_input_embeddings()
    torch.manual_seed(0)
    perturbation = Perturbation(0.2)
    values = []
    for _ in range(6):
        with perturbation.on(embeddings):
            loss = objective.loss(model, batch).total
        values.append(float(loss.detach()))
        ratio = _norms(perturbation.values[0].detach()) / perturbation.limits[0]
        assert float(ratio.max()) <= 1 + 1e-5
        perturbation.ascend(loss, 1.0)
    assert values[-1] > values[0]
    norms = _norms(embeddings(batch.input_ids).detach().float())
    assert torch.allclose(perturbation.limits[0], 0.2 * norms)
    with torch.no_grad():  # no hook is left behind
        assert float(objective.loss(model, batch).total) == float(objective.loss(model, batch).total)


def test_the_gradient_is_the_mean_over_the_steps(loaded):
    model, objective, batch = loaded
    names = list(model.params)

    def gradients(total: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(total, [model.params[name] for name in names], allow_unused=True))

    torch.manual_seed(5)
    found = gradients(Adversarial(objective, 0.1, 3).loss(model, batch).total)
    torch.manual_seed(5)
    perturbation, sums = Perturbation(0.1), None
    for step in range(3):
        with perturbation.on(model.base.get_input_embeddings()):
            loss = objective.loss(model, batch).total
        if step < 2:
            perturbation.ascend(loss, 2.0 / 3)
        part = gradients(loss)
        sums = part if sums is None else [a if b is None else a + b for a, b in zip(sums, part, strict=True)]
    for mean, total in zip(found, sums, strict=True):
        assert torch.allclose(mean, total / 3, atol=1e-6)


def test_held_out_rows_are_measured_without_perturbations(loaded):
    model, objective, batch = loaded
    with model.evaluating():
        assert float(Adversarial(objective, 0.5, 2).loss(model, batch).total) == float(
            objective.loss(model, batch).total
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "grpo", "max_new_tokens": 8}, "weft sft"),
        ({"fed_alg": "fedkseed"}, "no gradients"),
        ({"adversarial_steps": 1}, "adversarial_steps"),
        ({"adversarial_radius": -0.1}, "adversarial_radius"),
        ({"parallel": "fsdp"}, "Adversarial"),
        ({"adversarial_training": None, "adversarial_radius": 0.1}, "add --adversarial_training"),
    ],
)
def test_what_cannot_be_is_refused(keys, changes: dict[str, object], words: str):
    given = keys | ON | changes
    with pytest.raises(ConfigError) as refused:
        weft.train(given)
    assert words in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()
