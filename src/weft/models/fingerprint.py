"""What a model is, in one hash: so that parties know that they begin from the same."""

from __future__ import annotations

import hashlib

import torch

from weft.models.resident import Resident


def fingerprint(model: Resident) -> str:
    """Return the SHA-256 of a freshly loaded model: names, shapes and values of the base, as they are computed with.

    What is trained is left out: its beginning is sent.
    """
    digest = hashlib.sha256()
    for name, value in model.model.state_dict(keep_vars=True).items():
        if name in model.params:
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
