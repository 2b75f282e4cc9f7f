"""Devices and number formats: what `auto` means on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from weft.errors import ConfigError

NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

WIDE = 192
"""Smallest hidden size from which bfloat16 is faster than float32 on CPUs that support it (docs/benchmarks.md)."""


def choose_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the first accelerator, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            grow_segments()
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"There is no device '{name}': write auto, cpu, cuda, cuda:0 or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"The device '{name}' was asked for, but torch sees no GPU: write --device cpu or auto.")
    if device.type == "cuda":
        grow_segments()
    return device


ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables with which users set torch's allocator."""


def grow_segments() -> None:
    """Let torch's allocator on a GPU extend its segments, unless the user has set it; before a GPU is first used.

    Batches of different lengths otherwise leave gaps in its memory that no later tensor fits into.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Limits that users can set for oneDNN, which multiplies torch's bfloat16 matrices, under which it has no such product
(https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html)."""


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices natively.

    The variables ATEN_CPU_CAPABILITY, which torch's answer includes, and ONEDNN_MAX_CPU_ISA limit the CPU.
    """
    capabilities = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    if capabilities not in ("AVX512", "AMX") or limit.upper() in WITHOUT_BFLOAT16:
        return False
    try:
        return " avx512_bf16 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices natively; elsewhere they are emulated, many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_has_bfloat16()


def use_tensor_cores(device: torch.device, dtype: torch.dtype) -> bool:
    """Let a GPU multiply float32 matrices in TF32 where it can (Ampere and later); return whether it does so.

    TF32 rounds the factors to 10 bits of mantissa and adds in float32.
    """
    if device.type != "cuda" or dtype != torch.float32 or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    torch.backends.cuda.matmul.allow_tf32 = True
    return True


def choose_dtype(name: str, device: torch.device, hidden_size: int) -> torch.dtype:
    """Return the number format of the model's arithmetic; `auto` is bfloat16 where the hardware is faster at it."""
    if name != "auto":
        return NAMES[name]
    if device.type == "cuda":
        # Before Ampere (T4, V100) bfloat16 is emulated, several times slower than float16.
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float16
    fast = hidden_size >= WIDE and multiplies_bfloat16(device)
    return torch.bfloat16 if fast else torch.float32
