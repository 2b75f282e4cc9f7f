"""Random directions by number, and a model as its starting parameters plus a weighted sum of them.

Directions come from a counter-based generator on the CPU and are added one by one, in the order of their numbers, so
that the same coefficients give the same bits on every machine.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from weft.core.seeds import generator
from weft.core.types import Tensors


def direction(seed: int, number: int, like: Tensors) -> Tensors:
    """Return z (standard normal, float32, on the CPU) of the shapes of `like`."""
    chance = generator(seed, "direction", number)
    return {
        name: torch.from_numpy(chance.standard_normal(tuple(value.shape), dtype=np.float32))
        for name, value in like.items()
    }


def rebuild(start: Tensors, sums: Tensor, seed: int) -> Tensors:
    """Return start - sum_j sums[j] z_j, j in order; sums (K,) float32, start on the CPU."""
    params = {name: value.detach().float().clone() for name, value in start.items()}
    for number in torch.nonzero(sums)[:, 0].tolist():
        factor = float(sums[number])
        for name, value in direction(seed, number, params).items():
            params[name].sub_(value.mul_(factor))
    return params


def digest(params: Tensors) -> Tensor:
    """Return the SHA-256 of names, shapes and values as uint8, shape (32,); zeros for tensors without data (meta)."""
    if any(value.is_meta for value in params.values()):
        return torch.zeros(32, dtype=torch.uint8)
    sha = hashlib.sha256()
    # Sorted, so that the digest does not depend on the order of the parameters.
    for name in sorted(params):
        value = params[name].detach().float().cpu().contiguous()
        sha.update(f"{name} {tuple(value.shape)}\n".encode())
        sha.update(value.numpy().tobytes())
    return torch.tensor(list(sha.digest()), dtype=torch.uint8)
