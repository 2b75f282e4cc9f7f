"""Sites sign their updates by their certificates; the record keeps that, and `weft verify` checks it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from support.fake_sites import NAMES, FakeSites
from support.kits import kits_of
from weft.cli import main
from weft.core.types import Update
from weft.core.wire import pack, unpack
from weft.runs.chain import START, read_chain
from weft.runtimes.mailbox import PollResult
from weft.sites.identity import AUTHORITY
from weft.sites.server import serve


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return kits_of(tmp_path_factory.mktemp("authority"), list(NAMES))


@pytest.fixture
def signing(sites: FakeSites, kits) -> FakeSites:
    sites.kits = kits
    for name in NAMES:
        sites.begin(name)
    return sites


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["verify", *words])
    out, err = capsys.readouterr()
    return code, out + err


@pytest.mark.parametrize("more", [{}, {"protection": "masks"}])
def test_updates_are_signed_and_anybody_with_the_authority_can_check_it(run, signing, kits, capsys, more):
    authority = kits[NAMES[0]] / AUTHORITY
    path = serve(run | more, signing, list(NAMES), "1", authority=authority).path
    code, words = said(capsys, str(path), "--authority", str(authority))
    assert code == 0, words
    rounds = [entry for entry in read_chain(path / "chain.jsonl")[0] if entry["event"] == "round"]
    count = sum(len(entry["signatures"]) for entry in rounds)
    assert count >= 3
    assert f"{count} updates are signed by their sites, 0 are not." in words
    code, words = said(capsys, str(path))
    assert code == 0
    assert "signatures of sites are not checked: add --authority" in words
    code, words = said(capsys, str(path), "--replay", "1")
    assert code == 2
    assert "at its sites" in words


def test_a_server_that_writes_another_update_into_the_record_is_found(run, signing, kits, capsys):
    """The server may write the whole record anew, its card and its checkpoints too, but signs for no site."""
    from weft.core.chain import to_line

    authority = kits[NAMES[0]] / AUTHORITY
    path = serve(run, signing, list(NAMES), "1", authority=authority).path
    entries = read_chain(path / "chain.jsonl")[0]
    one = next(entry for entry in entries if entry["event"] == "round")
    one["received"][NAMES[1]] = ["0" * 64]
    chain, lines = START, b""
    for entry in entries:
        chain, line = to_line(chain, entry)
        lines += line
    (path / "chain.jsonl").write_bytes(lines)
    code, words = said(capsys, str(path), "--authority", str(authority))
    assert code == 1
    assert f"chain.jsonl (round 1, the field 'signatures'): the signature is not that of the site '{NAMES[1]}'" in words


def test_the_signature_of_another_authority_is_none(run, signing, kits, capsys, tmp_path: Path):
    path = serve(run, signing, list(NAMES), "1", authority=kits[NAMES[0]] / AUTHORITY).path
    other = kits_of(tmp_path / "others", ["somebody"])["somebody"] / AUTHORITY
    code, words = said(capsys, str(path), "--authority", str(other))
    assert code == 1
    assert "the signature is not that of the site" in words
    assert said(capsys, str(path), "--authority", str(tmp_path / "none"))[0] == 2


def test_a_certificate_that_is_renewed_holds_from_its_line_on(run, signing, kits, tmp_path: Path):
    from weft.sites.signatures import check_record

    authority = kits[NAMES[0]] / AUTHORITY
    path = serve(run, signing, list(NAMES), "1", authority=authority).path
    entries = read_chain(path / "chain.jsonl")[0]
    count = check_record(entries, authority).signed
    renewed = {"event": "changed", "after": 1, "certificates": dict.fromkeys(NAMES, "00")}
    checked = check_record([*entries, renewed], authority)
    assert (checked.signed, checked.findings) == (count, [])
    assert check_record([*entries[:1], *entries[1:2], renewed, *entries[2:]], authority).findings


class Changing:
    """A line on which somebody changes the weight of one site's updates, and the checksum with it."""

    def __init__(self, sites: FakeSites) -> None:
        self.sites = sites

    def ask(self, client: str, ticket: str, raw, wait: float) -> PollResult:
        result = self.sites.ask(client, ticket, raw, wait)
        if client != NAMES[0] or result.answer is None or bytes(result.answer[:1]) == b"{":
            return result
        run = self.sites.site_clients[client].run
        reply = unpack(bytes(result.answer), run=run)
        if not isinstance(reply, Update):
            return result
        return result._replace(answer=bytes(pack(replace(reply, weight=reply.weight / 2), run)))


def test_an_update_that_was_changed_on_its_way_is_refused(run, signing, kits, tmp_path: Path):
    there = serve(run, Changing(signing), list(NAMES), "1", authority=kits[NAMES[0]] / AUTHORITY)
    lines = list(map(json.loads, (there.path / "metrics.jsonl").read_text().splitlines()))
    rounds = [line for line in lines if line["event"] == "round"]
    assert all(NAMES[0] not in line["clients"] for line in rounds)
    assert any("its certificate did not sign" in line["failures"].get(NAMES[0], "") for line in rounds)


def test_sites_without_kits_are_counted_as_unsigned(run, sites: FakeSites, kits, capsys):
    path = serve(run, sites, list(NAMES), "1", authority=kits[NAMES[0]] / AUTHORITY).path
    code, words = said(capsys, str(path), "--authority", str(kits[NAMES[0]] / AUTHORITY))
    assert code == 0
    assert "0 updates are signed by their sites" in words
