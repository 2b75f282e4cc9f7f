"""Muon as inner optimizer, and moments that baselines keep: against torch's own optimizers, and resumed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.optimizers import step_along
from support.rows import write_rows
from weft.config import build
from weft.errors import ConfigError
from weft.federation.clients import InMemory
from weft.launch import compose
from weft.launch.population import populate
from weft.models.load import load_resident
from weft.models.memory import MemoryNeeds, memory
from weft.models.precision import cpu_has_bfloat16
from weft.models.tokenizer import load_tokenizer
from weft.training.muon import ITERATIONS, QUINTIC, Muon, matrices_of, orthogonal
from weft.training.optimizers import Optimizer, moments_of
from weft.training.order import rows_of_round

MUON = {"optimizer": "muon", "learning_rate": 1e-2, "weight_decay": 0.1}


@pytest.fixture
def texts(keys, tmp_path: Path) -> dict:
    rows = [{"text": f"the {one} dog and the {two} cat"} for one in "abcd" for two in "efghij"]
    data = write_rows(tmp_path / "text.jsonl", rows)
    own = {"objective": "causal_lm", "use_peft": False, "template": None, "eval_fraction": 0.0, "eval_every": 0}
    own |= {"dataset_name": str(data), "num_clients": 1, "sample_clients": 1, "batch_size": 3, "max_steps": 2}
    own |= {"num_rounds": 4, "lr_scheduler_type": "cosine", "dtype": "float32", "clients": None}
    return keys | own | {"output_dir": str(tmp_path / "out"), "checkpoint_seconds": 0, "save_model_freq": 1}


def weights(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*.safetensors")
    return load_file(file)


def polynomial(matrix: torch.Tensor) -> torch.Tensor:
    """What Newton-Schulz computes, by torch's SVD: the iterated polynomial of the singular values."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    first, third, fifth = QUINTIC
    for _ in range(ITERATIONS):
        values = first * values + third * values**3 + fifth * values**5
    return left * values @ right


class BySingularValues(torch.optim.Optimizer):
    """Muon written out, in the place of torch's where bfloat16 is emulated."""

    def __init__(self, params, **defaults: float):
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        for matrix in group["params"]:
            state = self.state[matrix]
            mean = state["mean"] = 0.95 * state.get("mean", 0.0) + 0.05 * matrix.grad
            step = polynomial(0.05 * matrix.grad + 0.95 * mean).float()
            matrix -= group["lr"] * (group["weight_decay"] * matrix + 0.2 * max(matrix.shape) ** 0.5 * step)


def test_a_round_makes_the_steps_of_torchs_muon_and_adamw(texts):
    """Written out: Muon for the matrices of the layers, AdamW for the table of tokens, the head and the norms."""
    config = build({key: value for key, value in (texts | MUON).items() if value is not None} | {"num_rounds": 1})
    tokenizer = load_tokenizer(config)
    people = populate(config, tokenizer, InMemory(), rows="text", pool=False)
    model = load_resident(config, tokenizer)
    inside = {name for name in model.masters if ".layers." in name and model.masters[name].dim() == 2}
    assert matrices_of(model) == inside
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= model.masters.keys() - inside
    named = [{name: v for name, v in model.masters.items() if (name in inside) == wanted} for wanted in (True, False)]
    how = {"lr": 0.0, "weight_decay": 0.1}
    if cpu_has_bfloat16():
        muon = torch.optim.Muon(list(named[0].values()), momentum=0.95, adjust_lr_fn="match_rms_adamw", **how)
    else:
        muon = BySingularValues(named[0].values(), **how)
    adamw = torch.optim.AdamW(list(named[1].values()), betas=(0.9, 0.999), eps=1e-8, fused=True, **how)
    steps, objective = compose.local_steps(config), compose.plan(config).objective
    model.model.train()
    (site,) = people.trained
    order = rows_of_round(len(site.train), 6, seed=config.seed, client=site.index, round=0).reshape(2, 3)
    for step in range(2):
        loss = objective.loss(model, objective.collate([site.train[int(row)] for row in order[step]]))
        (loss.total / loss.targets).backward()
        torch.nn.utils.clip_grad_norm_(list(model.masters.values()), 1.0)
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = steps.schedule.at(0, step, 2)
            optimizer.step()
            optimizer.zero_grad()
    run = weft.train(texts | MUON | {"num_rounds": 1})
    for name, value in weights(run).items():
        torch.testing.assert_close(value, model.masters[name].detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (5, 5), (1, 7)])
def test_muon_is_torchs_to_the_last_bit_in_bfloat16(shape: tuple[int, int]):
    torch.manual_seed(0)
    begun = torch.randn(shape)
    mine, theirs = begun.clone().requires_grad_(), begun.clone().requires_grad_()
    ours = Muon([{"params": [mine], "weight_decay": 0.1}], 0.9, torch.bfloat16)
    how = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    other = torch.optim.Muon([theirs], **how)
    ours.param_groups[0]["lr"] = 0.02
    for _ in range(5):
        mine.grad = torch.randn(shape)
        theirs.grad = mine.grad.clone()
        ours.step()
        other.step()
        assert torch.equal(mine, theirs)
    assert torch.equal(ours.state[mine]["momentum_buffer"], other.state[theirs]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (30, 30), (1, 9)])
def test_the_products_of_muon_move_singular_values_alone(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(orthogonal(matrix, torch.float32).double(), polynomial(matrix), rtol=1e-4, atol=1e-5)


def test_muon_goes_on_from_its_state():
    torch.manual_seed(0)
    how, device = Optimizer("muon", weight_decay=0.1), torch.device("cpu")
    begun = {"w": torch.randn(8, 6), "table": torch.randn(9, 4), "b": torch.randn(4)}
    gradients = [{name: torch.randn_like(value) for name, value in begun.items()} for _ in range(4)]

    whole = {name: value.clone().requires_grad_() for name, value in begun.items()}
    step_along(whole, how.make(whole, {}, device, {"w"}), gradients)
    halves = {name: value.clone().requires_grad_() for name, value in begun.items()}
    first = how.make(halves, {}, device, {"w"})
    step_along(halves, first, gradients[:2])
    state = moments_of(first, halves)
    assert {key: set(values) for key, values in state.items()} == {
        "momentum_buffer": {"w"},
        **{key: {"table", "b"} for key in ("step", "exp_avg", "exp_avg_sq")},
    }
    step_along(halves, how.make(halves, state, device, {"w"}), gradients[2:])
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.parametrize(("limit", "dtype"), [("avx2", torch.float32), ("", None)])
def test_muon_multiplies_in_bfloat16_only_where_the_cpu_does(limit: str, dtype: torch.dtype | None):
    """On a CPU with AVX2 a step in bfloat16 takes 20 times as long as in float32."""
    code = (
        "import torch; from weft.training.muon import Muon; from weft.models.precision import cpu_has_bfloat16; "
        "print(Muon([{'params': [torch.ones(2, 2)], 'weight_decay': 0.0}], 0.9).dtype, cpu_has_bfloat16())"
    )
    environment = {"ATEN_CPU_CAPABILITY": limit} if limit else {}
    said = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, text=True, check=True, capture_output=True
    ).stdout.split()
    assert said[0] == str(dtype or (torch.bfloat16 if said[1] == "True" else torch.float32))


def test_without_weight_decay_muon_has_none_of_its_own():
    params = {"w": torch.ones(3, 3, requires_grad=True)}
    optimizer = Optimizer("muon").make(params, {}, torch.device("cpu"), {"w"})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_rounds_leave_no_trace_where_moments_are_kept(texts, tmp_path: Path, optimizer: str):
    """Central training with kept moments, and DiLoCo of one client by default, are one uninterrupted training."""
    own = texts | MUON | {"optimizer": optimizer}
    central = weights(weft.train(own | {"fed_alg": "central", "keep_moments": True}))
    diloco = weights(weft.train(own | {"fed_alg": "diloco", "output_dir": str(tmp_path / "diloco")}))
    local = weft.train(own | {"fed_alg": "local0", "keep_moments": True, "output_dir": str(tmp_path / "local")})
    anew = weights(weft.train(own | {"fed_alg": "central", "output_dir": str(tmp_path / "anew")}))
    for name, value in central.items():
        torch.testing.assert_close(diloco[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(weights(local)[name], value)
    assert any(not torch.allclose(anew[name], central[name], atol=1e-4) for name in central)


RESUMED = {
    "central": {"fed_alg": "central", "keep_moments": True},
    "central, muon": {"fed_alg": "central", "keep_moments": True, "optimizer": "muon"},
    "local": {"fed_alg": "local", "keep_moments": True, "num_clients": 2, "eval_everybody": False},
    "diloco": {
        "fed_alg": "diloco",
        "optimizer": "muon",
        "num_clients": 2,
        "sample_clients": 2,
        "fed_args": {"bias_correction": True, "outer_warmup": 0.25, "outer_decay": 0.5},
    },
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_run_is_the_same_to_the_last_bit(texts, tmp_path: Path, changes: dict[str, object]):
    given = {
        key: value for key, value in (texts | MUON | {"optimizer": "adamw"} | changes).items() if value is not None
    }
    one = weft.train(given)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in (*broken.glob("checkpoints/round_00000[34]"), broken / "model"):
        shutil.rmtree(path, ignore_errors=True)
    (broken / "summary.json").unlink()
    again = weft.train(given | {"output_dir": str(broken)}, resume=True)
    assert (again.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    if changes["fed_alg"] != "local":
        first, second = weights(one), weights(again)
        assert all(torch.equal(first[name], second[name]) for name in first)


REFUSED = {
    "moments": ({"fed_alg": "fedadamw"}, "works with AdamW's moments in full, which muon does not have"),
    "averaged moments": ({"fed_alg": "diloco", "fed_args": {"inner_state": "average"}}, "write --optimizer adamw"),
    "a step at the server": ({"fed_alg": "fedsgd", "max_steps": 1}, "write --optimizer adamw"),
    "a prompt": ({"objective": "sft", "prompt_method": "soft"}, "trains none of them: write --optimizer adamw"),
    "shards": ({"parallel": "fsdp"}, "--optimizer adamw or sgd"),
    "a momentum without muon": ({"optimizer": "adamw", "muon_momentum": 0.9}, "write --optimizer muon"),
    "kept moments of a federation": ({"keep_moments": True}, "write --fed_alg central or --fed_alg local"),
    "shares that are none": ({"fed_alg": "diloco", "fed_args": {"outer_decay": 2}}, "write such as outer_warmup=0.05"),
    "a momentum of 1": ({"fed_alg": "diloco", "fed_args": {"momentum": 1}}, "write such as outer_lr=0.6 momentum=0.9"),
    "nothing to correct": (
        {"fed_alg": "diloco", "fed_args": {"momentum": 0, "bias_correction": True}},
        "leave it out, or write momentum=0.9",
    ),
}


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_in_a_sentence(texts, changes: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        weft.train(texts | {"optimizer": "muon", "num_clients": 2, "sample_clients": 2} | changes)
    assert str(caught.value).count(". ") == 0
    assert not Path(str(texts["output_dir"])).exists()


def test_the_memory_of_muon_is_one_moment_for_matrices_and_two_for_the_table():
    needs = MemoryNeeds(parameters=1000, trained=1000, hidden=4, layers=1, vocabulary=50, width=4)
    config = build({"dataset_name": "x", "use_peft": False, "dtype": "float32", "gradient_checkpointing": False})
    of = {kind: memory(config.model_copy(update={"optimizer": kind}), needs) for kind in ("sgd", "muon", "adamw")}
    assert of["muon"] - of["sgd"] == 4 * 1000 + 4 * 200
    assert of["adamw"] - of["sgd"] == 8 * 1000
