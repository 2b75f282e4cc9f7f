"""What a run left: its weights, and the lines of its metrics."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file


def weights(run, client: str | None = None) -> dict[str, torch.Tensor]:
    """Return the shared weights that a run ended with, or a client's own."""
    (file,) = run.weights(client).glob("*model.safetensors")
    return load_file(file)


def same_values(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit by bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def metrics(run) -> list[dict[str, object]]:
    """Return the lines of a run's metrics."""
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def events(run, event: str = "round") -> list[dict]:
    """Return those lines of a run's metrics that tell of one kind of event."""
    return [line for line in metrics(run) if line["event"] == event]
