"""What a run, and the server that hands it out, can make a site do: what was agreed to, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from support.fake_sites import NAMES, FakeSites
from support.rows import colour_rows, write_rows
from weft.commands.submit import read_run
from weft.config import ALIASES, RunConfig, build
from weft.core.types import Failure, Message, Probe, ProtectionRequest, Task, Undo
from weft.core.wire import pack, unpack
from weft.errors import ConfigError, RunError
from weft.sites.bounds import Bounds, Day, Spent
from weft.sites.policy import read_policy
from weft.sites.run_keys import AT_SERVER, FROM_RUN, FROM_SITE, ON_DEMAND
from weft.sites.server import serve


def accept(sites: FakeSites, name: str, **values: object) -> None:
    """Change a site's policy, and restart the site."""
    policy = sites.policies[name]
    sites.policies[name] = policy.model_copy(update={"accept": policy.accept.model_copy(update=values)})
    sites.begin(name)


def handshake(sites: FakeSites, run: dict[str, object], **request: object) -> dict[str, object]:
    """Return what a site answers to a handshake that any server may have written."""
    whole = {"run": run, "id": "run", "index": 0, "clients": 3, "base": "00"} | request
    return json.loads(sites.site_clients["hospital_a"].work(json.dumps(whole).encode()))


def test_every_key_of_a_run_is_in_one_set():
    """A new key is put into one of the sets of weft.sites.run_keys before it can reach a site."""
    sets = (FROM_RUN, FROM_SITE, AT_SERVER, ON_DEMAND)
    for key in RunConfig.model_fields:
        assert sum(key in one for one in sets) == 1, f"put '{key}' into one of the sets in weft.sites.run_keys"
    assert set().union(*sets) == set(RunConfig.model_fields)


FORBIDDEN = {
    "a shape beside an accepted name": ({"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "from nothing"),
    "a size": ({"size": "5m"}, "from nothing"),
    "a tokenizer of the server's choice": ({"tokenizer": "/etc"}, "the tokenizer '/etc' is not among"),
    "public rows": ({"public_data": "/etc/passwd"}, "sets public_data"),
    "remote code": ({"trust_remote_code": True}, "sets trust_remote_code"),
    "text for a tokenizer": ({"tokenizer_text": "/etc/passwd"}, "tokenizer_text"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_site_refuses_what_is_not_the_models_it_accepts(run, sites: FakeSites, name: str):
    """Send the handshake of a hostile server: an honest one would not send some of these keys."""
    keys, words = FORBIDDEN[name]
    said = handshake(sites, run | keys)
    assert words in said["refused"] or "cannot be read" in said["refused"], said
    assert not (sites.folder / "hospital_a").exists()


@pytest.mark.parametrize("name", ["day.json", "site.log", "site.log.1", ".tokens", "../day", "", "a" * 101, "A", "a\0"])
def test_a_run_takes_no_name_of_a_sites_own_files(run, sites: FakeSites, name: str):
    """A folder `day.json` would end every later run of the site, and `site.log.1` the site itself."""
    said = handshake(sites, run, id=name)
    assert "a name that no run can have" in said["refused"]
    assert not (sites.folder / "hospital_a").exists()


def test_a_handshake_writes_nothing_of_any_length(run, sites: FakeSites):
    """The id of a run's begin is written with every count."""
    assert "100 characters" in handshake(sites, run, birth="b" * 101)["refused"]
    assert "longer than" in handshake(sites, run | {"choices": ["x" * (16 << 20)]})["refused"]
    assert not (sites.folder / "hospital_a").exists()


def test_a_site_whose_day_is_over_makes_no_folders(run, sites: FakeSites):
    """A server that repeats handshakes under new names gets refusals, and none of the disk."""
    accept(sites, "hospital_a", max_hours_per_day=1.0)
    day = Day(sites.folder / "hospital_a" / "day.json", 1.0)
    day.file.parent.mkdir(parents=True)
    day.count(3600.0)
    for name in ("one", "two"):
        assert "today" in handshake(sites, run, id=name)["refused"]
    assert [path.name for path in day.file.parent.iterdir()] == ["day.json"]


def test_aliases_of_a_key_are_ruled_by_the_site_as_the_key_itself(run, sites: FakeSites, monkeypatch):
    seen: list[RunConfig] = []
    monkeypatch.setattr("weft.launch.client.prepare_process", seen.append)
    handshake(sites, run | {"use_auth_token": True, "device": "cuda:7", "local_data_dir": "/"})
    (config, *_) = seen
    assert (config.token, config.local_data_dir) == (False, None)
    assert config.device == "auto"


OTHER_VALUES = {"lr_scheduler": "constant", "log_with": [], "use_auth_token": False}


@pytest.mark.parametrize("alias", sorted(set(ALIASES) - {"data"}))
def test_a_site_trains_by_a_key_that_was_sent_under_another_name(run, sites: FakeSites, alias: str):
    """And agrees to the run that an honest server means by it."""
    keys = {key: value for key, value in run.items() if key != ALIASES[alias]} | {alias: OTHER_VALUES[alias]}
    keys |= {"num_rounds": 1}
    serve(keys, sites, list(NAMES), "1")
    (first, *_) = (json.loads(raw) for _, raw in sites.asked if raw and raw[:1] == b"{")
    assert alias not in first["run"]
    assert first["run"][ALIASES[alias]] == OTHER_VALUES[alias]
    accept(sites, "hospital_a")
    answer = handshake(sites, keys, base=first["base"])
    assert answer["agreed"] == handshake(sites, first["run"], base=first["base"])["agreed"]
    if alias == "lr_scheduler":
        assert sites.site_clients["hospital_a"].config.lr_scheduler_type == "constant"


def test_a_key_under_two_names_and_an_unknown_key_are_refused_by_name(run, sites: FakeSites):
    twice = handshake(sites, run | {"lr_scheduler": "constant", "lr_scheduler_type": "cosine"})
    assert "lr_scheduler_type is given twice" in str(twice["refused"])
    assert "no key 'nobody_knows'" in str(handshake(sites, run | {"nobody_knows": 1})["refused"])
    with pytest.raises(ConfigError, match="no key 'nobody_knows'"):
        serve(run | {"nobody_knows": 1}, sites, list(NAMES), "1")


def test_a_site_opens_no_file_that_a_run_names(keys, sites: FakeSites, tmp_path: Path):
    """The server's word that a text is a path: the text itself is proposed, never the file's lines."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the patient in room 4\n")
    run = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients", "use_peft")}
    run |= {"runtime": "nvflare", "sites": list(NAMES), "sample_clients": 3, "threads": 1, "silence_timeout": 3.0}
    run |= {"prompt_method": "text", "fed_alg": "fedtext", "prompt_candidates": [str(secret)], "num_rounds": 1}
    run |= {"seq_length": 100, "prompt_length": 150}
    serve(run | {"output_dir": str(tmp_path / "runs/run")}, sites, list(NAMES), "1")
    assert sites.answered
    assert not any(b"room 4" in raw for raw in sites.answered)


def test_files_of_texts_are_read_where_a_run_is_submitted(tmp_path: Path, tiny_model: Path):
    """The control of the test above: the lines do travel, from the run's author."""
    (tmp_path / "mine.txt").write_text("Answer in one word.\n\nThink first.\n")
    keys = {"model_name_or_path": str(tiny_model), "prompt_method": "text", "fed_alg": "fedtext"}
    (tmp_path / "run.yaml").write_text(
        json.dumps(keys | {"prompt_candidates": [str(tmp_path / "mine.txt"), "Be brief."]})
    )
    _, config, _ = read_run("submit", ["prompt", str(tmp_path / "run.yaml")])
    assert config.prompt_candidates == ["Answer in one word.", "Think first.", "Be brief."]


def test_remote_code_is_refused_at_the_submission(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("trust_remote_code: true\n")
    with pytest.raises(ConfigError, match="leave out --trust_remote_code"):
        read_run("submit", [str(tmp_path / "run.yaml")])


def ask(sites: FakeSites, message: Message) -> object:
    return unpack(sites.site_clients["hospital_a"].work(pack(message, "run")), run="run")


def test_a_message_beyond_the_agreement_is_not_answered(run, sites: FakeSites):
    """After an agreement of three rounds; the control is a message within it."""
    serve(run | {"num_rounds": 3}, sites, list(NAMES), "1")
    model = sites.site_clients["hospital_a"].client_host.model
    params = {name: torch.zeros_like(v) for name, v in model.masters.items()}
    for message, words in (
        (Task("hospital_a", 1_000_000, 0, params), "is of round 1000001, and the site agreed to 3"),
        (Task("hospital_a", 3, 3, params), "is of round 4"),
        (Task("hospital_a", 1, 2, params), "begins at version 2"),
        (Probe("hospital_a", 4, params), "is of round 5"),
    ):
        said = ask(sites, message)
        assert isinstance(said, Failure)
        assert words in said.reason
    assert not isinstance(ask(sites, Task("hospital_a", 2, 2, params)), Failure)


@pytest.fixture
def agreed(run) -> RunConfig:
    """A run of three rounds that a site agreed to."""
    left = {key: value for key, value in run.items() if key not in ("sites", "silence_timeout")}
    return build(left | {"runtime": "inprocess", "dataset_name": "rows.jsonl"})


def test_work_is_counted_through_a_restart_and_ends_at_the_policys_hours(agreed, tmp_path: Path):
    bounds = Bounds(tmp_path / "work.json", agreed, max_hours=1.0)
    task = Task("a", 0, 0, {})
    with bounds.work(task):
        pass
    assert bounds.refusal(task) is None
    bounds.seconds = 3601.0
    with bounds.work(task):
        pass
    again = Bounds(tmp_path / "work.json", agreed, max_hours=1.0)
    assert again.messages["Task"] == 2
    assert "1.00 hours" in str(again.refusal(task))
    assert again.refusal(Probe("a", 0, {}, export=True)) is None
    assert Bounds(tmp_path / "work.json", agreed).refusal(task) is None
    again.max_hours, again.messages["Task"] = None, again.tasks
    assert "all that the run it agreed to can need" in str(again.refusal(task))


def test_a_message_is_counted_before_it_is_answered(agreed, tmp_path: Path):
    """Whoever kills the process in the middle of the work does not get that work for nothing."""
    bounds = Bounds(tmp_path / "work.json", agreed)
    for message in (Task("a", 0, 0, {}), Probe("a", 0, {}), Undo("a", 0)):
        with bounds.work(message):
            killed = Bounds(tmp_path / "work.json", agreed)
            assert killed.messages[type(message).__name__] == 1
            assert killed.seconds > 1.0, "the time until the next write of the count"
    assert Bounds(tmp_path / "work.json", agreed).seconds < 1.0, "work that ended is counted as it was"


def test_hours_outlast_the_birth_of_a_run_and_messages_do_not(agreed, tmp_path: Path):
    """An administrator who begins a run of the same name anew gets its rounds again, and no more hours."""
    first = Bounds(tmp_path / "work.json", agreed, 1.0, birth="one")
    first.seconds = 3600.0
    with first.work(Task("a", 0, 0, {})):
        pass
    second = Bounds(tmp_path / "work.json", agreed, 1.0, birth="two")
    assert second.messages["Task"] == 0
    assert "1.00 hours" in str(second.spent())


def test_the_hours_of_a_day_are_those_of_all_runs(agreed, tmp_path: Path):
    """A run under another name has hours of its own, and the day has not."""
    file, task = tmp_path / "day.json", Task("a", 0, 0, {})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = Bounds(tmp_path / "one" / "work.json", agreed, 1.0, day=Day(file, 0.5))
    with first.work(task):
        first.day.count(1800.0)
    second = Bounds(tmp_path / "two" / "work.json", agreed, 1.0, day=Day(file, 0.5))
    assert second.refusal(task) == "the site has worked 0.50 hours today, and accepts 0.5 a day"
    with pytest.raises(Spent, match=r"0\.50 hours today"), second.work(task):
        second.step()
    saved = json.loads(file.read_text())
    assert 1800 <= saved["seconds"] < 1803
    file.write_text(json.dumps(saved | {"day": "2020-01-01"}))
    assert second.refusal(task) is None
    assert Bounds(tmp_path / "two" / "work.json", agreed, day=Day(file, None)).refusal(task) is None


def test_work_without_steps_is_counted_while_it_goes_on(agreed, tmp_path: Path):
    """A server that ends every handshake just before its end would have a site load models all day for nothing."""
    file = tmp_path / "work.json"
    bounds = Bounds(file, agreed, day=Day(tmp_path / "day.json", 1.0), reserve=0.05)
    with bounds.work(None):
        time.sleep(0.4)
        killed = [json.loads(path.read_text())["seconds"] for path in (file, tmp_path / "day.json")]
    assert all(0.35 < seconds < 1.0 for seconds in killed), killed
    after = json.loads((tmp_path / "day.json").read_text())["seconds"]
    assert 0.4 <= after < killed[1] + 0.5
    patient = Bounds(file, agreed, day=Day(tmp_path / "day.json", 1.0), reserve=600.0)
    with patient.work(None):
        assert json.loads((tmp_path / "day.json").read_text())["seconds"] > 600.0, "counted in advance"
        assert patient.spent() is None, "and not spent yet"
    assert json.loads((tmp_path / "day.json").read_text())["seconds"] < after + 1.0


def test_a_site_counts_the_hours_of_its_day(run, sites: FakeSites, tmp_path: Path):
    accept(sites, "hospital_a", max_hours_per_day=2.0)
    serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    file = tmp_path / "work" / "hospital_a" / "day.json"
    saved = json.loads(file.read_text())
    assert 0 < saved["seconds"] < 60
    file.write_text(json.dumps(saved | {"seconds": 7200.0}))
    sites.begin("hospital_a")
    assert "hours today, and accepts 2 a day" in str(handshake(sites, run, id="another")["refused"])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Task("a", 0, 0, {}, attempt=31), "attempt 32"),
        (ProtectionRequest("a", 0, "keys"), "the run has none"),
        (ProtectionRequest("a", 3, "keys"), "of round 4"),
        (Undo("a", 3), "of round 4"),
    ],
)
def test_messages_that_the_agreed_run_has_not_are_refused(agreed, tmp_path: Path, message: Message, words: str):
    assert words in str(Bounds(tmp_path / "work.json", agreed).refusal(message))


@pytest.mark.parametrize("message", [Task("a", 0, 0, {}), Probe("a", 0, {}), Undo("a", 0)])
def test_messages_of_every_kind_are_limited(agreed, tmp_path: Path, message: Message):
    bounds = Bounds(tmp_path / "work.json", agreed.model_copy(update={"max_attempts": 10**9}))
    kind = type(message).__name__
    bounds.messages[kind] = 4 * 100 * (3 + 1)
    assert "all that the run it agreed to can need" in str(bounds.refusal(message))
    bounds.messages[kind] = 299
    assert bounds.refusal(message) is None


def test_hours_end_in_the_middle_of_a_message_and_before_a_handshake(run, sites: FakeSites, tmp_path: Path):
    """One training of thousands of steps stops where the hours do; the run is then refused before a model is loaded."""
    accept(sites, "hospital_a", max_hours=1.5 / 3600)
    quick = run | {"num_rounds": 1, "eval_every": 0, "max_steps": 5000, "min_clients": 1}
    for name in ("hospital_b", "hospital_c"):
        accept(sites, name, models={"another": None})
    with pytest.raises(RunError, match="no client's update could be used"):
        serve(quick | {"max_attempts": 1}, sites, list(NAMES), "1")
    (record,) = (json.loads(line) for line in (Path(str(run["output_dir"])) / "metrics.jsonl").read_text().splitlines())
    assert "the site has worked 0.00 hours for this run, and accepts 0.0004" in record["failures"]["hospital_a"]
    counts = json.loads((tmp_path / "work" / "hospital_a" / "run" / "work.json").read_text())
    assert 1.5 <= counts["seconds"] < 4.0
    assert counts["messages"]["Task"] == 1
    loaded = sites.site_clients["hospital_a"].progress()
    assert "has worked 0.00 hours" in str(handshake(sites, quick, birth="another")["refused"])
    assert sites.site_clients["hospital_a"].progress() == loaded


def test_a_site_with_an_adapter_shows_its_progress(run, sites: FakeSites):
    """Its training takes longer than a server waits for a silent site."""
    for name in ("hospital_b", "hospital_c"):
        accept(sites, name, models={"another": None})
    done = serve(run | {"num_rounds": 1, "max_steps": 400, "silence_timeout": 0.4}, sites, list(NAMES), "1")
    assert done.summary["failures"] == {}
    assert done.summary["seconds"] > 0.5
    assert sites.site_clients["hospital_a"].progress() > 400


def test_a_message_for_another_site_is_refused(run, sites: FakeSites):
    serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    said = ask(sites, Undo("hospital_b", 0))
    assert isinstance(said, Failure)
    assert "for another site" in said.reason


def test_steps_beyond_the_policy_are_refused(run, sites: FakeSites, tmp_path: Path):
    accept(sites, "hospital_b", max_steps=1)
    with pytest.raises(ConfigError, match='hospital_b: "a round has 2 steps, and this site accepts 1 steps at most'):
        serve(run | {"min_clients": 3}, sites, list(NAMES), "1")
    epochs = run | {"min_clients": 3, "max_steps": -1, "output_dir": str(tmp_path / "runs/b")}
    with pytest.raises(ConfigError, match="a round has 3 epochs"):
        serve(epochs, sites, list(NAMES), "1")


def test_only_sites_that_take_part_count_for_the_smallest_cohort(run, sites: FakeSites, tmp_path: Path):
    """A site that asks for three is not one of two, whether the third is away or refuses."""
    accept(sites, "hospital_a", min_clients=3)
    with pytest.raises(RunError, match=r"hospital_a: .*asks for 3 at least"):
        serve(run | {"min_clients": 3}, sites, ["hospital_a", "hospital_b"], "1")
    accept(sites, "hospital_c", models={"another": None})
    done = serve(run | {"output_dir": str(tmp_path / "runs/b")}, sites, list(NAMES), "1")
    assert done.summary["clients"].keys() == {"hospital_b"}


def test_the_smallest_cohort_is_the_quorum_of_every_round(run, sites: FakeSites, tmp_path: Path):
    """One of three falls silent: the rounds of two others stand only where nobody asked for three."""
    sites.slow["hospital_c"] = 3.0
    sites.policies["hospital_c"] = read_policy(Path(sites.policies["hospital_c"].data.path).parent / "site.yaml")
    quick = run | {"silence_timeout": 0.5, "max_attempts": 2, "num_rounds": 1, "eval_every": 0}
    done = serve(quick | {"output_dir": str(tmp_path / "runs/free")}, sites, list(NAMES), "1")
    assert done.summary["rounds"] == 1
    accept(sites, "hospital_a", min_clients=3)
    with pytest.raises(RunError, match="fewer than 3 clients answered"):
        serve(quick | {"output_dir": str(tmp_path / "runs/held")}, sites, list(NAMES), "1")


@pytest.mark.parametrize("claim", [{"rows": 1 << 39}, {"rows": 1e400}, {"rows": "9" * 5000}, {"rows": [[]]}, [], 3])
def test_absurd_numbers_of_rows_from_a_site_end_no_run(run, sites: FakeSites, monkeypatch, claim):
    plain = sites.site_clients["hospital_c"].work

    def lie(raw: bytes) -> bytes:
        said = json.loads(plain(raw)) if raw[:1] == b"{" else None
        return plain(raw) if said is None else json.dumps(said | claim if isinstance(claim, dict) else claim).encode()

    monkeypatch.setattr(sites.site_clients["hospital_c"], "work", lie)
    done = serve(run | {"num_rounds": 1, "eval_every": 0}, sites, list(NAMES), "1")
    assert done.summary["rounds"] == 1
    assert done.summary["clients"].keys() <= {"hospital_a", "hospital_b"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("algorithms: [fedavgg]", "did you mean 'fedavg'"),
        ("objectives: [preferences]", "did you mean 'preference'"),
        ("trainable: [adapter]", "write one of lora, prompt, full"),
    ],
)
def test_a_typing_error_in_a_policy_is_refused_with_the_nearest_name(
    sites: FakeSites, tmp_path: Path, line: str, words: str
):
    write_rows(tmp_path / "rows.jsonl", colour_rows(3))
    (tmp_path / "site.yaml").write_text(f"data: rows.jsonl\naccept:\n  models: [a]\n  {line}\n")
    with pytest.raises(ConfigError, match=words):
        read_policy(tmp_path / "site.yaml")
