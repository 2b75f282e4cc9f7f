"""What a run needs in memory, and what would make it fit."""

from __future__ import annotations

import pytest
import torch

from support.flags import flags
from weft.cli import main
from weft.config import build
from weft.launch.memory_estimate import describe_memory, remedies
from weft.models.memory import MemoryNeeds, memory

SEVEN = MemoryNeeds(7_000_000_000, 7_000_000_000, 4096, 32, 32_000, 2)
ADAPTER = SEVEN._replace(trained=20_000_000)
GPU, CPU = torch.device("cuda"), torch.device("cpu")
GB = 10**9


def config(**changes: object):
    return build({"dataset_name": "x", "batch_size": 8, "seq_length": 1024} | changes)


def test_the_memory_of_a_model_equals_that_worked_by_hand():
    # 7 G parameters: masters 4, copies 2, gradients 4, moments 8 bytes each.
    nothing = config(batch_size=1, seq_length=2, gradient_checkpointing=True)
    assert memory(nothing, SEVEN) == pytest.approx(7 * GB * 18, rel=1e-3)
    assert memory(nothing, ADAPTER) == pytest.approx(6.98 * GB * 2 + 0.02 * GB * 18, rel=1e-3)
    eight = nothing.model_copy(update={"optimizer": "adamw_8bit"})
    assert memory(eight, SEVEN) == pytest.approx(7 * GB * 12, rel=1e-3)
    spread = nothing.model_copy(update={"parallel": "fsdp"})
    assert memory(spread, SEVEN, 8) == pytest.approx(7 * GB * 18 / 8, rel=1e-3)


@pytest.mark.parametrize("needs", [SEVEN, ADAPTER])
@pytest.mark.parametrize("space", [8 * GB, 24 * GB, 80 * GB])
@pytest.mark.parametrize("device", [GPU, CPU])
def test_keys_that_are_advised_make_a_model_fit(needs: MemoryNeeds, space: int, device: torch.device):
    run = config(use_peft=needs is ADAPTER)
    if memory(run, needs) <= space:
        return
    ways = list(remedies(run, needs, device, space))
    assert all(size <= space for _, size in ways)
    assert ways or space == 8 * GB
    said = describe_memory(run, needs, device, space)
    assert "does not fit" in said
    for words, _ in ways:
        assert words in said


def test_what_does_not_fit_gets_advice_that_names_the_key():
    said = [words for words, _ in remedies(config(use_peft=True, batch_size=2), ADAPTER, GPU, 16 * GB)]
    assert "--load_in_4bit true" in said
    whole = [words for words, _ in remedies(config(batch_size=64), SEVEN, GPU, 80 * GB)]
    assert any("fsdp" in words for words in whole)


def test_what_fits_needs_no_advice(keys, capsys):
    assert main(["sft", *flags(keys), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "for weights, optimizer and one batch, of " in shown
    assert "does not fit" not in shown
