"""`weft server check` and `weft client check`, with real kits and listeners that stand for a server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from support.rows import colour_rows, write_rows
from support.tls_listener import tls_listener
from weft.cli import main
from weft.sites.check_certificates import check_certificates
from weft.sites.check_network import check_connection
from weft.sites.check_site import check_key
from weft.sites.findings import FAIL, OK, WARN, Finding, examine
from weft.sites.kit_files import read_kit
from weft.sites.local_federation import free_port
from weft.sites.policy import AcceptRules, SiteData, SitePolicy
from weft.sites.policy_words import SENTENCES, policy_in_words
from weft.sites.provisioning import make_kits

pytest.importorskip("nvflare")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kits of two federations with the same names and port."""
    folder, port = tmp_path_factory.mktemp("made"), free_port()
    for name in ("kits", "others"):
        make_kits("localhost", ["hospital_a"], folder / name, port)
    return folder


@pytest.fixture
def kits(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "kits", tmp_path / "kits")
    return tmp_path / "kits"


@pytest.fixture
def others(made: Path) -> Path:
    return made / "others"


@pytest.fixture
def port(kits: Path) -> int:
    return read_kit(kits / "server").port


@pytest.fixture
def policy(tiny_model: Path, tmp_path: Path) -> dict[str, object]:
    write_rows(tmp_path / "rows.jsonl", colour_rows(24))
    held = [{"instruction": f"What is the hue of thing {number}?", "output": "red"} for number in range(5)]
    write_rows(tmp_path / "held.jsonl", held)
    accept = {"models": [str(tiny_model)], "max_rounds": 5, "min_train_rows": 8}
    return {"data": {"path": "rows.jsonl", "eval": "held.jsonl"}, "accept": accept, "threads": 1}


@pytest.fixture
def run_file(keys, tmp_path: Path) -> Path:
    own = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients", "output_dir")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(own | {"eval_fraction": 0}))
    return tmp_path / "run.yaml"


def site(policy: dict[str, object], tmp_path: Path) -> str:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(policy))
    return str(tmp_path / "site.yaml")


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = (finding for finding in findings if finding.check == check)
    return found


LINE = re.compile(r"(ok  |warn|FAIL)  [a-z]+: .+")


def test_a_server_that_can_start_passes(kits: Path, port: int, capsys):
    before = sorted(kits.rglob("*"))
    assert main(["server", "check", str(kits / "server")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    said = "\n".join(lines)
    for word in ("weft ", "nvflare 2.9", "torch ", "valid until", "key: it is that of the certificate", "clock: "):
        assert word in said
    assert f"port: port {port} of 'localhost' is free" in said
    assert "name: the certificate is for 'localhost'" in said
    assert "address: 'localhost' is 127.0.0.1" in said
    assert "parts: none" in said
    assert sorted(kits.rglob("*")) == before


def test_a_port_that_another_program_has_is_told_from_that_of_the_server_itself(
    kits: Path, others: Path, port: int, capsys
):
    with tls_listener(kits / "server", port):
        assert main(["server", "check", str(kits / "server")]) == 0
    assert f"the server of this kit listens to port {port}" in capsys.readouterr().out
    with tls_listener(others / "server", port):
        assert main(["server", "check", str(kits / "server"), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    (failed,) = (check for check in said["checks"] if check["outcome"] == FAIL)
    assert failed["text"] == f"port {port} of 'localhost' is in use by another program"
    assert "--port" in failed["remedy"]


def test_a_kit_for_another_machine_fails(kits: Path, capsys):
    path = kits / "server" / "startup" / "fed_server.json"
    path.write_text(path.read_text().replace("localhost", "nowhere.invalid"))
    assert main(["server", "check", str(kits / "server")]) == 1
    said = capsys.readouterr().out
    assert "FAIL  address: the name 'nowhere.invalid' has no address (IPv4) here: correct the DNS" in said
    assert "FAIL  name: the certificate is for localhost, not for 'nowhere.invalid'" in said


def test_dates_of_certificates_and_the_clock(kits: Path):
    from cryptography import x509

    kit = read_kit(kits / "server")
    own = x509.load_pem_x509_certificate(kit.certificate.read_bytes())

    def found(moment: datetime, **later: float) -> list[Finding]:
        return list(check_certificates(kit, moment + timedelta(**later)))

    assert {finding.outcome for finding in found(datetime.now(UTC))} == {OK}
    soon = only(found(own.not_valid_after_utc, days=-19, minutes=-1), "certificate")
    assert (soon.outcome, soon.text.split(",")[0]) == (WARN, "it expires in 19 days")
    over = only(found(own.not_valid_after_utc, minutes=1), "certificate")
    assert (over.outcome, over.text[:13]) == (FAIL, "it expired on")
    assert "new kit" in over.remedy
    early = found(own.not_valid_before_utc, minutes=-1)
    assert only(early, "clock").outcome == FAIL
    assert "before the kit's certificate begins" in only(early, "clock").text
    assert only(early, "certificate").outcome == FAIL


def test_a_key_and_an_authority_that_do_not_match(kits: Path, others: Path):
    startup = kits / "hospital_a" / "startup"
    shutil.copy(others / "hospital_a" / "startup" / "client.key", startup / "client.key")
    (startup / "client.key").chmod(0o644)
    found = list(check_certificates(read_kit(kits / "hospital_a")))
    assert {(finding.outcome, finding.text) for finding in found if finding.check == "key"} == {
        (FAIL, "the private key is not that of the certificate"),
        (WARN, "others on this machine can read the kit's private key"),
    }
    shutil.copy(others / "hospital_a" / "startup" / "rootCA.pem", startup / "rootCA.pem")
    found = list(check_certificates(read_kit(kits / "hospital_a")))
    assert "of another authority" in next(f.text for f in found if f.check == "authority" and f.outcome == FAIL)
    (startup / "client.crt").write_text("none")
    (found,) = check_certificates(read_kit(kits / "hospital_a"))
    assert found.outcome == FAIL


@contextmanager
def deaf(port: int) -> Iterator[None]:
    """A listener whose queue is full: further connections get no answer, as behind a firewall that drops them."""
    with socket.create_server(("127.0.0.1", port), backlog=0), ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield


@contextmanager
def silent(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextmanager
def web_server(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        thread.join()


def test_each_way_not_to_reach_the_server_is_told_apart(kits: Path, others: Path, port: int):
    kit = read_kit(kits / "hospital_a")

    def found(patience: float = 0.5) -> Finding:
        return check_connection(kit, patience)

    assert found().text == f"localhost:{port} refuses connections"
    with tls_listener(kits / "server", port):
        assert found(5.0).outcome == OK
    with tls_listener(others / "server", port):
        assert "is of another authority than this kit" in found(5.0).text
    with tls_listener(kits / "server", port, trusted=others / "server" / "startup" / "rootCA.pem"):
        assert "refuses this kit's certificate (tlsv1 alert unknown ca)" in found(5.0).text
    with deaf(port):
        assert found().text == f"localhost:{port} does not answer within 0.5 s"
    with silent(port):
        assert "accepts connections and does not speak TLS" in found().text
    with web_server(port):
        assert "does not speak TLS (wrong version number)" in found(5.0).text
    path = kits / "hospital_a" / "startup" / "fed_client.json"
    path.write_text(path.read_text().replace("localhost", "nowhere.invalid"))
    assert check_connection(read_kit(kits / "hospital_a")).text == "the name 'nowhere.invalid' has no address here"


def test_a_site_that_can_start_passes_and_would_accept_a_run(
    kits: Path, port: int, policy, run_file: Path, tmp_path: Path, tiny_model: Path, capsys
):
    words = ["client", "check", str(kits / "hospital_a"), "--site", site(policy, tmp_path), "--run", str(run_file)]
    with tls_listener(kits / "server", port):
        assert main(words) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert all(LINE.fullmatch(line) for line in said.splitlines())
    assert "accept each other's certificates over TLS" in said
    assert "data: 24 rows to train on" in said
    assert "data: 5 held-out rows" in said
    assert re.search(rf"ok    model: '{tiny_model}' in .*: 1 safetensors file, [\d.]+ kB, hash [0-9a-f]{{16}}", said)
    assert "policy: a run may have 5 rounds at most" in said
    assert "policy: the hours of work for a run are not limited" in said
    assert "ok    run: this site would take part, with 24 rows to train on and 5 held out" in said
    assert "warn  run: this site would report no scores: it holds out fewer than 10 rows (min_report_rows)" in said
    assert "policy: a run may ask for these numbers at most: peft_lora_r 1,024, lora_side_rank 4,096, " in said
    for row in colour_rows(24):
        assert row["instruction"] not in said
    assert not (kits / "hospital_a" / "weft").exists()
    digest = re.search(r"sha256:[0-9a-f]{64}", said)
    assert digest
    for value, code in ((digest[0], 0), ("sha256:" + "0" * 64, 1)):  # the hash is the one that site.yaml asks for
        policy["accept"] = {"models": {str(tiny_model): value}, "min_train_rows": 8}
        site(policy, tmp_path)
        with tls_listener(kits / "server", port):
            assert main(words) == code, capsys.readouterr()


def test_a_run_that_the_site_would_refuse_fails_with_the_reason(
    kits: Path, port: int, policy, run_file: Path, tmp_path: Path, capsys
):
    policy["accept"] |= {"max_rounds": 1}
    words = ["client", "check", str(kits / "hospital_a"), "--site", site(policy, tmp_path), "--run", str(run_file)]
    with tls_listener(kits / "server", port):
        assert main([*words, "--json"]) == 1
    (failed,) = (check for check in json.loads(capsys.readouterr().out)["checks"] if check["outcome"] == FAIL)
    reason = "this site would refuse it: the run has 3 rounds, and this site accepts 1 at most"
    assert (failed["check"], failed["text"]) == ("run", reason)


@pytest.mark.parametrize(
    ("accepted", "outcome"), [(None, None), (["masks"], None), (["masks", "ckks"], WARN), (["ckks"], FAIL)], ids=str
)
def test_a_kit_without_the_key_of_the_sums_that_its_site_asks_for_is_told(
    kits: Path, accepted: list[str] | None, outcome: str | None
):
    site_policy = SitePolicy(data=SiteData(path="rows.jsonl"), accept=AcceptRules(models={}, protection=accepted))
    found = list(check_key(site_policy, kits / "hospital_a"))
    assert [finding.outcome for finding in found] == ([] if outcome is None else [outcome])
    if outcome is not None:
        assert "has no ckks.key, so that every run" in found[0].text
        (kits / "hospital_a" / "ckks.key").write_bytes(b"a key")
        (kept,) = check_key(site_policy, kits / "hospital_a")
        assert kept.outcome == OK


def test_a_run_with_masks_is_checked_with_the_kit_that_signs_in_them(
    kits: Path, policy, run_file: Path, tmp_path: Path, capsys
):
    keys = yaml.safe_load(run_file.read_text()) | {"protection": "masks", "sample_clients": 3}
    run_file.write_text(yaml.safe_dump(keys))
    words = ["client", "check", str(kits / "hospital_a"), "--site", site(policy, tmp_path), "--run", str(run_file)]
    main(words)
    said = capsys.readouterr().out
    assert "ok    run: this site would take part, with 24 rows to train on" in said


def test_a_site_whose_data_and_model_are_missing_fails(kits: Path, policy, tmp_path: Path, tiny_model: Path, capsys):
    (tmp_path / "rows.jsonl").write_text("{broken\n")
    shutil.copytree(tiny_model, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    policy["accept"] = {"models": {"a": str(tmp_path / "none"), "b": str(tmp_path / "pickled")}, "max_epsilon": 8.0}
    assert main(["client", "check", str(kits / "hospital_a"), "--site", site(policy, tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in failed] == ["FAIL  connection", "FAIL  data", "FAIL  model"]
    assert "rows.jsonl" in failed[1]
    assert "There is no model folder" in failed[2]
    assert any("the target_epsilon of a run may be 8 at most" in line for line in lines)
    policy["accept"] = {"models": {"b": str(tmp_path / "pickled"), "hub/name": None}}
    main(["client", "check", str(kits / "hospital_a"), "--site", site(policy, tmp_path)])
    said = capsys.readouterr().out
    assert "is in pickle files (.bin)" in said
    assert "warn  model: 'hub/name' is not on this machine" in said


def test_every_rule_of_a_policy_has_a_sentence():
    said = [sentence for _, sentence in policy_in_words(AcceptRules(models={}))]
    assert len(said) == len(set(said)) == len(AcceptRules.model_fields)
    assert set(AcceptRules.model_fields) <= set(SENTENCES)
    strict = AcceptRules(
        models={"m": "sha256:" + "1" * 64},
        objectives=["sft"],
        trainable=["lora"],
        algorithms=["fedavg"],
        max_rounds=1,
        max_steps=2,
        max_hours=3.5,
        min_clients=4,
        protection=["none"],
        privacy=["none"],
        max_epsilon=6.0,
        report=["loss"],
    )
    limits = [sentence for is_limit, sentence in policy_in_words(strict) if is_limit]
    assert len(limits) == sum(getattr(strict, key) is not None for key in AcceptRules.model_fields) >= 15
    assert not set(limits) & {
        sentence for is_limit, sentence in policy_in_words(AcceptRules(models={})) if not is_limit
    }


def test_an_error_in_a_check_ends_no_other_check():
    def broken() -> Finding:
        raise ZeroDivisionError("why")

    assert examine("disk", broken) == [Finding(FAIL, "disk", "it cannot be checked (ZeroDivisionError: why)")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["server", "check"], "KIT"),
        (["client", "check", "KITS/hospital_a"], "--site"),
        (["server", "check", "KITS/hospital_a"], "is the kit of the site 'hospital_a', for `weft client`: give the"),
        (["client", "check", "KITS/server", "--site", "s.yaml"], "is the server's kit, for `weft server`: give the"),
        (["server", "start", "KITS/hospital_a"], "is the kit of the site 'hospital_a', for `weft client`"),
        (["server", "start", "KITS/admin"], "is an administrator's kit, for `weft submit`"),
        (["client", "start", "KITS/server", "--site", "s.yaml"], "is the server's kit, for `weft server`"),
        (["client", "start", "KITS/admin", "--site", "s.yaml"], "is an administrator's kit, for `weft submit`"),
        (["client", "start", "KITS/hospital_a"], "--site"),
        (["client", "start", "KITS/hospital_a", "--site", "none.yaml"], "There is no 'none.yaml' that can be read"),
        (["client", "start", "KITS/none", "--site", "s.yaml"], "is no start-up kit"),
        (["server", "start", "KITS"], "is no start-up kit"),
    ],
)
def test_the_wrong_kit_and_a_missing_file_are_one_sentence(kits: Path, capsys, words: list[str], said: str):
    assert main([word.replace("KITS", str(kits)) for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("kit", "file", "content"),
    [
        ("server", "startup/fed_server.json", "{"),
        ("server", "startup/server.key", None),
        ("server", "local/resources.json", None),
        ("server", "local/authorization.json", "no json"),
        ("hospital_a", "startup/client.crt", None),
        ("hospital_a", "startup/fed_client.json", '{"client": 3}'),
        ("hospital_a", "startup/rootCA.pem", None),
    ],
)
def test_a_broken_kit_is_one_sentence(kits: Path, policy, tmp_path: Path, capsys, kit: str, file: str, content):
    path = kits / kit / file
    path.unlink() if content is None else path.write_text(content)
    words = ["server", "start"] if kit == "server" else ["client", "start", "--site", site(policy, tmp_path)]
    assert main([*words, str(kits / kit)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"weft: The kit '{kits / kit}' is damaged ({file} ")
    assert error.strip().count("\n") == 0


def test_a_server_whose_port_is_in_use_ends_at_once(kits: Path, port: int, capsys):
    with silent(port):
        assert main(["server", "start", str(kits / "server")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"weft: The server cannot start: port {port} of 'localhost' is in use")
    assert error.strip().count("\n") == 0
    assert not (kits / "server" / "console.log").exists()
