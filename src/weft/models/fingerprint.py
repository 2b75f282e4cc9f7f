"""A hash of a model's frozen weights, by which parties check that they start from the same base."""

from __future__ import annotations

import hashlib

import torch

from weft.models.resident import Resident


def fingerprint(model: Resident) -> str:
    """Return the SHA-256 of a freshly loaded model's base: names, shapes, dtypes and values, in the compute dtype.

    Of trained parameters only names and shapes count, because the server sends their initial values.
    """
    digest = hashlib.sha256()
    for name, value in model.model.state_dict(keep_vars=True).items():
        if name in model.params:
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
