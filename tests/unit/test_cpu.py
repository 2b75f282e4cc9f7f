"""What `auto` means on a CPU that is held to less than it can do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from weft.models.precision import WIDE, choose_dtype, cpu_has_bfloat16

LIMITS = {
    "": True,
    "AVX512_CORE_BF16": True,
    "AVX512_CORE_AMX": True,
    "ALL": True,
    "AVX2": False,
    "avx2": False,
    "AVX512_CORE": False,
    "AVX512_CORE_VNNI": False,
}


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that can."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "flags : avx512f avx512_bf16 sse4_2\n")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bfloat16_is_chosen_only_where_onednns_limit_allows_it(
    able, limit: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, limit)
    assert cpu_has_bfloat16() == LIMITS[limit]
    chosen = torch.bfloat16 if LIMITS[limit] else torch.float32
    assert choose_dtype("auto", torch.device("cpu"), WIDE) == chosen
    assert choose_dtype("auto", torch.device("cpu"), WIDE - 1) == torch.float32


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_float32_is_chosen_where_torchs_cpu_capability_is_limited(capability: str):
    """In a process of its own, for torch reads the variable once."""
    said = "from weft.models.precision import *; print(choose_dtype('auto', torch.device('cpu'), 4096))"
    env = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "torch.float32"
