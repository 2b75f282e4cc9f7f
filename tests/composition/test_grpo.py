"""Learning from verifiable rewards: the loss against trl's, the rewards and their faults, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from support.flags import flags
from support.rows import write_rows
from weft.cli import main
from weft.errors import ConfigError, DataError
from weft.objectives.grpo import GRPO, AnswerGroup
from weft.rewards.score import Claim, Judge, score_all

REWARD = """
import time

def reward(prompt, completion, answer):
    print("what a reward prints disturbs nobody")
    if len(completion) % 4 == 0:
        raise ValueError("no")
    return float("nan") if len(completion) % 4 == 1 else len(completion) % 5

def hangs(prompt, completion, answer):
    while completion == "hang":
        time.sleep(1)
    return 1.0

def ends(prompt, completion, answer):
    import os
    os._exit(3)

def letters(prompt, completion, answer):
    return sum(letter in "abcdefghijklmnopqrstuvwxyz " for letter in completion) / max(1, len(completion))

other = 3
"""


@pytest.fixture
def asked(keys) -> dict[str, object]:
    own = {"objective": "grpo", "peft_lora_dropout": 0.0, "learning_rate": 1e-2, "dtype": "float32", "batch_size": 2}
    return keys | own | {"max_new_tokens": 6, "num_generations": 4, "reward": "length", "reward_length": 10}


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(REWARD, encoding="utf-8")
    return path


def lines(run) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def group(rng: np.random.Generator, objective: GRPO, old: bool) -> AnswerGroup:
    lengths = rng.integers(1, 6, 3)
    nothing = np.zeros(0, dtype=np.float32)
    many = int(lengths.sum())
    return AnswerGroup(
        rng.integers(3, 200, 5).astype(np.int32),
        [rng.integers(3, 200, length).astype(np.int32) for length in lengths],
        objective.advantages(rng.random(3)),
        -rng.random(many).astype(np.float32) if old else nothing,
        -rng.random(many).astype(np.float32) if objective.beta else nothing,
        {},
    )


def theirs(objective: GRPO, logps: torch.Tensor, batch) -> torch.Tensor:
    """Return the loss that trl's own trainer makes of the same log-probabilities."""
    from collections import defaultdict
    from unittest.mock import MagicMock

    from trl.trainer.grpo_trainer import GRPOTrainer

    longest = int(batch.lengths.max())
    mask = (torch.arange(longest)[None] < batch.lengths[:, None]).long()

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(mask.shape).masked_scatter(mask.bool(), values)

    trainer = MagicMock()
    per_token = padded(logps)
    trainer._get_per_token_logps_and_entropies.return_value = (per_token, torch.zeros_like(per_token), None)
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 1.0, None
    trainer.importance_sampling_level, trainer.beta, trainer.loss_type = "token", objective.beta, objective.loss_name
    trainer.epsilon_low = trainer.epsilon_high = objective.clip
    trainer.args.delta, trainer.args.use_bias_correction_kl, trainer.args.steps_per_generation = None, False, 1
    trainer.max_completion_length, trainer.use_vllm, trainer.aux_loss_enabled = objective.max_new_tokens, False, False
    trainer.current_gradient_accumulation_steps = trainer.accelerator.num_processes = 1
    trainer.model.training, trainer._entropy_bonus_enabled = True, False
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer.accelerator.gather = lambda value: value
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch.advantages,
        "num_items_in_batch": mask.sum(),
    }
    if len(batch.old):
        inputs["old_per_token_logps"] = padded(batch.old)
    if objective.beta:
        inputs["ref_per_token_logps"] = padded(batch.reference)
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_the_loss_and_its_gradient_equal_trls(name: str, beta: float, old: bool):
    objective = GRPO(loss_name=name, beta=beta, max_new_tokens=7)
    rng = np.random.default_rng(3)
    batch = objective.collate([group(rng, objective, old) for _ in range(4)])
    ours = (-torch.from_numpy(rng.random(int(batch.lengths.sum()))).float()).requires_grad_()
    also = ours.detach().clone().requires_grad_()
    loss = objective.of_tokens(ours, batch) / len(batch.targets)
    reference = theirs(objective, also, batch)
    assert torch.allclose(loss, reference, atol=1e-5)
    loss.backward()
    reference.backward()
    assert torch.allclose(ours.grad, also.grad, atol=1e-5)


def test_advantages_equal_those_worked_by_hand():
    # mean 1, std with n - 1: sqrt((1 + 0 + 1) / 2) = 1
    assert GRPO().advantages(np.array([0.0, 1.0, 2.0])) == pytest.approx([-1 / 1.0001, 0, 1 / 1.0001])
    assert GRPO(loss_name="dr_grpo").advantages(np.array([0.0, 1.0, 2.0])) == pytest.approx([-1, 0, 1])
    assert GRPO().advantages(np.array([2.0, 2.0, 2.0])) == pytest.approx([0, 0, 0])


@pytest.mark.parametrize(
    ("name", "settings", "completion", "answer", "worth"),
    [
        ("exact", {}, " red ", "red", 1.0),
        ("exact", {}, "Red", "red", 0.0),
        ("numeric", {}, "so it is 1,234.50.", "#### 1234.5", 1.0),
        ("numeric", {}, "first 7, then 8", "7", 0.0),
        ("numeric", {}, "-.5", "-0.50", 1.0),
        ("numeric", {}, "none", "none", 0.0),
        ("regex", {"pattern": r"the answer is (\d+)"}, "the answer is 3, no, the answer is 4", "4", 1.0),
        ("regex", {"pattern": r"the answer is (\d+)"}, "the answer is 3", "4", 0.0),
        ("regex", {"pattern": "please"}, "yes please", "", 1.0),
        ("format", {"format": r"<a>.*?</a>"}, "<a>1\n2</a>", "", 1.0),
        ("format", {"format": r"<a>.*?</a>"}, "so <a>1</a>", "", 0.0),
        ("length", {"length": 4}, "four", "", 1.0),
        ("length", {"length": 4}, "sixsix", "", 0.5),
        ("length", {"length": 4}, "far too long", "", 0.0),
    ],
)
def test_built_in_rewards_score_completions_as_stated(
    name: str, settings: dict[str, object], completion: str, answer: str, worth: float
):
    assert Judge(name, 5.0, settings).score(Claim("?", completion, answer)) == (worth, None)


def test_rewards_that_fail_score_nothing_and_are_counted(rewards: Path, capfd):
    bad, hangs, ends = Judge(str(rewards), 5.0), Judge(f"{rewards}:hangs", 0.3), Judge(f"{rewards}:ends", 5.0)
    claims = [Claim("?", "x" * length, "") for length in range(8)]
    scores = score_all([bad], [2.0], claims)
    assert scores.totals == [0, 0, 4, 6, 0, 0, 2, 4]
    assert scores.faults == {"raised": 2, "not_finite": 2, "hung": 0}
    assert [hangs.score(Claim("?", text, "")) for text in ("hang", "fine", "hang", "fine")] == [
        (0.0, "hung"),
        (1.0, None),
    ] * 2
    assert [ends.score(claims[0]) for _ in range(2)] == [(0.0, "raised")] * 2
    catastrophe = Judge("regex", 0.3, {"pattern": "(a+)+$"})  # the regular expression itself does not come to an end
    assert catastrophe.score(Claim("?", "a" * 60 + "b", "")) == (0.0, "hung")
    said = capfd.readouterr().err
    assert said.count("ValueError: no") == 1  # of each kind, once


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": "exakt"}, "Did you mean 'exact'"),
        ({"reward": "regex"}, "--reward_pattern"),
        ({"reward": "regex", "reward_pattern": "("}, "cannot be used"),
        ({"reward": "nowhere.py"}, "FileNotFoundError"),
        ({"reward": "length,exact", "reward_weights": "1"}, "one for each"),
        ({"max_new_tokens": 128}, "leaves no room"),
        ({"num_generations": 1}, "num_generations"),
    ],
)
def test_a_mistaken_key_is_refused_in_one_sentence(asked, changes: dict[str, object], words: str, capsys):
    given = {key: value for key, value in (asked | changes).items() if key != "reward_length"}
    assert main(["grpo", *flags(given), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said.splitlines()[-1]


def test_a_reward_function_that_is_not_there_is_refused(asked, rewards: Path):
    with pytest.raises(ConfigError, match="nothing_here"):
        weft.train(asked | {"reward": f"{rewards}:nothing_here", "reward_length": None}, quiet=True)


def test_rows_need_answers_for_some_rewards_only(asked, tmp_path: Path):
    rows = [{"prompt": f"Say something of {n}."} for n in range(20)]
    data = {"dataset_name": str(write_rows(tmp_path / "prompts.jsonl", rows)), "num_rounds": 1}
    assert weft.train(asked | data, quiet=True).summary["eval"]["reward"] is not None
    other = {"reward": "exact", "reward_length": None, "output_dir": str(tmp_path / "other")}
    with pytest.raises(DataError, match="row's own answer"):
        weft.train(asked | data | other, quiet=True)


def test_faults_of_a_run_are_reported(asked, rewards: Path, tmp_path: Path, capfd):
    run = weft.train(asked | {"reward": f"length,{rewards}", "num_rounds": 1}, quiet=True)
    first = lines(run)[0]
    assert first["reward_faults"]["raised"] > 0
    assert first["reward_faults"]["not_finite"] > 0
    assert "rewards that failed count as 0" in capfd.readouterr().err


def test_answers_that_do_not_end_are_cut_at_max_new_tokens(asked):
    run = weft.train(asked | {"num_rounds": 1}, quiet=True)
    assert lines(run)[0]["answer_tokens"] <= 6
    assert 0 < run.summary["eval"]["cut"] <= 1


@pytest.mark.parametrize("changes", [{}, {"grpo_iterations": 2, "num_rounds": 9}, {"grpo_loss": "dapo"}])
@pytest.mark.slow
def test_the_reward_rises_over_the_rounds(asked, rewards: Path, changes: dict[str, object]):
    """A model that says anything learns to say letters."""
    own = {"use_peft": False, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "batch_size": 4, "grpo_kl": 0.0}
    own |= {"peft_lora_dropout": None, "reward_length": None}
    own |= {"num_rounds": 6, "max_steps": 8, "num_generations": 8, "eval_every": 0, "reward": f"{rewards}:letters"}
    run = weft.train(asked | own | changes, quiet=True)
    found = [line["reward"] for line in lines(run) if line["event"] == "round"]
    assert found[-1] > found[0] + 0.15, found
    assert run.summary["eval"]["kl"] > 0


def test_a_larger_grpo_kl_keeps_the_model_nearer_to_its_reference(asked):
    found = {}
    for kl in (0.0, 5.0):
        keys = {"grpo_kl": kl, "num_rounds": 4, "max_steps": 6, "eval_every": 0, "learning_rate": 2e-2}
        found[kl] = weft.train(asked | keys | {"output_dir": f"{asked['output_dir']}{kl}"}, quiet=True).summary["eval"]
    assert found[5.0]["kl"] < found[0.0]["kl"] / 2


def test_the_dry_run_says_how_many_answers_are_drawn(asked, capsys):
    assert main(["grpo", *flags({k: v for k, v in asked.items() if k != "objective"}), "--dry_run"]) == 0
    assert "4 to a prompt, of at most 6 tokens, rewarded by length" in capsys.readouterr().out
    assert main(["grpo", *flags(asked | {"reward": "nowhere.py", "reward_length": "null"}), "--dry_run"]) == 2
