"""A site's word to other sites: who signed, in which run, and by whose authority."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from support.kits import kit_of
from weft.sites.authority import make_authority
from weft.sites.identity import KitIdentity

TEXT = b"three public keys"


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sites of one authority, and one of another."""
    folder = tmp_path_factory.mktemp("kits")
    ours, theirs = make_authority(folder / "ours", None), make_authority(folder / "theirs", None)
    made = {name: kit_of(ours, folder / "a", name) for name in ("north", "south")}
    return made | {"stranger": kit_of(theirs, folder / "b", "north")}


def test_a_site_vouches_for_what_it_said_in_this_run_and_for_nothing_else(kits):
    north, south = KitIdentity(kits["north"], "run 1"), KitIdentity(kits["south"], "run 1")
    proof = north.sign(TEXT)
    assert south.vouches("north", TEXT, proof)
    assert not south.vouches("north", TEXT + b"!", proof)
    assert not south.vouches("south", TEXT, proof)
    assert not KitIdentity(kits["south"], "run 2").vouches("north", TEXT, proof)
    assert not south.vouches("north", TEXT, KitIdentity(kits["stranger"], "run 1").sign(TEXT))


def test_broken_proofs_prove_nothing(kits):
    north = KitIdentity(kits["north"], "run")
    proof = north.sign(TEXT)
    broken = [b"", b"\0" * 4, proof[:4], proof[:-1], proof[:40], b"\xff" * 600, proof[:3] + b"\1" + proof[4:]]
    for at in range(0, len(proof), 97):
        broken.append(proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :])
    assert not any(north.vouches("north", TEXT, one) for one in broken)
