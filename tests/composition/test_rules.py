"""Rules in whole runs: what is kept between rounds, what is refused, who is spare, and the temperature of answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import weft
from weft.errors import ConfigError
from weft.models.layout import Question
from weft.models.resident import Resident
from weft.objectives.choices import TokenScores, score_choices
from weft.objectives.grpo import GRPO
from weft.runs import checkpoint
from weft.runs.layout import RunDir

IN_TURN = {"lora_aggregation": "rolora", "sample_clients": 3, "num_rounds": 3, "eval_every": 0}


def steps_of(values: dict[str, torch.Tensor]) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {"lora_A": set(), "lora_B": set()}
    for name, value in values.items():
        found["lora_A" if "lora_A" in name else "lora_B"].add(float(value))
    return found


def test_kept_moments_survive_the_rounds_of_the_other_factor(keys, tmp_path: Path):
    """RoLoRA trains B, A, B: with two steps a round B's moments have seen 4 and A's 2; they were reset in every one."""
    diloco = keys | IN_TURN | {"fed_alg": "diloco"}
    run = weft.train(diloco)
    memory = checkpoint.load_client_memory(RunDir(run.path), "client_0", 3)
    assert steps_of(memory["rule.step"]) == {"lora_A": {2.0}, "lora_B": {4.0}}
    assert memory["rule.exp_avg"].keys() == memory["rule.step"].keys()
    reset = weft.train(diloco | {"fed_args": {"inner_state": "reset"}, "output_dir": str(tmp_path / "reset")})
    assert reset.summary["train_loss"] != run.summary["train_loss"]


def test_averaged_moments_survive_them_too(keys):
    """It crashed in the second round, with the steps of factors that had no moments yet."""
    run = weft.train(keys | IN_TURN | {"fed_alg": "diloco", "fed_args": {"inner_state": "average"}})
    assert run.summary["failures"] == {}
    state, _ = checkpoint.latest(RunDir(run.path))
    assert steps_of(state.memory["step"]) == {"lora_A": {2.0}, "lora_B": {4.0}}


def test_fedadamw_counts_the_steps_of_each_factor(keys):
    run = weft.train(keys | IN_TURN | {"fed_alg": "fedadamw"})
    assert run.summary["failures"] == {}
    state, _ = checkpoint.latest(RunDir(run.path))
    assert steps_of(state.memory["steps"]) == {"lora_A": {2.0}, "lora_B": {4.0}}


@pytest.mark.parametrize(
    ("changes", "instead"),
    [
        ({"fed_alg": "scaffold", "client_weight": "minimax"}, {"client_weight": "uniform"}),
        ({"fed_alg": "feddyn", "client_weight": "gain"}, {"fed_alg": "fedavg"}),
        (
            {"fed_alg": "diloco", "fed_args": {"fragments": 2}, "lora_aggregation": "rolora"},
            {"lora_aggregation": "ffa"},
        ),
        ({"fed_alg": "diloco", "fed_args": {"fragments": 2}, "lora_aggregation": "rolora"}, {"fed_args": {}}),
    ],
    ids=str,
)
def test_what_cannot_add_up_is_refused_and_the_remedy_works(keys, changes: dict, instead: dict):
    one = keys | {"num_rounds": 1, "max_steps": 1, "eval_every": 0}
    with pytest.raises(ConfigError, match="write"):
        weft.train(one | changes)
    assert weft.train(one | changes | instead).summary["rounds"] == 1


def test_with_over_selection_every_client_counts_in_some_round(keys):
    """The last of the list were never heard, where all are equally fast."""
    changes = {"num_clients": 4, "over_selection": 0.5, "num_rounds": 10, "max_steps": 1, "eval_every": 0}
    run = weft.train(keys | changes)
    found = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    used = [line["clients"] for line in found if line["event"] == "round"]
    assert {client for clients in used for client in clients} == {f"client_{number}" for number in range(4)}
    assert all(len(clients) == 2 for clients in used)


def test_feddyn_with_epochs_counts_the_steps_of_a_pass(keys):
    run = weft.train(keys | {"fed_alg": "feddyn", "max_steps": -1, "num_train_epochs": 1, "batch_size": 16})
    state, _ = checkpoint.latest(RunDir(run.path))
    # 36 rows a client by 16, rounded up.
    assert float(state.memory["steps"]["steps"]) == 3.0
    assert run.summary["failures"] == {}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probabilities_at_a_temperature_are_trls(temperature: float):
    from trl.trainer.utils import selective_log_softmax

    chance = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(7, 50, generator=chance) * 3, torch.randint(50, (7,), generator=chance)
    found = TokenScores(logits, tokens, torch.zeros(7, dtype=torch.int64)).at(temperature).logps
    torch.testing.assert_close(found, selective_log_softmax(logits, tokens, temperature))


def test_all_log_probabilities_of_grpo_are_of_what_was_drawn(tiny_model, tiny_tokenizer):
    """Those when drawn, the reference's and the loss's: at the temperature, not at 1."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    resident = Resident(model, tiny_tokenizer, torch.device("cpu"), torch.float32)
    resident.store_reference()
    rng = np.random.default_rng(0)
    question = Question(
        rng.integers(3, 200, 5).astype(np.int32), [rng.integers(3, 200, size).astype(np.int32) for size in (3, 4)]
    )
    ids = [torch.tensor([*question.prompt, *choice])[None] for choice in question.choices]
    with torch.no_grad():
        logits = [model(one).logits[0, 4:-1] for one in ids]
    for temperature in (0.5, 1.0):
        objective = GRPO(temperature=temperature, max_new_tokens=4)
        by_hand = torch.cat(
            [
                torch.log_softmax(some / temperature, dim=-1).gather(1, torch.tensor(choice).long()[:, None])[:, 0]
                for some, choice in zip(logits, question.choices, strict=True)
            ]
        )
        (drawn,) = objective._logps(resident, [question])
        np.testing.assert_allclose(drawn, by_hand.numpy(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(objective._token_logps(resident, [question]).detach(), by_hand, rtol=1e-4, atol=1e-5)
    plain = score_choices(resident, [question]).logps.detach()
    assert not torch.allclose(plain, torch.from_numpy(GRPO(temperature=0.5)._logps(resident, [question])[0]), atol=0.1)
