"""Runs of sites under differential privacy: what sites ask for, what they count, and what crosses the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from support.fake_sites import NAMES, FakeSites
from support.kits import kits_of
from support.results import events
from weft.core.secret import FILE
from weft.core.types import Task
from weft.errors import ConfigError
from weft.privacy.ledger import Ledger
from weft.sites.client import SiteClient
from weft.sites.policy import read_policy
from weft.sites.server import serve
from weft.sites.site_ledger import RELEASES, spent_of

pytest.importorskip("dp_accounting")
PRIVATE = {"privacy_unit": "client", "target_epsilon": 8, "sample_clients": 3, "clip_norm": 0.1}


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("nvflare")
    return kits_of(tmp_path_factory.mktemp("authority"), list(NAMES))


def change(sites: FakeSites, name: str, folder: Path, **changes: object) -> Path:
    """Give a site another policy, and return the folder of its file."""
    policy = sites.policies[name].model_dump(exclude_none=True)
    accept = changes.pop("accept", {})
    policy |= changes
    policy["accept"] |= accept
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(policy))
    sites.policies[name] = read_policy(file)
    sites.begin(name)
    return folder


@pytest.mark.parametrize(
    ("accept", "changes", "words"),
    [
        ({"max_epsilon": 3.0}, {}, "may spend an epsilon of 8, and this site accepts 3 at most"),
        ({"max_epsilon": 8.0}, {"target_epsilon": None, "noise_multiplier": 5}, "the run has no target_epsilon"),
        ({"max_epsilon": 8.0}, {"target_delta": 1e-3}, "a delta of 0.001, and this site accepts 1e-05"),
        (
            {"privacy": ["row", "patient"]},
            {},
            "the privacy 'client' is not among what this site accepts (row, patient)",
        ),
        ({"noise_at": "client"}, {}, "its server adds the noise, and this site asks for noise_at client"),
        ({"noise_at": "client"}, {"noise_at": "client"}, "with a share of the noise alone"),
    ],
)
def test_a_site_refuses_a_run_that_would_spend_more_in_words_that_reach_the_server(
    run, sites: FakeSites, tmp_path: Path, accept, changes, words
):
    change(sites, "hospital_b", tmp_path, accept=accept)
    with pytest.raises(ConfigError) as stopped:
        serve(run | PRIVATE | changes | {"min_clients": 3}, sites, list(NAMES), "1")
    assert "hospital_b: " in str(stopped.value)
    assert words in str(stopped.value)


def test_sites_train_within_the_epsilon_that_they_ask_for(run, sites: FakeSites, tmp_path: Path):
    for name in NAMES:
        change(sites, name, tmp_path, accept={"max_epsilon": 8.0, "privacy": ["client"]})
    done = serve(run | PRIVATE | {"min_clients": 3}, sites, list(NAMES), "1")
    spent = [line["epsilon"] for line in events(done)]
    assert 7.9 < spent[-1] <= 8
    assert done.summary["privacy"]["unit"] == "client"
    # No statistic of the sites' rows came back, and no score.
    assert all(line["train_loss"] is None for line in events(done))
    assert not events(done, "eval")
    # The secret of the server crossed no line.
    key = (done.path / FILE).read_bytes()
    crossed = b"".join(sites.answered) + b"".join(raw for _, raw in sites.asked if raw)
    for written in (key, key.hex().encode()):
        assert written not in crossed


@pytest.mark.parametrize(
    "private",
    [
        PRIVATE | {"noise_at": "client", "protection": "masks"},
        PRIVATE | {"privacy_unit": "row", "clip_norm": 1.0},
        {"privacy_unit": "none"},
    ],
    ids=["shares in a masked sum", "rows", "none"],
)
def test_a_site_that_takes_no_noise_of_the_server_takes_what_needs_none(
    run, sites: FakeSites, kits, tmp_path: Path, private
):
    sites.kits = kits
    for name in NAMES:
        change(sites, name, tmp_path, accept={"noise_at": "client"})
    done = serve(run | private | {"min_clients": 3, "num_rounds": 1}, sites, list(NAMES), "1")
    assert len(events(done)) == 1


def test_one_ledger_counts_all_runs_and_refuses_the_one_too_many(run, sites: FakeSites, tmp_path: Path):
    folder = change(sites, "hospital_b", tmp_path, ledger={"file": "spent.jsonl", "max_epsilon": 12.0})
    file = folder / "spent.jsonl"
    serve(run | PRIVATE, sites, list(NAMES), "1")
    assert spent_of(Ledger(file)) == (8.0, 1e-5)
    assert len(Ledger(file).entries) == 1
    other = run | {"output_dir": f"{run['output_dir']}-2", "min_clients": 3}
    with pytest.raises(
        ConfigError, match="an epsilon of 8, and of the 12 that this site allows for all runs 4 is left"
    ):
        serve(other | PRIVATE, sites, list(NAMES), "1")
    with pytest.raises(ConfigError, match="the run has no differential privacy, and this site asks for"):
        serve(other, sites, list(NAMES), "1")
    assert len(Ledger(file).entries) == 1  # who is refused spends nothing
    serve(other | PRIVATE | {"target_epsilon": 4}, sites, list(NAMES), "1")
    assert spent_of(Ledger(file)) == (12.0, 2e-5)


def test_the_ledger_is_written_before_anything_is_computed_and_once_for_a_run(
    run, sites: FakeSites, tmp_path: Path, monkeypatch
):
    folder = change(sites, "hospital_b", tmp_path, ledger={"file": "spent.jsonl", "max_epsilon": 9.0})
    seen = []
    answer = SiteClient._answer

    def spy(self, raw):
        reply = answer(self, raw)
        if self.name == "hospital_b" and b'"Task"' in bytes(raw[:400]):
            seen.append(len(Ledger(folder / "spent.jsonl").entries))
        return reply

    monkeypatch.setattr(SiteClient, "_answer", spy)
    serve(run | PRIVATE, sites, list(NAMES), "1")
    assert len(Ledger(folder / "spent.jsonl").entries) == 1
    # The site was killed and begins again: the run that it knows goes on, and is not counted twice.
    sites.begin("hospital_b")
    serve(run | PRIVATE | {"num_rounds": 3}, sites, list(NAMES), "1", resume=True)
    assert len(Ledger(folder / "spent.jsonl").entries) == 1


def test_a_ledger_of_a_site_that_was_changed_by_hand_refuses_every_run(run, sites: FakeSites, tmp_path: Path):
    folder = change(sites, "hospital_b", tmp_path, ledger={"file": "spent.jsonl", "max_epsilon": 100.0})
    serve(run | PRIVATE, sites, list(NAMES), "1")
    file = folder / "spent.jsonl"
    entry = json.loads(file.read_text())
    file.write_text(json.dumps(entry | {"epsilon": 0.1}) + "\n")
    with pytest.raises(ConfigError, match=r"hospital_b: .?its ledger of privacy cannot be read, or does not fit"):
        serve(run | PRIVATE | {"output_dir": f"{run['output_dir']}-2", "min_clients": 3}, sites, list(NAMES), "1")


@pytest.mark.parametrize("unit", ["row", "instruction"])
def test_sites_hide_their_rows_by_noise_of_their_own(run, sites: FakeSites, tmp_path: Path, unit: str):
    """Each site solves its noise for its own rows, and needs to trust nobody."""
    rows = PRIVATE | {"privacy_unit": unit, "clip_norm": 1.0, "num_rounds": 2}
    for name in NAMES:
        change(sites, name, tmp_path, accept={"max_epsilon": 8.0, "privacy": [unit]})
    done = serve(run | rows, sites, list(NAMES), "1")
    assert all(line["train_loss"] is None for line in events(done))
    # A site tells how many units it has, so that the server can say what is spent: patients of a hospital, too.
    assert 7 < done.summary["privacy"]["epsilon"] <= 8
    assert done.summary["privacy"]["unit"] == unit
    assert [line["epsilon"] for line in events(done)][-1] == done.summary["privacy"]["epsilon"]
    for name in NAMES:
        assert len(Ledger(sites.folder / name / "run" / RELEASES).entries) == 2


def test_a_site_answers_no_more_often_than_its_budget_allows(run, sites: FakeSites):
    """Whatever the server asks: a third round of a run of two, or the second again from other parameters."""
    rows = PRIVATE | {"privacy_unit": "row", "clip_norm": 1.0, "num_rounds": 2}
    serve(run | rows, sites, list(NAMES), "1")
    site = sites.site_clients["hospital_a"]
    assert site.releases is not None
    again = Task("hospital_a", 1, 1, {"w": torch.ones(1)})
    assert "answered 2 times" in str(site.releases.take(again))
    assert len(site.releases.ledger.entries) == 2


def test_changed_rows_have_other_noise_and_a_task_that_comes_again_costs_again(run, sites: FakeSites, tmp_path: Path):
    """Else the difference of two answers to one task would be the rows that a site took out in between."""
    for name in NAMES:
        change(sites, name, tmp_path, accept_changed=True)
    rows = PRIVATE | {"privacy_unit": "row", "clip_norm": 1.0, "num_rounds": 2}
    rows |= {"noise_multiplier": 2, "target_epsilon": 50}
    serve(run | rows, sites, list(NAMES), "1")
    site = sites.site_clients["hospital_a"]
    first = site.releases.ledger.entries[0]
    secret = site.client_host.train_clients.memory.secret("hospital_a").bytes(8, "x")
    data = Path(site.policy.data.path)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    sites.begin("hospital_a")
    serve(run | rows | {"num_rounds": 3}, sites, list(NAMES), "1", resume=True)
    site = sites.site_clients["hospital_a"]
    assert site.releases.memory.rows != first["rows"]
    assert site.client_host.train_clients.memory.secret("hospital_a").bytes(8, "x") != secret
    entries = site.releases.ledger.entries
    assert len({(one["round"], one["rows"]) for one in entries}) == len(entries)
