"""Start-up kits: keys, certificates, requests, revocation, and what a kit's files reveal; no FLARE process runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from weft.cli import main
from weft.commands import kits as kits_commands
from weft.errors import ConfigError

pytest.importorskip("nvflare")
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.private.fed.utils.identity_utils import IdentityAsserter, IdentityVerifier
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from weft.sites.authority import DAYS, ROOT_DAYS, fingerprint, issued, spoken
from weft.sites.guard import Gate, SparseAuditor, checked
from weft.sites.kit_settings import ADMIN, SUPERVISOR
from weft.sites.kit_use import bound_logs, delete_old_jobs, kit_in_use
from weft.sites.processes import command
from weft.sites.provisioning import add_kit, make_kits, open_kits
from weft.sites.revocation import revoke
from weft.sites.token_folder import token_folder

PHRASE = "a horse and a battery"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a server, a site and an administrator; tests that change them copy or add."""
    kits = tmp_path_factory.mktemp("made") / "kits"
    make_kits("localhost", ["a"], kits, 8002)
    return kits


def readable_for_others(folder: Path) -> list[str]:
    paths = [folder, *folder.rglob("*")]
    return [str(path.relative_to(folder)) for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]


def private_keys(folder: Path) -> dict[str, int]:
    """Return the files below a folder in which there is a private key, and how many are in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    counts = {str(path.relative_to(folder)): path.read_bytes().count(b"PRIVATE KEY-----") // 2 for path in files}
    return {name: count for name, count in counts.items() if count}


def certificate(kit: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(next((kit / "startup").glob("*.crt")).read_bytes())


def test_a_key_is_in_its_partys_kit_alone_and_no_file_is_readable_for_others(made: Path):
    keys = {f"{kit}/startup/client.key": 1 for kit in ("a", "admin", "server/supervisor")}
    assert private_keys(made) == keys | {"server/startup/server.key": 1, "authority/root.key": 1}
    assert readable_for_others(made) == []


def test_certificates_are_valid_from_a_day_before_and_name_one_use(made: Path):
    now, root = datetime.now(UTC), x509.load_pem_x509_certificate((made / "authority" / "root.crt").read_bytes())
    assert abs(root.not_valid_after_utc - now - timedelta(days=ROOT_DAYS)) < timedelta(hours=1)
    for kit in ("a", "admin", "server", "server/supervisor"):
        one = certificate(made / kit)
        assert timedelta(days=1) <= now - one.not_valid_before_utc < timedelta(days=1, hours=1)
        assert abs(one.not_valid_after_utc - now - timedelta(days=DAYS)) < timedelta(hours=1)
        uses = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        serves = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH in uses
        assert serves == (kit == "server")


def test_the_root_key_is_encrypted_with_a_passphrase_that_is_never_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kits = tmp_path / "kits"
    monkeypatch.setenv("WEFT_PASSPHRASE", PHRASE)
    assert main(["server", "init", "--clients", "a", "--out", str(kits)]) == 0
    assert "not encrypted" not in capsys.readouterr().err
    assert "authority/root.key" not in private_keys(kits)
    assert not any(PHRASE.encode() in path.read_bytes() for path in kits.rglob("*") if path.is_file())
    assert main(["server", "add", str(kits), "b"]) == 0
    monkeypatch.setenv("WEFT_PASSPHRASE", "another")
    assert main(["server", "add", str(kits), "c"]) == 2
    assert "passphrase does not open" in capsys.readouterr().err
    monkeypatch.delenv("WEFT_PASSPHRASE")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["server", "admin", str(kits), "alice@hospital"]) == 2
    assert "set WEFT_PASSPHRASE" in capsys.readouterr().err
    assert sorted(path.name for path in kits.iterdir()) == ["a", "admin", "authority", "b", "server"]


def test_a_federation_begins_without_sites_that_make_their_own_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["server", "init", "--out", str(tmp_path / "kits")]) == 0
    assert "no site has a kit yet" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "kits").iterdir()) == ["admin", "authority", "server"]


def test_an_open_root_key_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["server", "init", "--clients", "a", "--out", str(tmp_path / "kits")]) == 0
    assert capsys.readouterr().err.count("not encrypted") == 1


def test_a_site_makes_its_own_key_and_the_authority_never_has_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = private_keys(made)
    kit = tmp_path / "hospital_c"
    assert main(["client", "request", "--name", "hospital_c", "--out", str(kit)]) == 0
    asked = capsys.readouterr()
    assert private_keys(kit) == {"client.key": 1}
    assert readable_for_others(kit) == []
    sent = tmp_path / "sent.csr"
    sent.write_bytes(Path(asked.out.strip()).read_bytes())
    assert main(["server", "sign", str(made), str(sent)]) == 0
    signed = capsys.readouterr()
    answer = tmp_path / "hospital_c.answer.json"
    assert signed.out.strip() == str(answer)
    spoken_key = asked.err.partition("by telephone: ")[2].splitlines()[0]
    assert len(spoken_key) > 70
    assert f"of their key: {spoken_key}" in signed.err
    assert b"PRIVATE" not in answer.read_bytes()
    assert main(["client", "install", str(answer), "--kit", str(kit)]) == 0
    root = capsys.readouterr().err.partition("by telephone: ")[2].splitlines()[0]
    assert f"of the authority: {root}" in signed.err
    assert private_keys(made) == before
    assert private_keys(kit) == {"startup/client.key": 1}
    assert readable_for_others(kit) == []
    # FLARE itself accepts who has the key of the certificate.
    asserter = IdentityAsserter(str(kit / "startup" / "client.key"), str(kit / "startup" / "client.crt"))
    verifier = IdentityVerifier(str(made / "authority" / "root.crt"))
    signature = asserter.sign_common_name("nonce")
    uses = x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH
    assert verifier.verify_common_name("hospital_c", "nonce", certificate(kit), signature, [], uses)
    settings = json.loads((kit / "startup" / "fed_client.json").read_text())
    assert settings["client"]["fqsn"] == "hospital_c"
    assert (kit / "local" / "authorization.json").read_text() == (made / "a/local/authorization.json").read_text()


def asked(folder: Path, names: list[str], key: object = None, sans: tuple[str, ...] = ()) -> Path:
    """Write a request as a hostile site would, with any subject, key and extensions."""
    folder.mkdir(parents=True, exist_ok=True)
    key = key or rsa.generate_private_key(public_exponent=65537, key_size=2048)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
    attributes.append(x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, "project_admin"))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in sans]), False)
    path = folder / "request.csr"
    path.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))  # type: ignore[arg-type]
    return path


def test_nothing_of_a_request_but_its_name_and_key_gets_into_the_certificate(made: Path, tmp_path: Path):
    path = asked(tmp_path, ["hospital_x"], sans=("localhost",))
    assert main(["server", "sign", str(made), str(path)]) == 0
    answer = json.loads((tmp_path / "hospital_x.answer.json").read_text())
    one = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert one.subject.rfc4514_string() == "O=hospital_x,CN=hospital_x"
    assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hospital_x"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "There is a site 'a' already"),
        (["localhost"], "cannot be called 'localhost'"),
        (["server"], "cannot be called 'server'"),
        (["../b"], "cannot be called"),
        (["b", "c"], "no signing request"),
        ([], "no signing request"),
        (["boss@evil"], "--admin"),
        ([SUPERVISOR], "cannot be called"),
        ([ADMIN], "There is an administrator"),
    ],
)
def test_a_request_with_a_name_that_is_taken_or_not_a_sites_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], said: str
):
    before = len(issued(made / "authority"))
    assert main(["server", "sign", str(made), str(asked(tmp_path, names))]) == 2
    assert said in capsys.readouterr().err
    assert len(issued(made / "authority")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["request.csr"]


def test_a_request_that_is_damaged_or_has_another_kind_of_key_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    for key in (weak, ec.generate_private_key(ec.SECP256R1())):
        assert main(["server", "sign", str(made), str(asked(tmp_path, ["hospital_y"], key))]) == 2
        assert "key of another kind" in capsys.readouterr().err
    path = asked(tmp_path, ["hospital_y"])
    request = bytearray(x509.load_pem_x509_csr(path.read_bytes()).public_bytes(Encoding.DER))
    place = request.index(b"hospital_y")
    request[place : place + 10] = b"hospital_z"  # the name is no longer the one that was signed
    path.write_bytes(x509.load_der_x509_csr(bytes(request)).public_bytes(Encoding.PEM))
    assert main(["server", "sign", str(made), str(path)]) == 2
    assert "not signed with the key" in capsys.readouterr().err
    path.write_bytes(b"x" * (1 << 17))
    assert main(["server", "sign", str(made), str(path)]) == 2
    assert "too long" in capsys.readouterr().err


def test_an_answer_for_another_key_or_of_another_federation_makes_no_kit(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("hospital_d", "hospital_e"):
        assert main(["client", "request", "--name", name, "--out", str(tmp_path / name)]) == 0
    request = tmp_path / "hospital_d" / "request.csr"
    answer = tmp_path / "answer.json"
    assert main(["server", "sign", str(made), str(request), "--out", str(answer)]) == 0
    capsys.readouterr()
    assert main(["client", "install", str(answer), "--kit", str(tmp_path / "hospital_e")]) == 2
    assert "for another key" in capsys.readouterr().err
    other = tmp_path / "other"
    make_kits("localhost", ["z"], other, 8002)
    foreign = json.loads(answer.read_text()) | {"root": (other / "authority" / "root.crt").read_text()}
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    assert main(["client", "install", str(tmp_path / "foreign.json"), "--kit", str(tmp_path / "hospital_d")]) == 2
    assert "no certificate of the authority" in capsys.readouterr().err
    hosts, ports = ({"host": "evil/../x"}, {"host": "a..b"}), ({"port": "8002"}, {"port": True})
    for bad in (*hosts, *ports, {"name": "hospital_e"}, {"form": "x"}):
        (tmp_path / "bad.json").write_text(json.dumps(json.loads(answer.read_text()) | bad))
        assert main(["client", "install", str(tmp_path / "bad.json"), "--kit", str(tmp_path / "hospital_d")]) == 2
    (tmp_path / "bad.json").write_text('{"form":' + "[" * 60_000)
    assert main(["client", "install", str(tmp_path / "bad.json"), "--kit", str(tmp_path / "hospital_d")]) == 2
    assert sorted(path.name for path in (tmp_path / "hospital_d").iterdir()) == ["client.key", "request.csr"]
    more = json.loads(answer.read_text()) | {"clients": 5, "admins": None}  # which a folder of kits has, and no answer
    answer.write_text(json.dumps(more))
    assert main(["client", "install", str(answer), "--kit", str(tmp_path / "hospital_d")]) == 0
    # The same key and name again is a renewal; a kit never changes its federation.
    assert main(["client", "request", "--name", "hospital_d", "--out", str(tmp_path / "hospital_d")]) == 0
    assert main(["server", "sign", str(made), str(request), "--out", str(answer)]) == 0
    before = certificate(tmp_path / "hospital_d")
    assert main(["client", "install", str(answer), "--kit", str(tmp_path / "hospital_d")]) == 0
    assert certificate(tmp_path / "hospital_d") != before


def test_a_party_that_is_shut_out_comes_back_with_another_key_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kits, kit = tmp_path / "kits", tmp_path / "hospital_f"
    make_kits("localhost", ["a"], kits, 8002)
    assert main(["client", "request", "--name", "hospital_f", "--out", str(kit)]) == 0
    request = kit / "request.csr"
    assert main(["server", "sign", str(kits), str(request)]) == 0
    assert not readable_for_others(kit)
    assert main(["server", "revoke", str(kits), "hospital_f"]) == 0
    capsys.readouterr()
    assert main(["server", "sign", str(kits), str(request)]) == 2
    assert "was shut out" in capsys.readouterr().err
    assert main(["server", "revoke", str(kits), "hospital_f"]) == 2
    assert "shut out already" in capsys.readouterr().err
    assert main(["server", "revoke", str(kits), "hospital_ff"]) == 2
    assert "no site or administrator 'hospital_ff'" in capsys.readouterr().err
    assert main(["server", "revoke", str(kits), "ab"]) == 2
    assert "is 'a' meant?" in capsys.readouterr().err
    for party in ("localhost", SUPERVISOR):
        assert main(["server", "revoke", str(kits), party]) == 2
    assert main(["client", "request", "--name", "hospital_f", "--out", str(tmp_path / "again")]) == 0
    again = tmp_path / "again" / "request.csr"
    assert main(["server", "sign", str(kits), str(again)]) == 0
    (kits / "server").rename(tmp_path / "server")
    capsys.readouterr()
    assert main(["server", "revoke", str(kits), "a"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(kits / "authority" / "revoked.json")
    assert "copy" in said.err
    names = [entry["name"] for entry in json.loads((kits / "authority" / "revoked.json").read_text())]
    assert names == ["hospital_f", "a"]


def test_who_revokes_hears_of_copies_of_the_server_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Kits are copied to the machines that need them, and the original folder often stays where it was made."""
    kits = tmp_path / "kits"
    make_kits("localhost", ["a"], kits, 8002)
    capsys.readouterr()
    assert main(["server", "revoke", str(kits), "a"]) == 0
    said = capsys.readouterr().err
    assert f"the server that runs from {kits / 'server'} refuses 'a' from now on" in said
    assert f"copy {kits / 'authority' / 'revoked.json'} into local/" in said


@pytest.mark.parametrize(("verb", "words"), [("server", kits_commands.SERVER), ("client", kits_commands.CLIENT)])
def test_help_names_every_command_and_none_is_taken_for_another(
    verb: str, words: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = capsys.readouterr().out
    flag = ["--site", "site.yaml"] if verb == "client" else ["--out", str(tmp_path / "kits")]
    for word in ("check", *words):
        assert f"{word}:" in said
        assert main([verb, *flag, word, str(tmp_path)]) == 2
        assert f"write `weft {verb} {word} ...`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Door:
    """A server of TLS with the kit of a server, as FLARE listens, and the guard's gate."""

    def __init__(self, kits: Path) -> None:
        self.gate, self.accepted = Gate(kits / "server"), []
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        startup = kits / "server" / "startup"
        context.load_verify_locations(startup / "rootCA.pem")
        context.load_cert_chain(startup / "server.crt", startup / "server.key")
        context.sslsocket_class = checked(self.gate)
        self.listening = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while self.listening.fileno() >= 0:
            with contextlib.suppress(OSError):
                connection, _ = self.listening.accept()
                self.accepted.append(connection)
                connection.sendall(b"in")

    def connect(self, kit: Path) -> ssl.SSLSocket:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        context.check_hostname = False
        context.load_verify_locations(kit / "startup" / "rootCA.pem")
        context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
        connection = socket.create_connection(self.listening.getsockname(), timeout=5)
        return context.wrap_socket(connection)

    def lets_in(self, kit: Path) -> bool:
        try:
            with self.connect(kit) as connection:
                return connection.recv(2) == b"in"
        except OSError:
            return False

    def close(self) -> None:
        self.listening.close()
        for connection in self.accepted:
            connection.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[tuple[Door, Path]]:
    kits = tmp_path / "kits"
    make_kits("localhost", ["a", "b"], kits, 8002)
    door = Door(kits)
    yield door, kits
    door.close()


def test_a_revoked_certificate_is_cut_and_refused_at_the_handshake(door: tuple[Door, Path]):
    gate, kits = door
    with gate.connect(kits / "b") as connection, gate.connect(kits / "a") as other:
        assert connection.recv(2) == other.recv(2) == b"in"
        revoke(kits, "b")
        gate.gate.sweep()
        assert connection.recv(2) == b""
        other.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other.recv(2)
    assert not gate.lets_in(kits / "b")
    assert gate.lets_in(kits / "a")
    revoke(kits, ADMIN)
    assert not gate.lets_in(kits / "admin")
    (kits / "b").rename(kits / "old")
    add_kit(kits, "b")
    assert gate.lets_in(kits / "b")
    assert not gate.lets_in(kits / "old")


def test_a_list_of_revoked_certificates_that_cannot_be_read_lets_nobody_in(door: tuple[Door, Path]):
    gate, kits = door
    for content in ("[", "{}", '[{"name": "a"}]'):
        (kits / "server" / "local" / "revoked.json").write_text(content)
        assert not gate.lets_in(kits / "a")


def test_a_silent_connection_does_not_hold_the_door_for_ever(door: tuple[Door, Path], monkeypatch: pytest.MonkeyPatch):
    gate, kits = door
    monkeypatch.setattr("weft.sites.guard.HANDSHAKE", 0.3)
    with socket.create_connection(gate.listening.getsockname()):
        assert gate.lets_in(kits / "a")


def test_a_kit_that_two_machines_use_is_said_once(door: tuple[Door, Path], caplog: pytest.LogCaptureFixture):
    gate, kits = door
    for number in range(1, 10):
        assert gate.lets_in(kits / "a")
        assert gate.lets_in(kits / "admin")
        assert caplog.text.count("'a' has connected 8 times") == (number >= 8)
    assert "from 127.0.0.1: either two processes use its kit" in caplog.text
    assert len(caplog.records) == 1


def test_tokenized_text_is_private_and_expires(tmp_path: Path):
    folder = token_folder(tmp_path)
    for age, name in ((29, "used"), (31, "old")):
        (folder / name).mkdir()
        (folder / name / "0.tokens").touch()
        for path in (folder / name / "0.tokens", folder / name):
            os.utime(path, (time.time() - age * 86400,) * 2)
    (folder / "old" / "lock").touch()  # a run uses it
    assert len(list(token_folder(tmp_path).iterdir())) == 2
    for path in (folder / "old" / "lock", folder / "old"):
        os.utime(path, (1e9, 1e9))
    assert [path.name for path in token_folder(tmp_path).iterdir()] == ["used"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_supervisor_may_repeat_end_and_see_jobs_and_nothing_else(made: Path):
    def allowed(kit: Path, person: Person) -> set[str]:
        rules = json.loads((kit / "local" / "authorization.json").read_text())
        authorizer = FLAuthorizer("weft", rules)
        rights = {*COMMAND_CATEGORIES, "submit_job", "clone_job", "app_command", "byoc", "get_job_log", "list_job"}
        rights |= {"download_job_components", "configure_job_log", "configure_site_log", "register_study"}
        return {right for right in rights if authorizer.authorize(AuthzContext(right, person))[0]}

    supervisor = Person(SUPERVISOR, "weft", "lead")
    sees = {"list_jobs", "get_job_meta", "check_status"}
    assert allowed(made / "server", supervisor) == sees | {"clone_job", "abort_job"}
    assert allowed(made / "a", supervisor) == {"submit_job", "abort_job"}
    admin = allowed(made / "server", Person(ADMIN, "weft", "project_admin"))
    assert {"submit_job", "abort_job", "delete_job"} <= admin
    assert not admin & {"byoc", "clone_job", "cat", "tail", "download_job", "restart", "shutdown", "disable_client"}
    assert not admin & {"configure_job_log", "configure_site_log"}


def test_each_administrator_has_a_kit_with_their_own_name(made: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["server", "admin", str(made), "alice@hospital"]) == 0
    kit = Path(capsys.readouterr().out.strip())
    assert json.loads((kit / "startup" / "fed_admin.json").read_text())["admin"]["username"] == "alice@hospital"
    one = certificate(kit).subject
    assert one.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "alice@hospital"
    assert one.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)[0].value == "project_admin"
    assert main(["server", "admin", str(made), "alice@hospital"]) == 2
    assert main(["server", "admin", str(made), "alice"]) == 2
    assert main(["server", "admin", str(made), SUPERVISOR]) == 2


def test_certificates_are_renewed_for_the_same_keys_but_not_for_who_was_shut_out(
    door: tuple[Door, Path], capsys: pytest.CaptureFixture[str]
):
    gate, kits = door
    revoke(kits, "b")
    before = {kit: (certificate(kits / kit), private_keys(kits / kit)) for kit in ("a", "b", "server", "admin")}
    assert main(["server", "renew", str(kits)]) == 0
    renewed = {str(Path(line).relative_to(kits)) for line in capsys.readouterr().out.splitlines()}
    assert renewed == {"a", "admin", "server", "server/supervisor"}
    for kit, (old, keys) in before.items():
        new = certificate(kits / kit)
        assert (new == old) == (kit == "b")
        assert new.subject == old.subject
        assert private_keys(kits / kit) == keys
    assert gate.lets_in(kits / "a")
    assert not gate.lets_in(kits / "b")
    revoke(kits, "a")
    assert not gate.lets_in(kits / "a")


@pytest.mark.parametrize(("party", "component"), [("server", "guard"), ("server", "loopback"), ("a", "loopback")])
def test_kits_that_lack_a_guard_are_named_as_old_ones(party: str, component: str, made: Path, tmp_path: Path):
    kit = Path(shutil.copytree(made / party, tmp_path / party))
    settings = json.loads((kit / "local" / "resources.json").read_text())
    settings["components"] = [part for part in settings["components"] if part["id"] != component]
    (kit / "local" / "resources.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="made by an earlier Weft"):
        command(kit, tmp_path / "site.yaml" if party == "a" else None)


def test_an_old_authority_is_named_as_such(tmp_path: Path):
    (tmp_path / "authority").mkdir()
    (tmp_path / "authority" / "project.json").write_text('{"host": "localhost", "port": 1, "clients": ["a"]}')
    with pytest.raises(ConfigError, match="no authority of this Weft"):
        open_kits(tmp_path, None)


HOLD = "import sys; from pathlib import Path; from weft.sites.kit_use import kit_in_use\n"
HOLD += "with kit_in_use(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"


def test_a_kit_is_used_by_one_process_and_the_lock_of_a_dead_one_is_no_obstacle(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(ConfigError, match=f"in use by the process {holder.pid} "), kit_in_use(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with kit_in_use(tmp_path):
        assert (tmp_path / "in_use").read_text() == f"{os.getpid()}\n"


def test_a_second_server_with_the_same_kit_is_refused_before_it_starts_anything(
    made: Path, capsys: pytest.CaptureFixture[str]
):
    kit = made / "server"
    with kit_in_use(kit):
        assert main(["server", "start", str(kit)]) == 2
    printed = capsys.readouterr().err
    assert f"'{kit}' is in use by the process {os.getpid()}" in printed
    assert "the server runs" not in printed
    assert not (kit / "console.log").exists()


def test_logs_are_bounded_and_lose_nothing_but_the_oldest(tmp_path: Path):
    log = tmp_path / "console.log"
    with open(log, "ab", buffering=0) as file:
        for number in range(5):
            file.write(b"%d" % number * 100)
            bound_logs(tmp_path, most=99, kept=2)
        assert log.read_bytes() == b""
        file.write(b"x")  # the process that has it open goes on in the same file
    assert log.read_bytes() == b"x"
    assert {path.name: path.read_bytes()[:1] for path in tmp_path.iterdir()} == {
        "console.log": b"x",
        "console.log.1": b"4",
        "console.log.2": b"3",
    }
    assert readable_for_others(tmp_path / "console.log.1") == []


def test_folders_of_old_jobs_are_deleted_and_nothing_else(tmp_path: Path):
    old, new = "06e0963a-69b0-47a8-9c97-421117968fce", "16e0963a-69b0-47a8-9c97-421117968fce"
    for name in (old, new, "runs", "weft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.txt").touch()
        if name != new:
            for path in (tmp_path / name / "log.txt", tmp_path / name):
                os.utime(path, (1e9, 1e9))
    delete_old_jobs(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [new, "runs", "weft"]


def test_the_audit_log_has_what_people_did_and_one_line_for_what_they_polled(tmp_path: Path):
    auditor = SparseAuditor(str(tmp_path / "audit.log"))
    for _ in range(100):
        auditor.add_event("alice@hospital", "list_jobs -d")
        auditor.add_event("bob@bank", "check_status server")
    for name in ("one", "two"):
        assert auditor.add_event("alice@hospital", f"submit_job {name}")
        assert auditor.add_event("bob@bank", f"abort_job {name}")
    auditor.close()
    lines = [line.partition("[U:")[2] for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [line.partition("]")[0] for line in lines] == ["alice@hospital", "bob@bank"] * 3
    assert sum("list_jobs" in line or "check_status" in line for line in lines) == 2


def test_a_fingerprint_is_read_in_groups_of_four(made: Path):
    words = spoken(fingerprint(certificate(made / "a"))).split()
    assert len(words) == 16
    assert {len(word) for word in words} == {4}


def test_the_key_of_encrypted_sums_is_in_the_kits_of_sites_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("tenseal", reason="the extra he is not installed")
    kits = tmp_path / "kits"
    make_kits("localhost", ["a", "b"], kits, 8002)
    assert main(["server", "ckks", str(kits)]) == 0
    said = capsys.readouterr()
    assert "needs" in said.err
    add_kit(kits, "c")
    add_kit(kits, "ann@clinic")
    files = {path.relative_to(kits).as_posix(): path for path in kits.rglob("ckks.key")}
    assert set(files) == {"authority/ckks.key", "a/ckks.key", "b/ckks.key", "c/ckks.key"}
    assert len({path.read_bytes() for path in files.values()}) == 1
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files.values())
    before = files["a/ckks.key"].read_bytes()
    assert main(["server", "ckks", str(kits)]) == 2
    assert "write --renew" in capsys.readouterr().err
    assert files["a/ckks.key"].read_bytes() == before
    assert main(["server", "ckks", str(kits), "--renew"]) == 0
    assert files["a/ckks.key"].read_bytes() != before
    assert main(["server", "ckks", str(tmp_path / "elsewhere")]) == 2
    assert "weft server init" in capsys.readouterr().err
