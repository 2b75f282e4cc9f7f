"""Arithmetic on tensors by name."""

from __future__ import annotations

import math

import pytest
import torch

from weft.core import tensors
from weft.core.types import Tensors

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def some(dtype: torch.dtype) -> Tensors:
    """Tensors of the largest number of a dtype, whose sum overflows, beside empty, scalar and integer ones."""
    most = torch.finfo(dtype).max
    values = {f"t{i}": torch.full((7, 5), most, dtype=dtype) for i in range(3)}
    return Tensors(values | {"none": torch.zeros(0, 3, dtype=dtype), "one": torch.tensor(1.0, dtype=dtype)})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_number_that_is_not_finite_is_seen_and_large_ones_are_not_taken_for_it(dtype: torch.dtype, bad: float):
    values = some(dtype) | {"whole": torch.tensor([3, 4])}
    assert tensors.all_finite(values)
    assert tensors.largest(values) == torch.finfo(dtype).max
    for name in ("t0", "t2", "one"):
        changed = values | {name: values[name].clone()}
        changed[name].view(-1)[-1] = bad
        assert not tensors.all_finite(changed)
        assert math.isnan(tensors.largest(changed)) == math.isnan(bad)


def test_the_largest_of_tensors_of_several_kinds():
    assert tensors.largest({}) == 0.0
    assert tensors.largest(Tensors({"none": torch.zeros(0), "shell": torch.ones(3, device="meta")})) == 0.0
    mixed = Tensors({"a": torch.tensor([1.0]), "b": torch.tensor([-2.5], dtype=torch.float64)})
    assert tensors.largest(mixed) == 2.5
    assert tensors.largest(mixed | {"c": torch.tensor([7.0]).bfloat16()}) == 7.0


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_device_is_waited_for_once_whatever_the_number_of_tensors(monkeypatch: pytest.MonkeyPatch, kind: str):
    """Each number that is read from a GPU waits for all work on it; the way of a GPU runs here on the CPU."""
    reads: list[int] = []
    read = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda value: reads.append(1) or read(value))
    for name in ("cpu", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("reads a number"))
    values = [torch.full((3,), float(i)) for i in range(20)]
    assert tensors._largest(values, torch.device(kind)) == 19.0
    assert len(reads) == 1
    values[3][1] = math.nan
    assert math.isnan(tensors._largest(values, torch.device(kind)))


def test_seeding_used_devices_draws_what_seeding_all_draws():
    torch.manual_seed(5)
    expected = torch.rand(3)
    tensors.seed_used_devices(5)
    assert torch.equal(torch.rand(3), expected)
