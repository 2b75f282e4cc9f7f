"""A server's text in a site's log: escaped, one line, and never an entry of its own."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

from support.fake_sites import FakeSites
from weft.core.types import Failure, Task
from weft.core.wire import pack, unpack
from weft.sites.model_process import ModelProcess
from weft.sites.server import serve
from weft.sites.site_log import SiteFormatter

HOSTILE = "x\x1b[2J\x1b]0;owned\x07\n2030-01-01 00:00:00,000 weft.site INFO all is well\u2028y\r\u202ez"


def test_an_entry_is_one_line_and_a_traceback_stands_behind_a_margin():
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("weft.site", logging.ERROR, __file__, 1, "said %s", (HOSTILE,), sys.exc_info())
    first, *rest = SiteFormatter("%(levelname)s %(message)s").format(record).split("\n")
    assert first == "ERROR said " + HOSTILE.encode("unicode_escape").decode()
    assert rest
    assert all(line.startswith("  | ") and line.isprintable() for line in rest)
    assert any("all is well" in line for line in rest)


def test_a_servers_text_cannot_write_to_the_log_of_a_site(run, sites: FakeSites, tmp_path: Path):
    """By the process that a site runs: keys, values and parameters that a server makes up, with line feeds."""
    process = ModelProcess(tmp_path / "sites" / "hospital_a" / "site.yaml", tmp_path / "kit", "hospital_a")
    answers = []
    try:
        for changes in (
            {HOSTILE: 1},
            {"model_name_or_path": HOSTILE},
            {"fed_alg": HOSTILE},
            {"fed_args": {HOSTILE: 1}},
            {"lora_aggregation_args": {"x": HOSTILE}},
        ):
            for id in ("run", HOSTILE):
                handshake = {"run": run | changes, "id": id, "index": 0, "clients": 3, "base": HOSTILE}
                answers.append(json.loads(process.work(json.dumps(handshake).encode())))
    finally:
        process.close()
    assert all("refused" in answer for answer in answers)
    lines = (tmp_path / "kit" / "site.log").read_text(encoding="utf-8").split("\n")
    entries = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert len([line for line in entries if "weft.site" in line]) == len(answers)
    assert not any(line.startswith("2030-") for line in lines)
    assert all(line.isprintable() for line in lines)
    assert sum("all is well" in line for line in lines) >= 4, "the control: the text was logged"


def test_reasons_of_a_site_are_printable_and_hold_no_text_of_a_server(run, sites: FakeSites):
    """The reverse: what a site answers goes to the server's log, and to an administrator's terminal."""
    handshake = {"run": run | {HOSTILE: 1}, "id": "run", "index": 0, "clients": 3, "base": "00"}
    site = sites.site_clients["hospital_a"]
    assert b"\x1b" not in site.work(json.dumps(handshake).encode())
    serve(run | {"num_rounds": 1, "eval_every": 0}, sites, list(sites.policies), "1")
    model = site.client_host.model
    params = dict(model.values()) | {HOSTILE: next(iter(model.values().values()))}
    said = unpack(site.work(pack(Task("hospital_a", 0, 0, params), "run")), run="run")
    assert isinstance(said, Failure)
    assert said.reason.isprintable()
    assert "among the parameters" in said.reason
