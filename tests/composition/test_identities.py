"""Identities that hold to the last bit, and averages worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.rows import colour_rows, write_rows
from support.tolerances import STEADY, after_steps


def weights(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*.safetensors")
    return load_file(file)


def rounds(run) -> list:
    kept = run.metrics.drop(columns=["clients", "bytes_up", "bytes_down", "product_error"], errors="ignore")
    return kept.fillna(-1).to_dict("records")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "kind", [{}, {"dtype": "bfloat16"}, {"use_peft": False}, {"gradient_accumulation_steps": 2}, {"max_steps": -1}]
)
def test_one_client_with_everything_is_central_training(keys, kind: dict[str, object], tmp_path: Path):
    one = weft.train(keys | kind | {"num_clients": 1, "sample_clients": 1, "output_dir": str(tmp_path / "a")})
    central = weft.train(keys | kind | {"num_clients": 1, "fed_alg": "central", "output_dir": str(tmp_path / "b")})
    assert same(weights(one), weights(central))
    assert rounds(one) == rounds(central)
    assert one.summary["eval"] == central.summary["eval"]


def test_the_average_is_the_weighted_sum_worked_by_hand(keys, tmp_path: Path):
    sizes = {"a": 10, "b": 20, "c": 50}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", colour_rows(size, size)) for name, size in sizes.items()}
    shared = {k: v for k, v in keys.items() if k not in ("dataset_name", "num_clients")} | {
        "clients": [{"name": name, "data": str(path)} for name, path in files.items()],
        "num_rounds": 1,
        "sample_clients": 3,
        "eval_fraction": 0,
    }
    federated = weights(weft.train(shared | {"output_dir": str(tmp_path / "all")}))
    alone = [
        weights(weft.train(shared | {"fed_alg": f"local{i}", "output_dir": str(tmp_path / f"only{i}")}))
        for i in range(3)
    ]
    for name, value in federated.items():
        expected = sum(size / 80 * one[name] for size, one in zip(sizes.values(), alone, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    assert not same(alone[0], alone[1])


def test_local_keeps_a_model_for_each_client_and_nothing_travels(keys):
    run = weft.train(keys | {"fed_alg": "local"})
    own = [load_file(run.weights(f"client_{i}") / "adapter_model.safetensors") for i in range(3)]
    assert not same(own[0], own[1])
    assert run.summary["bytes_up"] == run.summary["bytes_down"] == 0
    assert set(run.summary["clients"]) == {"client_0", "client_1", "client_2"}


def test_local_equals_each_client_alone(keys, tmp_path: Path):
    """The same client, the same steps: `local` goes on from its own memory, `local1` from the server's state."""
    everybody = weft.train(keys | STEADY | {"fed_alg": "local", "output_dir": str(tmp_path / "all")})
    one = weft.train(keys | STEADY | {"fed_alg": "local1", "output_dir": str(tmp_path / "one")})
    own, alone = load_file(everybody.weights("client_1") / "adapter_model.safetensors"), weights(one)
    for name in own:
        torch.testing.assert_close(own[name], alone[name], **after_steps(6, 1e-3))


def test_fine_tuning_lowers_the_loss(keys):
    changes = {"use_peft": False, "template": "alpaca", "num_rounds": 10, "max_steps": 20, "batch_size": 16}
    changes |= {"learning_rate": 1e-2, "lr_scheduler_type": "cosine", "eval_every": 0}
    run = weft.train(keys | changes)
    losses = run.metrics["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0] / 50
    assert run.summary["eval"]["accuracy"] == 1.0
    assert run.summary["choices"] == ["blue", "green", "red"]


def test_rounding_to_bfloat16_changes_little(keys, tmp_path: Path):
    single = weft.train(keys | {"dtype": "float32", "output_dir": str(tmp_path / "a")})
    half = weft.train(keys | {"dtype": "bfloat16", "output_dir": str(tmp_path / "b")})
    assert single.metrics["train_loss"].iloc[-1] == pytest.approx(half.metrics["train_loss"].iloc[-1], rel=0.02)
