"""Masked sums of 1,000 random cohorts: exact modulo the group, or closed; and one secret of a client at most."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from support.sealed_cohort import Cohort, assert_mean
from weft.core.types import ProtectionReply
from weft.protection import masking, shamir
from weft.protection.mask_server import MaskOpening
from weft.protection.masks import Masks
from weft.protection.members import to_bytes
from weft.protection.opening import threshold
from weft.protection.sums import to_integers

PHASES = ("keys", "shares", "task", "unmask")


@dataclass(frozen=True)
class Seen(Masks):
    """Masks whose sums a test may look at."""

    openings: list[MaskOpening] = field(default_factory=list)

    def opening(self, *given):
        self.openings.append(super().opening(*given))
        return self.openings[-1]


def both_secrets(cohort: Cohort, opening: MaskOpening) -> list[str]:
    """Return the clients of whom the server can compute the secret that it must not have.

    Of those in the sum that is the key of the masks that they share, of the others the own mask.
    """
    members = opening.members
    known: dict[str, dict[int, bytes]] = {name: {} for name in members.names}
    for reply in cohort.seen:
        if isinstance(reply, ProtectionReply) and reply.phase == "unmask":
            owners = [peer for peer in members.peers[reply.client] if peer in opening.shares] + [reply.client]
            for owner, row in zip(owners, reply.streams["unmask"]["shares"], strict=True):
                known[owner][members.holders(owner).index(reply.client) + 1] = to_bytes(row)
    found = []
    for owner, shares in known.items():
        keys = members.keys[owner]
        makes, wanted = (
            (masking.public_key, keys.mask) if owner in opening.added else (masking.commitment, keys.commitment)
        )
        if shamir.join(shares, members.threshold(owner), lambda one: makes(one) == wanted) is not None:  # noqa: B023
            found.append(owner)
    return found


def one_cohort(seed: int) -> bool:
    """Return whether the sum of a random cohort was opened, after checking it."""
    rng = random.Random(seed)
    count = rng.randint(3, rng.choice([6, 9, 14] * 3 + [50]))  # the work grows with the square
    neighbours = rng.choice([0, 2 * rng.randint(2, (count - 2) // 2)]) if count > 6 else 0
    cohort = Cohort(count, seen := Seen(neighbours=neighbours), width=rng.randint(1, 40))
    some_peers = neighbours > 0 or count > 40  # a client is lost with the few that hold its shares
    gone = rng.sample(cohort.names, rng.randint(0, count // 2))
    cohort.lost = {name: rng.choice(PHASES) for name in gone}
    lost = [list(cohort.lost.values()).count(phase) for phase in PHASES]
    # The bounds of an earlier round bring the modulus from 64 bits to 32.
    bounds = torch.tensor(8.0, dtype=torch.float64)
    cohort.collect(memory={"bounds": {"delta/w": bounds}} if rng.random() < 0.5 else None)
    (opening,) = seen.openings
    wrong = seed, count, neighbours, lost
    if not hasattr(opening, "total"):
        assert count - sum(lost[:2]) < threshold(count) or some_peers, wrong
        return False
    plain = [to_integers(cohort.update(name), opening.grid, None)[0] for name in opening.added]
    numbers = sum((one.numbers for one in plain), np.zeros_like(opening.total.numbers))
    exact = bool((opening.total.numbers == numbers).all())
    there, answers = count - sum(lost[:3]), count - sum(lost)
    opens = there >= max(3, threshold(count)) and answers >= threshold(count - lost[0])
    assert exact == opens or (some_peers and not exact), wrong
    assert not both_secrets(cohort, opening), wrong
    return exact


def test_sums_of_random_cohorts_are_exact_or_stay_closed():
    opened = [one_cohort(seed) for seed in range(20)]
    assert 3 < sum(opened) < 17


@pytest.mark.slow
def test_sums_of_a_thousand_random_cohorts_are_exact_or_stay_closed():
    opened = [one_cohort(seed) for seed in range(1000, 2000)]
    assert 100 < sum(opened) < 900


def test_the_check_finds_a_client_of_whom_both_secrets_were_told():
    """A control: the server is given the shares of a survivor's key too."""
    cohort = Cohort(5, seen := Seen())
    cohort.lost = {cohort.names[0]: "task"}
    found, _ = cohort.collect()
    assert found is not None
    assert_mean(cohort, found, cohort.names[1:])
    (opening,) = seen.openings
    assert not both_secrets(cohort, opening)
    opening.added.append(cohort.names[0])
    assert both_secrets(cohort, opening) == [cohort.names[0]]
