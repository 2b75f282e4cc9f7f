"""A plan: the parts of a run, composed and checked.

What does not commute is found here by comparing traits, never names, before any model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.parts import Aggregator, Algorithm, Codec, Objective, Privacy, Protection
from weft.errors import ConfigError
from weft.training.loop import GradientSteps


@dataclass(frozen=True)
class Plan:
    """The parts of a run. Making one refuses what cannot be combined."""

    algorithm: Algorithm
    aggregator: Aggregator
    privacy: Privacy
    codec: Codec
    protection: Protection
    objective: Objective
    local: GradientSteps

    def __post_init__(self) -> None:
        for refused, sentence in self._rules():
            if refused:
                raise ConfigError(sentence)

    def _rules(self) -> list[tuple[bool, str]]:
        algorithm, protection = self.algorithm, self.protection
        name = type(algorithm).__name__
        return [
            (
                protection.sum_only and not algorithm.sums_updates,
                f"{name} looks at single updates, but {type(protection).__name__} shows the server sums only: choose "
                "another algorithm, or --protection none.",
            ),
            (
                protection.sum_only and not self.aggregator.additive,
                f"{type(self.aggregator).__name__} compares single updates, but {type(protection).__name__} shows the "
                "server sums only: write --aggregator mean, or --protection none.",
            ),
            (
                protection.sum_only and not self.codec.dense,
                f"Updates encoded by {type(self.codec).__name__} cannot be added up under {type(protection).__name__}: "
                "choose another codec, or --protection none.",
            ),
            (
                self.privacy.bounded and not self.aggregator.additive,
                f"{type(self.privacy).__name__} accounts for a mean, and {type(self.aggregator).__name__} is none: "
                "write --aggregator mean.",
            ),
            (
                algorithm.pools_data and (protection.sum_only or self.privacy.bounded),
                f"{name} brings all rows to one place, where there is nobody to protect them from: leave out "
                "--protection and --privacy, or choose a federated algorithm.",
            ),
        ]
