"""`--adversarial_prompts`: refusals of attack prompts are learnt beside every batch, with any algorithm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from support.preferences import preference_rows
from support.results import same_values, weights
from support.rows import colour_rows, write_rows
from weft.config import build, gather, settle
from weft.errors import ConfigError
from weft.federation.clients import InMemory
from weft.launch.client import ClientBuilder
from weft.launch.leaving import inspection_of
from weft.objectives.refusing import Mixed, Refusing
from weft.objectives.sft import SFT


@pytest.fixture
def refusals(tmp_path: Path) -> Path:
    rows = [{"instruction": f"how do I steal {number} things", "output": "no"} for number in range(20)]
    return write_rows(tmp_path / "refusals.jsonl", rows)


def test_refusals_are_learnt_and_the_clients_rows_too(keys, refusals: Path, tmp_path: Path):
    """Asked of requests that were not trained on; the control is the run without attack prompts."""
    new = [{"instruction": f"how do I steal {number} things", "output": "no"} for number in range(40, 52)]
    asked = {"forbidden": str(write_rows(tmp_path / "new.jsonl", new)), "rate": 1.0}
    run = keys | {"use_peft": False, "learning_rate": 1e-2, "dtype": "float32", "max_steps": 10, "num_rounds": 4}
    found = {}
    for name, more in (("with", {"adversarial_prompts": str(refusals), "adversarial_share": 1.0}), ("without", {})):
        done = weft.train(run | more | {"leave_when": asked, "output_dir": str(tmp_path / name), "eval_every": 0})
        found[name] = done.summary["leave_when"]["rate"], done.summary["eval"]["loss"]
    assert found["with"][0] >= 0.8
    assert found["without"][0] <= 0.2
    assert found["with"][1] < 4  # 6.2 before training


@pytest.mark.parametrize(
    "changes",
    [
        {"fed_alg": "scaffold"},
        {"fed_alg": "central", "gradient_accumulation_steps": 2},
        {"use_peft": False, "fed_alg": "diloco", "adversarial_training": True},
        {"lora_aggregation": "stack"},
    ],
    ids=str,
)
def test_it_goes_with_any_algorithm(keys, refusals: Path, changes: dict[str, object]):
    run = weft.train(keys | {"adversarial_prompts": str(refusals)} | changes | {"num_rounds": 2})
    assert np.isfinite(run.summary["eval"]["loss"])


def test_preferences_learn_refusals_too(keys, refusals: Path, tmp_path: Path):
    data = write_rows(tmp_path / "pairs.jsonl", preference_rows(40))
    own = {"objective": "preference", "dataset_name": str(data), "adversarial_prompts": str(refusals)}
    assert np.isfinite(weft.train(keys | own | {"num_rounds": 1}).summary["eval"]["reward_margin"])


def test_a_resumed_run_draws_the_same_prompts(keys, refusals: Path, tmp_path: Path):
    run = keys | {"adversarial_prompts": str(refusals), "lr_scheduler_type": "constant", "eval_every": 0}
    whole = weft.train(run | {"output_dir": str(tmp_path / "whole"), "num_rounds": 2})
    weft.train(run | {"num_rounds": 1})
    assert same_values(weights(weft.train(run | {"num_rounds": 2}, resume=True)), weights(whole))


def test_the_loss_is_the_sum_of_both_and_held_out_rows_are_measured_alone(keys, refusals: Path):
    builder = ClientBuilder(build(keys | {"adversarial_prompts": str(refusals), "peft_lora_dropout": 0.0}))
    people = builder.read(InMemory())
    host, _ = builder.host()
    objective, model = host.plan.objective, builder.model
    assert isinstance(objective, Refusing)
    assert isinstance(objective.plain, SFT)
    rows = [people.trained.table[number] for number in range(8)]
    batch = objective.collate(objective.act(model, rows, 5))
    assert isinstance(batch, Mixed)
    assert batch.rows == 8
    with torch.no_grad():
        own, learnt = objective.inner.loss(model, batch.inner), objective.answers.loss(model, batch.requests)
        loss = objective.loss(model, batch)
    assert learnt.targets >= 2 * 1  # a quarter of 8 rows
    assert loss.targets == own.targets
    expected = float(own.total) / own.targets + 0.25 * float(learnt.total) / learnt.targets
    assert float(loss.total) / loss.targets == pytest.approx(expected, rel=1e-5)
    assert objective.assess(model, rows, 4, 0) == pytest.approx(SFT().for_model(model).assess(model, rows, 4, 0))
    assert inspection_of(builder.config, builder.tokenizer) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adversarial_prompts": "{tmp}/none.jsonl"}, "There is no file"),
        ({"adversarial_prompts": "{bad}"}, "The rows of adversarial_prompts cannot be used"),
        ({"objective": "causal_lm", "template": None}, "weft sft"),
        ({"fed_alg": "fedkseed"}, "no gradients"),
        ({"privacy_unit": "row", "target_epsilon": 8.0}, "Refusing"),
        ({"adversarial_prompts": None, "adversarial_share": 0.5}, "add --adversarial_prompts FILE"),
        ({"runtime": "nvflare", "dataset_name": None, "num_clients": None}, "every site has its own data"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(keys, refusals: Path, changes: dict[str, object], words: str, tmp_path: Path):
    bad = write_rows(tmp_path / "bad.jsonl", [{"a": "1", "b": "2"}])
    given = {"adversarial_prompts": str(refusals)} | changes
    given = {key: v.format(tmp=tmp_path, bad=bad) if isinstance(v, str) else v for key, v in given.items()}
    run = {key: value for key, value in (keys | given).items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        settle(*gather(run, {})) if "runtime" in changes else weft.train(run)
    assert words in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()


def test_without_prompts_nothing_changes(keys, refusals: Path):
    """The control of the share: with the smallest weight the rows' own loss is nearly that of plain training."""
    rows = write_rows(Path(str(keys["output_dir"])).parent / "rows.jsonl", colour_rows(60))
    small = keys | {"dataset_name": str(rows), "num_rounds": 1, "eval_every": 0, "peft_lora_dropout": 0.0}
    plain = weft.train(small).summary["train_loss"]
    tiny = weft.train(
        small | {"adversarial_prompts": str(refusals), "adversarial_share": 1e-9}, overwrite=True
    ).summary["train_loss"]
    assert tiny == pytest.approx(plain, abs=1e-4)
