"""Traits and capabilities of algorithms: what is present, and what a wrapper carries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from weft import registry
from weft.algorithms.clustered import CHOICE, INDEX, Clustered
from weft.algorithms.diloco import DiLoCo
from weft.algorithms.fedtext import PROPOSALS, FedText
from weft.core.capabilities import EarlyStart, FromSeeds, ModelChoice, PersonalModels, TurnTaking, UpdateBuffer
from weft.core.parts import Algorithm
from weft.core.texts import to_bytes
from weft.core.types import SEARCH, Update
from weft.errors import BadUpdate

CAPABILITIES = {
    "personal": PersonalModels,
    "rebuild": FromSeeds,
    "turns": TurnTaking,
    "early": EarlyStart,
    "buffer": UpdateBuffer,
    "choice": ModelChoice,
}
PRESENT = {("ditto", "personal"), ("local", "personal"), ("fedkseed", "rebuild"), ("fedbuff", "buffer")}
DECLARED = [name for name, value in vars(Algorithm).items() if not name.startswith("_") and not callable(value)]


class Gift:
    """A capability that there is none of."""


@dataclass(frozen=True)
class Odd(Algorithm):
    """An algorithm with a trait and a capability that the base class does not know."""

    odd: ClassVar[bool] = True

    @property
    def gift(self) -> Gift:
        return GIFT


GIFT = Gift()


def test_each_algorithm_has_the_capabilities_that_are_written_down_here():
    found = set()
    for name in registry.ALGORITHMS:
        algorithm = registry.load(registry.ALGORITHMS, name, "algorithm")()
        for capability, kind in CAPABILITIES.items():
            value = getattr(algorithm, capability)
            assert value is None or isinstance(value, kind)
            found |= {(name, capability)} if value is not None else set()
    assert found == PRESENT


def test_a_capability_follows_from_hyper_parameters():
    turns = DiLoCo(fragments=3).turns
    assert turns is not None
    assert turns.period == 3
    assert DiLoCo().turns is None
    assert isinstance(DiLoCo(delay=1).early, EarlyStart)
    assert DiLoCo().early is None


@pytest.mark.parametrize("name", DECLARED)
def test_a_cluster_carries_what_the_wrapped_algorithm_declares(name: str):
    mark = object()
    wrapped = Clustered(type("Marked", (Algorithm,), {name: mark})())
    stated = name in ("sums_updates", "choice")  # clusters say these two themselves
    assert (getattr(wrapped, name) is mark) == (not stated)


def test_a_cluster_carries_what_was_added_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Algorithm, "late", "base", raising=False)
    monkeypatch.setattr(Odd, "late", "wrapped", raising=False)
    assert Clustered(Algorithm()).late == "base"
    wrapped = Clustered(Odd(), 3, 7)
    assert (wrapped.late, wrapped.odd, wrapped.gift) == ("wrapped", True, GIFT)
    assert (wrapped.clusters, wrapped.seed, wrapped.inner) == (3, 7, Odd())
    assert replace(wrapped, clusters=4) == Clustered(Odd(), 4, 7)


def test_a_cluster_checks_updates_as_the_wrapped_algorithm_does():
    good = {PROPOSALS: to_bytes(["a", "b"], 2, 4)}
    for sent, fits in ((good, True), ({PROPOSALS: torch.full((2, 4), 27, dtype=torch.uint8)}, False)):
        update = Update("x", 0, 0, {SEARCH: sent, CHOICE: {INDEX: torch.tensor(1.0)}}, 1.0)
        if fits:
            Clustered(FedText()).check(update)
        else:
            with pytest.raises(BadUpdate):
                Clustered(FedText()).check(update)
