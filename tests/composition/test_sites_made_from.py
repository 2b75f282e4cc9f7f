"""A site compares its rows with those that a run started with; the fingerprints never leave the site."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.fake_sites import NAMES, FakeSites
from support.rows import colour_rows, write_rows
from weft.errors import ConfigError
from weft.sites.server import serve


def restart(sites: FakeSites) -> None:
    for name in NAMES:
        sites.begin(name)


def test_a_site_with_other_rows_goes_on_only_if_its_own_policy_accepts_that(run, sites: FakeSites, tmp_path: Path):
    given = run | {"num_rounds": 1}
    first = serve(given, sites, list(NAMES), "1")
    at_site = json.loads((tmp_path / "work" / "hospital_a" / "run" / "fingerprints.json").read_text())
    at_server = (first.path / "fingerprints.json").read_text()
    assert at_site["birth"] == json.loads(at_server)["birth"]
    digests = [value for name, value in at_site["made_from"].items() if "data" in name]
    assert len(digests) == 1
    crossed = b"".join(sites.answered)
    assert digests[0] not in at_server
    assert digests[0].encode() not in crossed
    # As many rows as before, so that their number does not tell.
    policy = sites.policies["hospital_a"]
    write_rows(Path(policy.data.path), colour_rows(24, 77))
    restart(sites)
    longer = given | {"num_rounds": 2, "min_clients": 3}
    with pytest.raises(
        ConfigError, match='hospital_a: "its rows or its tokenizer are not those that the run began with'
    ):
        serve(longer | {"accept_changed": True}, sites, list(NAMES), "1", resume=True)
    sites.policies["hospital_a"] = policy.model_copy(update={"accept_changed": True})
    restart(sites)
    assert serve(longer, sites, list(NAMES), "1", resume=True).summary["rounds"] == 2
    # What was accepted is what the site compares with from then on.
    sites.policies["hospital_a"] = policy
    restart(sites)
    assert serve(longer | {"num_rounds": 3}, sites, list(NAMES), "1", resume=True).summary["rounds"] == 3


def test_another_run_of_the_same_name_begins_with_the_rows_that_are_there(run, sites: FakeSites):
    given = run | {"num_rounds": 1, "min_clients": 3}
    first = serve(given, sites, list(NAMES), "1")
    write_rows(Path(sites.policies["hospital_a"].data.path), colour_rows(24, 77))
    shutil.rmtree(first.path)
    restart(sites)
    assert serve(given, sites, list(NAMES), "1").summary["rounds"] == 1


def test_a_changed_base_at_the_server_is_refused_until_it_is_accepted(
    run, sites: FakeSites, tmp_path: Path, tiny_model: Path
):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    for name in NAMES:
        accept = sites.policies[name].accept.model_copy(update={"models": {str(base): None}})
        sites.policies[name] = sites.policies[name].model_copy(update={"accept": accept})
    restart(sites)
    given = run | {"model_name_or_path": str(base), "num_rounds": 1}
    serve(given, sites, list(NAMES), "1")
    values = load_file(base / "model.safetensors")
    next(iter(values.values())).view(-1)[0] += 1
    save_file(values, base / "model.safetensors", metadata={"format": "pt"})
    restart(sites)
    with pytest.raises(ConfigError, match="the weights of the base"):
        serve(given | {"num_rounds": 2}, sites, list(NAMES), "1", resume=True)
    again = serve(given | {"num_rounds": 2, "accept_changed": True}, sites, list(NAMES), "1", resume=True)
    assert again.summary["rounds"] == 2
