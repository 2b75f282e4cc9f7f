"""What a run imports before its first round: nothing that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "weft.cli": ["torch", "transformers", "numpy"],
    "weft.launch.train": ["peft", "torch.distributed.fsdp", "matplotlib", "datasets", "bitsandbytes", "nvflare", "ray"],
    "weft.models.load": ["peft", "torch.distributed.fsdp", "bitsandbytes"],
}
"""For each module, what importing it must leave out."""


@pytest.mark.parametrize("module", HEAVY)
def test_a_module_imports_nothing_heavy_that_it_may_not_need(module: str):
    code = f"import sys, {module}; print([name for name in {HEAVY[module]} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
