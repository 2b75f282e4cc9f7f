"""Learning rates over the whole run, with warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The learning rate at a step of a round.

    `cosine` and `linear` fall step by step from `peak` to `floor` over all rounds; `cosine_by_round` is
    OpenFedLLM's: floor + (peak - floor) (1 + cos(pi r / R)) / 2, constant within round r of R. `wsd` stays at `peak`
    and falls linearly to 0 in the last `decay_ratio` of all steps (Hu et al. 2024, arXiv 2404.06395). Warm-up is
    linear.
    """

    kind: str
    peak: float
    floor: float
    rounds: int
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    decay_ratio: float = 0.2

    def at(self, round: int, step: int, steps: int) -> float:
        """Return the learning rate of a step (counted from 0) of a round (from 0) that has `steps` steps."""
        step_index, total = round * steps + step, self.rounds * steps
        floor = min(self.floor, self.peak)
        warmup = self.warmup_steps or round_half(self.warmup_ratio * total)
        if step_index < warmup:
            return self.peak * (step_index + 1) / warmup
        if self.kind == "constant":
            return self.peak
        if self.kind == "cosine_by_round":
            return floor + (self.peak - floor) * (1 + math.cos(math.pi * round / self.rounds)) / 2
        if self.kind == "wsd":
            remaining = (total - step_index) / max(1, round_half(self.decay_ratio * total))
            return self.peak * min(1.0, remaining)
        progress = (step_index - warmup) / max(1, total - warmup)
        fall = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress
        return floor + (self.peak - floor) * fall


def round_half(value: float) -> int:
    """Round to the nearest whole number, halves up."""
    return math.floor(value + 0.5)
