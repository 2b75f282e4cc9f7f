"""Tokens and API keys are named, never kept: they stand in no file, message or log, and follow no redirect."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.completions_server import Completions, serving
from support.fake_sites import NAMES, FakeSites
from weft.cli import main
from weft.config import build
from weft.errors import ConfigError
from weft.models.completions import ScoredText
from weft.models.endpoint import Endpoint
from weft.sites import endpoints
from weft.sites.job import write_job
from weft.sites.policy import read_policy
from weft.sites.server import serve

TOKEN, KEY = "hf_QmFkSWRlYVRva2Vu", "sk-VGhlRW5kcG9pbnRLZXk"
PASSWORD = "geheim-4711"


@pytest.fixture
def server(tiny_model: Path) -> Iterator[Completions]:
    with serving(tiny_model) as served:
        yield served


def test_no_secret_stands_in_anything_that_is_kept_sent_or_shown(
    run, sites: FakeSites, server: Completions, tmp_path: Path, monkeypatch, caplog, capfd
):
    """A run of sites whose policies name an endpoint with a key, with a token in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SITE_KEY", KEY)
    for name in NAMES:
        file = tmp_path / "sites" / name / "site.yaml"
        policy = yaml.safe_load(file.read_text()) | {"endpoint": server.url, "endpoint_key": "SITE_KEY"}
        file.write_text(yaml.safe_dump(policy))
        sites.policies[name] = read_policy(file)
        sites.begin(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    words = {"prompt_method": "text", "fed_alg": "fedtext", "use_peft": False, "prompt_length": 40, "prompt_pool": 4}
    words |= {"endpoint": server.url, "token": True, "num_rounds": 2, "max_steps": 1, "silence_timeout": 30.0}
    words |= {"prompt_candidates": ["Name the colour.", "Answer in one word."]}
    keys = {key: value for key, value in (run | words).items() if key != "learning_rate"}
    keys["report"] = True
    heard: list[object] = []
    endpoints.write(listed := tmp_path / "endpoints.yaml", server.url, "OPENAI_API_KEY")
    with caplog.at_level(logging.DEBUG):
        done = serve(keys, sites, list(NAMES), "1", endpoints=listed, hear=heard.append)
        adapter = run | {"token": True, "num_rounds": 1, "output_dir": str(tmp_path / "runs" / "adapter")}
        serve(adapter, sites, list(NAMES), "1", hear=heard.append)
    assert set(server.keys) == {f"Bearer {KEY}"}, "the control: the key was used"
    job = write_job(build(keys), "run", tmp_path)
    seen = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kinds = {Path(path).name for path in seen}
    assert {"config.yaml", "report.html", "README.md", "metrics.jsonl", "work.json"} <= kinds
    assert str(job / "meta.json") in seen
    assert (done.path / "config.yaml").exists()
    seen["messages to sites"] = b"\n".join(raw for _, raw in sites.asked if raw)
    seen["messages of sites"] = b"\n".join(sites.answered)
    seen["status"] = json.dumps(heard, default=str).encode()
    seen["logs"] = caplog.text.encode()
    out, err = capfd.readouterr()
    seen["terminal"] = (out + err).encode()
    assert all(seen[name] for name in ("messages to sites", "messages of sites", "status", "logs", "terminal"))
    for place, content in seen.items():
        for secret in (TOKEN, KEY):
            assert secret.encode() not in content, place
    assert server.url.encode() not in seen["messages of sites"]


BAD = {
    "a literal key": ({"endpoint_key": KEY}, "put the API key itself into a variable"),
    "a literal key without an endpoint": ({"endpoint_key": "sk_live_abc", "endpoint": None}, "environment variable"),
    "a password": ({"endpoint": f"https://me:{PASSWORD}@host/v1"}, "a user name or a password"),
    "a user": ({"endpoint": f"https://{PASSWORD}@host/v1"}, "a user name or a password"),
    "a query": ({"endpoint": f"https://host/v1?api_key={PASSWORD}"}, "URL with a query"),
    "a data set": ({"dataset_name": f"https://me:{PASSWORD}@host/rows.jsonl"}, "dataset_name is a URL with"),
    "a token": ({"token": TOKEN}, "of 'token' cannot be"),
    "a token by its other name": ({"use_auth_token": TOKEN}, "of 'token' cannot be"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_secret_among_the_keys_is_refused_and_not_repeated(keys, name: str, capsys, tmp_path: Path):
    changes, words = BAD[name]
    words_of_run = {"prompt_method": "text", "fed_alg": "fedtext", "use_peft": False, "endpoint": "http://h/v1"}
    given = keys | words_of_run | changes
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
    for verb in (["prompt"], ["submit", "prompt"]):
        assert main([*verb, str(tmp_path / "run.yaml"), *(["--kit", "nowhere"] if "submit" in verb else [])]) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert not any(secret in said.err + said.out for secret in (TOKEN, KEY, PASSWORD, "sk_live_abc"))
    assert not Path(str(keys["output_dir"])).exists()


def test_a_password_in_a_clients_data_is_refused(keys):
    clients = [{"name": "a", "data": f"https://me:{PASSWORD}@host/a.jsonl"}]
    with pytest.raises(ConfigError, match="a user name or a password") as refused:
        build({key: value for key, value in keys.items() if key != "dataset_name"} | {"clients": clients})
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "http://h/v1", "endpoint_key": KEY},
        {"endpoint": f"http://me:{PASSWORD}@h/v1"},
        {"judge_key": KEY},
        {"judge_endpoint": f"http://me:{PASSWORD}@h/v1"},
        {"judge_endpoint": f"http://h/v1?key={PASSWORD}"},
        {"data": {"path": f"https://me:{PASSWORD}@host/rows.jsonl"}},
    ],
)
def test_a_secret_in_site_yaml_is_refused_and_not_repeated(sites: FakeSites, tmp_path: Path, changes):
    file = tmp_path / "sites" / "hospital_a" / "site.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    with pytest.raises(ConfigError, match="cannot be") as refused:
        read_policy(file)
    assert not any(secret in str(refused.value) for secret in (KEY, PASSWORD))


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Redirects what is posted, and notes whatever comes."""

    def answer(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        code = self.server.code  # type: ignore[attr-defined]
        self.send_response(code if self.path.startswith("/v1") else 200)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_does_not_carry_the_key_away(monkeypatch, code: int):
    monkeypatch.setenv("SITE_KEY", KEY)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    server.seen, server.code = [], code  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        with pytest.raises(ConfigError, match=rf"redirects requests \({code}\)"):
            Endpoint(url, "m", key="SITE_KEY", retries=0, timeout=5).likelihoods([ScoredText("One two", ((0, 7),))])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert server.seen == [("/v1/completions", f"Bearer {KEY}")]  # type: ignore[attr-defined]


def test_remote_code_is_refused_by_a_server_before_any_site_is_asked(run, sites: FakeSites):
    """A job need not have been submitted by `weft submit`, which refuses it first."""
    with pytest.raises(ConfigError, match="The run trusts remote code"):
        serve(run | {"trust_remote_code": True}, sites, list(NAMES), "1")
    assert sites.asked == []
    assert not Path(str(run["output_dir"])).exists()


@pytest.mark.parametrize("listing", [None, "http://another/v1: SERVER_KEY\n"])
def test_a_run_has_no_variable_of_the_server_sent_to_an_address_of_its_own(
    run, sites: FakeSites, server: Completions, tmp_path: Path, monkeypatch, listing: str | None
):
    """Whoever may submit runs could otherwise read the server's environment, one variable a run."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    words = {"prompt_method": "text", "fed_alg": "fedtext", "use_peft": False, "endpoint": server.url}
    keys = {key: value for key, value in (run | words).items() if key != "learning_rate"}
    file = tmp_path / "endpoints.yaml"
    if listing is not None:
        file.write_text(listing)
    with pytest.raises(ConfigError, match="has not listed the address"):
        serve(keys | {"endpoint_key": "AWS_SECRET_ACCESS_KEY"}, sites, list(NAMES), "1", endpoints=file)
    assert not server.keys
    assert not Path(str(run["output_dir"])).exists()


def test_the_variable_of_an_endpoints_key_is_the_servers_own(tmp_path: Path):
    file = tmp_path / "endpoints.yaml"
    file.write_text("http://h/v1: SERVER_KEY\nhttp://open/v1: null\n")
    theirs = {"endpoint": "http://h/v1", "endpoint_key": "HF_TOKEN"}
    assert endpoints.at_server(theirs, file)["endpoint_key"] == "SERVER_KEY"
    assert endpoints.at_server(theirs | {"endpoint": "http://open/v1"}, file)["endpoint_key"] == endpoints.NO_KEY
    assert endpoints.at_server({"num_rounds": 1}, None) == {"num_rounds": 1}
    file.write_text("[1]")
    with pytest.raises(ConfigError, match="no list of endpoints"):
        endpoints.at_server(theirs, file)
