"""LoRA aggregation in whole runs: what is exact, what is written, and clients of different ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from weft.core import lowrank
from weft.core.types import SIDE
from weft.runs import checkpoint
from weft.runs.layout import RunDir

EXACT = ("stack", "residual", "ffa", "rolora", "fedsb")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A tiny GPT-2, whose layers are Conv1D: weights (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **size, **ends)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def errors(run) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line["product_error"] for line in lines if line["event"] == "round"]


@pytest.mark.parametrize("lora", EXACT)
@pytest.mark.parametrize("kind", ["square and not", "conv1d", "rslora"])
def test_the_product_is_averaged_exactly(keys, gpt2: Path, lora: str, kind: str):
    changes: dict[str, object] = {"lora_aggregation": lora, "num_rounds": 4, "eval_every": 0, "learning_rate": 1e-2}
    changes["product_error"] = "always"
    if kind == "conv1d":
        # c_attn is 32 to 96, c_proj 32 to 32 and 128 to 32, all Conv1D.
        changes |= {"model_name_or_path": str(gpt2), "peft_lora_target_modules": ["c_attn", "c_proj"]}
    else:
        # q_proj and o_proj are square, v_proj is 32 to 16, down_proj 64 to 32.
        changes |= {"peft_lora_target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]}
        changes |= {"use_rslora": kind == "rslora"}
    found = errors(weft.train(keys | changes))
    assert len(found) == 4
    assert max(found) < 1e-6


@pytest.mark.parametrize("lora", ["average", "svd"])
def test_other_averages_report_their_error(keys, lora: str):
    changes = {"lora_aggregation": lora, "num_rounds": 4, "eval_every": 0, "learning_rate": 1e-2, "peft_lora_r": 2}
    changes["product_error"] = "always"
    found = errors(weft.train(keys | changes))
    assert max(found) > 1e-3
    assert max(found) < 1


def test_the_error_is_computed_in_rounds_that_are_evaluated_unless_asked(keys, tmp_path: Path):
    changes = {"num_rounds": 5, "eval_every": 2, "learning_rate": 1e-2, "max_steps": 1}
    found, weights, summaries = {}, {}, {}
    for when in ("auto", "always", "none"):
        run = weft.train(keys | changes | {"product_error": when, "output_dir": str(tmp_path / when)})
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        found[when] = {line["round"]: line["product_error"] for line in lines if "product_error" in line}
        weights[when], summaries[when] = products(run), run.summary
        assert [line["round"] for line in lines if line["event"] == "eval"] == [2, 4, 5]
    assert list(found["always"]) == [1, 2, 3, 4, 5]
    assert found["auto"] == {round: found["always"][round] for round in (2, 4, 5)}
    assert found["none"] == {}
    # What is measured changes nothing of the training.
    assert all(torch.equal(value, weights["none"][name]) for name, value in weights["auto"].items())
    assert summaries["auto"]["product_error_max"] == max(found["auto"].values())
    assert summaries["auto"]["product_error"] == pytest.approx(sum(found["auto"].values()) / 3)
    assert summaries["none"]["product_error"] is None


@pytest.mark.parametrize("lora", ["residual", "svd", "merge"])
def test_aggregations_combine_products_in_rounds_without_an_error_too(keys, lora: str, tmp_path: Path):
    changes = {"lora_aggregation": lora, "num_rounds": 3, "learning_rate": 1e-2, "max_steps": 1}
    changes |= {"lora_merge_every": 2} if lora == "merge" else {}
    runs = [
        weft.train(keys | changes | {"product_error": when, "output_dir": str(tmp_path / when)})
        for when in ("always", "none")
    ]
    always, none = map(products, runs)
    assert all(torch.equal(value, none[name]) for name, value in always.items())


def alone(keys, tmp_path: Path, **changes: object) -> list[dict[str, torch.Tensor]]:
    """Return the factors that each client has after one round on its own."""
    found = []
    for client in range(3):
        run = weft.train(keys | changes | {"fed_alg": f"local{client}", "output_dir": str(tmp_path / f"only{client}")})
        found.append(load_file(run.weights() / "adapter_model.safetensors"))
    return found


def products(run) -> dict[str, torch.Tensor]:
    """Return the change that a written adapter makes to every layer, by its own configuration."""
    values = load_file(run.weights() / "adapter_model.safetensors")
    config = json.loads((run.weights() / "adapter_config.json").read_text())
    made = {}
    for name, a in values.items():
        if ".lora_A." in name:
            module = name.partition(".lora_A.")[0]
            short = module.removeprefix("base_model.model.")
            rank = config["rank_pattern"].get(short, config["r"])
            alpha = config["alpha_pattern"].get(short, config["lora_alpha"])
            assert a.shape[0] == rank
            made[module] = alpha / rank * values[f"{module}.lora_B.weight"] @ a
    return made


@pytest.mark.parametrize("lora", ["stack", "residual", "svd"])
def test_the_result_is_the_weighted_average_of_the_clients_products(keys, lora: str, tmp_path: Path):
    one = {"num_rounds": 1, "sample_clients": 3, "learning_rate": 1e-2, "max_steps": 4}
    clients = alone(keys | one, tmp_path)
    run = weft.train(keys | one | {"lora_aggregation": lora, "peft_lora_r": 8})
    directory = RunDir(run.path)
    split = json.loads(directory.split_file.read_text())["clients"]
    rows = [split[f"client_{i}"]["rows"] - run.summary["clients"][f"client_{i}"]["rows"] for i in range(3)]
    for module, found in products(run).items():
        mean = sum(
            n / sum(rows) * 2 * own[f"{module}.lora_B.weight"] @ own[f"{module}.lora_A.weight"]
            for n, own in zip(rows, clients, strict=True)
        )
        if lora == "svd":
            u, s, vt = torch.linalg.svd(mean)
            mean = (u[:, :8] * s[:8]) @ vt[:8]
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", ["stack", "residual", "fedsb", "dual"])
def test_what_is_written_is_what_was_trained(keys, lora: str):
    """The folded adapter, loaded by peft alone, scores as the run did with its parts beside each other."""
    run = weft.train(keys | {"lora_aggregation": lora, "learning_rate": 1e-2, "sample_clients": 3})
    scores = run.summary["models"].get("clients", {})
    for client, expected in [(c, s["own"]["loss"]) for c, s in scores.items()] or [(None, None)]:
        model = run.load_model(client)
        assert model.peft_config["default"].r >= 8
        if expected is not None:
            assert held_out_loss(run, model, client) == pytest.approx(expected, rel=1e-4)
    if not scores:
        everybody = [held_out_loss(run, run.load_model(), c, sums=True) for c in run.summary["clients"]]
        loss = sum(total for total, _ in everybody) / sum(count for _, count in everybody)
        assert loss == pytest.approx(run.summary["eval"]["loss"], rel=1e-4)


def held_out_loss(run, model, client: str, *, sums: bool = False):
    """Compute a client's held-out loss with nothing of the run but its rows."""
    from weft.federation.clients import InMemory
    from weft.launch.population import populate
    from weft.models.tokenizer import load_tokenizer

    population = populate(run.config, load_tokenizer(run.config), InMemory(), rows="conversations", pool=False)
    site = population.evaluated.find(client)
    total, count = 0.0, 0
    for row in range(len(site.held_out)):
        tokens, learnt = site.held_out[row]
        ids = torch.tensor(tokens[None].astype("int64"))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        picked = logits.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(learnt[1:])]
        total, count = total - float(picked.sum()), count + len(picked)
    return (total, count) if sums else total / count


def test_ffa_never_changes_a_and_sends_half(keys, tmp_path: Path):
    start = weft.train(keys | {"learning_rate": 0, "output_dir": str(tmp_path / "start")})
    run = weft.train(keys | {"lora_aggregation": "ffa", "learning_rate": 1e-2})
    before, after = (load_file(one.weights() / "adapter_model.safetensors") for one in (start, run))
    for name in before:
        assert torch.equal(before[name], after[name]) == (".lora_A." in name), name
    # q 32 to 32 and v 32 to 16: B has 32 + 16 of 32 + 32 + 32 + 16 numbers a rank.
    assert run.summary["bytes_up"] * (64 + 48) == start.summary["bytes_up"] * 48


def test_rolora_trains_b_and_a_in_turn(keys):
    run = weft.train(
        keys | {"lora_aggregation": "rolora", "num_rounds": 2, "save_model_freq": 1, "learning_rate": 1e-2}
    )
    directory = RunDir(run.path)
    files = sorted(directory.checkpoints.glob("round_*/server.safetensors"))
    first, second = (load_file(file) for file in files)
    for name in first:
        if name.startswith("params/"):
            assert torch.equal(first[name], second[name]) == (".lora_B." in name), name


def test_fedsa_shares_a_and_keeps_b(keys):
    run = weft.train(keys | {"lora_aggregation": "fedsa", "sample_clients": 3, "learning_rate": 1e-2})
    own = [load_file(run.weights(f"client_{i}") / "adapter_model.safetensors") for i in range(3)]
    assert {kind for name in own[0] for kind in ("lora_A", "lora_B") if f".{kind}." in name} == {"lora_A", "lora_B"}
    for name in own[0]:
        assert torch.equal(own[0][name], own[1][name]) == (".lora_A." in name), name


def test_fedsb_sends_the_same_bytes_whatever_the_width_of_a_layer(keys):
    run = weft.train(keys | {"lora_aggregation": "fedsb"})
    # q and v of two layers, 8 x 8 numbers of 4 bytes, 2 clients, 3 rounds.
    assert run.summary["bytes_up"] == 4 * 64 * 4 * 2 * 3


@pytest.mark.parametrize("lora", ["average", "svd", "stack", "ffa", "rolora", "fedsa", "fedsb", "dual"])
@pytest.mark.slow
def test_clients_of_different_ranks_learn_and_send_less(keys, lora: str):
    changes = {"client_ranks": [1, 2, 8], "lora_aggregation": lora, "num_clients": 3, "sample_clients": 2}
    run = weft.train(keys | changes | {"num_rounds": 4, "learning_rate": 1e-2, "save_model_freq": 1})
    full = weft.train(keys | {"lora_aggregation": lora, "num_rounds": 4, "output_dir": str(run.path) + "-full"})
    assert run.summary["bytes_up"] < full.summary["bytes_up"]
    assert run.summary["failures"] == {}
    assert run.summary["eval"]["loss"] < 6.14


def test_a_small_client_trains_only_its_rank(keys):
    """The components that a client was not sent stay as they were."""
    changes = {"client_ranks": [2], "sample_clients": 3, "learning_rate": 1e-2, "fed_alg": "scaffold"}
    run = weft.train(keys | changes | {"save_model_freq": 1, "num_rounds": 2})
    files = sorted(RunDir(run.path).checkpoints.glob("round_*/server.safetensors"))
    first, second = (load_file(file) for file in files)
    for name in (name for name in first if name.startswith("params/") and ".lora_A." in name):
        assert torch.equal(first[name][2:], second[name][2:])
        assert not torch.equal(first[name][:2], second[name][:2])


def test_the_rank_of_the_side_adapter_is_bounded(keys):
    changes = {"lora_aggregation": "stack", "lora_side_rank": 3, "learning_rate": 1e-2, "num_rounds": 4}
    run = weft.train(keys | changes | {"product_error": "always"})
    state, _ = checkpoint.latest(RunDir(run.path))
    assert {side.a.shape[0] for side in lowrank.side_products(state.memory[SIDE]).values()} == {3}
    assert max(errors(run)) > 1e-6


@pytest.mark.parametrize("lora", ["residual", "fedsb", "dual"])
def test_adapters_on_a_quantised_base_are_trained_without_failures(keys, lora: str):
    pytest.importorskip("bitsandbytes")
    changes = {"load_in_8bit": True, "lora_aggregation": lora, "num_rounds": 2, "learning_rate": 1e-2}
    run = weft.train(keys | changes | {"product_error": "always"})
    if lora == "residual":
        assert max(errors(run)) < 1e-6
    assert run.summary["failures"] == {}


def test_merging_changes_nothing_but_the_rank(keys, tmp_path: Path):
    """At the round of a merge the model is what plain averages give; from there on the ranks add up."""
    changes = {"num_rounds": 5, "eval_every": 1, "learning_rate": 1e-2, "peft_lora_r": 4, "dtype": "float32"}
    plain = weft.train(keys | changes | {"output_dir": str(tmp_path / "plain")})
    run = weft.train(keys | changes | {"lora_aggregation": "merge", "lora_merge_every": 2})
    evaluations = [
        [json.loads(line)["loss"] for line in (one.path / "metrics.jsonl").read_text().splitlines() if '"eval"' in line]
        for one in (plain, run)
    ]
    assert evaluations[1][:2] == pytest.approx(evaluations[0][:2], rel=1e-5)
    assert evaluations[1][4] < evaluations[1][1]
    assert max(lowrank_ranks(run)) == 3 * 4
    state, _ = checkpoint.latest(RunDir(run.path), print)
    assert {value.shape[0] for name, value in state.memory[SIDE].items() if name.endswith("side_A")} == {8}


def lowrank_ranks(run) -> list[int]:
    """Return the rank of the product of every layer of a written adapter."""
    return [int(torch.linalg.matrix_rank(value, rtol=1e-5)) for value in products(run).values()]
