"""Seeds only: a model as sums along numbered directions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flags import flags
from weft.algorithms.fedkseed import FedKSeed
from weft.cli import main
from weft.core.directions import digest, direction, rebuild
from weft.core.types import SEARCH, Task
from weft.errors import ClientFailed, ConfigError
from weft.runs import checkpoint
from weft.runs.layout import RunDir


@pytest.fixture
def seeds(keys) -> dict[str, object]:
    own = {"use_peft": False, "fed_alg": "fedkseed", "fed_args": {"seeds": 64}, "learning_rate": 3e-4}
    own |= {"dtype": "float32", "num_rounds": 4, "max_steps": 10, "batch_size": 8, "eval_every": 0}
    return keys | own | {"lr_scheduler_type": "constant"}


def test_a_model_rebuilt_from_seeds_equals_the_one_worked_by_hand():
    start = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    sums = torch.zeros(8)
    sums[2], sums[5] = 0.5, -2.0
    made = rebuild(start, sums, 7)
    for name, value in start.items():
        two, five = direction(7, 2, start)[name], direction(7, 5, start)[name]
        assert torch.equal(made[name], value - two * 0.5 - five * -2.0)
    assert torch.equal(direction(7, 2, start)["a"], direction(7, 2, start)["a"])
    assert not torch.equal(direction(7, 2, start)["a"], direction(7, 3, start)["a"])
    assert not torch.equal(direction(8, 2, start)["a"], direction(7, 2, start)["a"])
    assert torch.equal(start["a"], torch.ones(3))


@pytest.mark.slow
def test_training_by_seeds_lowers_the_loss_and_sends_only_sums_of_seeds(seeds, tmp_path: Path):
    still = weft.train(seeds | {"learning_rate": 0.0, "num_rounds": 1, "output_dir": str(tmp_path / "still")})
    run = weft.train(seeds | {"num_rounds": 30, "sample_clients": 3}, quiet=True)
    assert run.summary["eval"]["loss"] < still.summary["eval"]["loss"] - 0.05
    assert run.summary["bytes_up"] == 30 * 3 * 64 * 4
    assert run.summary["bytes_down"] == 30 * 3 * (64 * 4 + 32)  # and which base they are counted from


def test_the_history_gives_the_result_bit_for_bit(seeds):
    """Anybody who has the base and the sums has the trained model, a late joiner too."""
    run = weft.train(seeds, quiet=True)
    found = checkpoint.latest(RunDir(run.path))
    assert found is not None
    state = found[0]
    base = load_file(Path(str(seeds["model_name_or_path"])) / "model.safetensors")
    late = FedKSeed(seeds=64, seed=int(run.config.seed))
    task = late.task(state, "late", state.round)
    assert task.params == {}
    assert set(task.extra) == {SEARCH}
    start = {name: base[name] for name in state.params}
    made = late.rebuild.params(task.extra, start)
    written = load_file(run.path / "model" / "model.safetensors")
    for name, value in made.items():
        assert torch.equal(value, state.params[name])
        assert torch.equal(value, written[name])


def test_another_base_is_refused():
    algorithm = FedKSeed(seeds=4)
    state = algorithm.init({"a": torch.ones(3)})
    task = algorithm.task(state, "x", 0)
    with pytest.raises(ClientFailed, match="another base model"):
        algorithm.rebuild.params(task.extra, {"a": torch.ones(3) + 1e-7})
    assert not torch.equal(digest({"a": torch.ones(3)}), digest({"b": torch.ones(3)}))


def test_a_resumed_run_by_seeds_ends_bit_identical(seeds, tmp_path: Path):
    given = seeds | {"save_model_freq": 1, "checkpoint_seconds": 0}
    one = weft.train(given, quiet=True)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in (*broken.glob("checkpoints/round_00000[34]"), broken / "model"):
        shutil.rmtree(path)
    (broken / "summary.json").unlink()
    weft.train(given | {"output_dir": str(broken)}, resume=True, quiet=True)
    name = "model/model.safetensors"
    assert (one.path / name).read_bytes() == (broken / name).read_bytes()
    assert (one.path / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


def test_training_by_seeds_computes_no_gradient(seeds, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no gradients here")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    assert weft.train(seeds | {"num_rounds": 1}, quiet=True).summary["failures"] == {}


@pytest.mark.parametrize(
    "changes", [{"use_peft": True, "peft_lora_dropout": 0.0}, {"prompt_method": "soft", "num_virtual_tokens": 4}]
)
def test_adapters_and_prompts_are_trained_by_seeds_with_the_same_traffic(seeds, changes: dict[str, object]):
    run = weft.train(seeds | changes | {"num_rounds": 2}, quiet=True)
    assert run.summary["bytes_up"] == 2 * 2 * 64 * 4
    assert run.model is not None


def test_one_step_by_seeds_equals_the_one_worked_by_hand(seeds):
    """A client's sum is lr (L(w + e z) - L(w - e z)) / 2e for the direction that was drawn."""
    from weft.config import build
    from weft.core.seeds import generator
    from weft.federation.clients import InMemory
    from weft.launch import compose
    from weft.launch.population import populate
    from weft.models.load import load_resident
    from weft.models.tokenizer import load_tokenizer
    from weft.training.job import Job

    config = build(seeds | {"max_steps": 1})
    plan, tokenizer = compose.plan(config), load_tokenizer(config)
    population = populate(config, tokenizer, InMemory(), rows="conversations", pool=False)
    model = load_resident(config, tokenizer)
    start = model.values()
    rows = population.trained[0].train
    rule = plan.algorithm.rule(Task("client_0", 0, 0, {}), {})
    done = plan.local.work(model, plan.objective, rows, rule, Job({}, start))
    (sums,) = done.finished.streams[SEARCH].values()
    (number,) = torch.nonzero(sums)[:, 0].tolist()
    assert number == generator(config.seed, "directions", 0, 0).integers(0, 64, 1)[0]
    (window,) = plan.local._windows(plan.objective, rows, 1, Job({}, {}))
    z = direction(config.seed, number, start)
    losses = []
    for sign in (1, -1):
        model.load({name: value + sign * 1e-3 * z[name] for name, value in start.items()})
        with model.evaluating():
            losses.append(float(plan.objective.loss(model, window[0]).total) / len(window[0].targets))
    assert float(sums[number]) == pytest.approx(3e-4 * (losses[0] - losses[1]) / 2e-3, rel=2e-2)
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": 2},
        {"personal_steps": 2},
        {"share": "layers.0"},
        {"prompt_method": "black_box"},
        {"use_peft": True, "lora_aggregation": "rolora"},
        {"use_peft": True, "client_ranks": "2,4"},
    ],
)
def test_keys_that_do_not_go_with_seeds_are_refused(seeds, changes: dict[str, object]):
    with pytest.raises(ConfigError):
        weft.train(seeds | changes, quiet=True)


def test_the_plan_counts_the_numbers(seeds, capsys):
    assert main(["sft", *flags({k: v for k, v in seeds.items() if k != "fed_args"}), "--dry_run"]) == 0
    assert "4.1 kB down and 4.1 kB up" in capsys.readouterr().out
