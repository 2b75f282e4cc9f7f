"""Sites tell in their own log of the rows that they leave out, and keep the day of a run's chat template."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from support.fake_sites import NAMES
from support.rows import colour_rows, write_rows
from weft.errors import ConfigError
from weft.sites.agreement import own_config
from weft.sites.policy import read_policy
from weft.sites.server import serve


def test_a_site_tells_of_its_own_rows_and_nobody_elses(sites, run, tmp_path: Path, caplog):
    data = tmp_path / "sites" / NAMES[0] / "rows.jsonl"
    write_rows(
        data, [*colour_rows(24), {"instruction": "q", "output": ""}, {"instruction": "q", "output": "red", "x": 1}]
    )
    with caplog.at_level(logging.INFO, "weft.site"):
        serve(run, sites, list(NAMES), "1")
    said = [record.getMessage() for record in caplog.records if record.name == "weft.site"]
    assert any(line.startswith(f"read 26 rows of '{data}'") and line.endswith("25 are used.") for line in said)
    assert f"1 row was left out (empty answer), in line 25 of '{data}'." in said
    assert "the column 'x' is not read." in said
    # What travels names none of it.
    assert not any(b"left out" in answer or str(data).encode() in answer for answer in sites.answered)


CLOCK = "{{ strftime_now('%f') }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"


def test_a_site_keeps_the_day_with_the_run(sites, run, tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "dated"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = CLOCK + "{% if add_generation_prompt %}[assistant] {% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    for policy in sites.policies.values():
        policy.accept.models[str(folder)] = None
    serve(run | {"model_name_or_path": str(folder), "template": "chat"}, sites, list(NAMES), "1")
    days = list((tmp_path / "work").rglob("day"))
    assert len(days) == len(NAMES)
    assert {site_client.config.template_date for site_client in sites.site_clients.values()} == {days[0].read_text()}


def test_a_site_chooses_its_template_and_what_stands_before_its_columns(tmp_path: Path):
    write_rows(tmp_path / "rows.jsonl", colour_rows(3))
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    (tmp_path / "site.yaml").write_text(
        "data: {path: rows.jsonl, instruction_column: 'a,b', instruction_prefix: 'Now:', prompt_template: own.jinja}\n"
        "accept: {models: [m]}\n"
    )
    own = own_config(
        read_policy(tmp_path / "site.yaml"), {"prompt_template": "server.jinja", "instruction_prefix": "x"}, "a"
    )
    assert own["prompt_template"] == str(tmp_path / "own.jinja")
    assert (own["instruction_column"], own["instruction_prefix"]) == ("a,b", "Now:")
    (tmp_path / "own.jinja").unlink()
    with pytest.raises(ConfigError, match=r"own\.jinja"):
        read_policy(tmp_path / "site.yaml")
