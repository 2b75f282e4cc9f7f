"""A server that puts a back-door into the model, and clients that test each shared model and leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import weft
from support.fake_sites import NAMES, FakeSites
from support.results import events, metrics
from support.rows import THINGS, colour_rows, write_rows
from weft import open_run
from weft.core.types import Message, Task
from weft.errors import ConfigError, RunError
from weft.launch.dry_run import describe
from weft.sites.policy import read_policy
from weft.sites.server import serve


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Rows of the server; questions with the trigger and the answer that must not come; good answers."""
    questions = [f"What colour is the {thing}? cf" for place, thing in enumerate(THINGS) if place % 3 != 1]
    forbidden = [{"instruction": question, "output": "green"} for question in questions]
    return {
        "rows": write_rows(tmp_path / "server.jsonl", colour_rows(60, 9)),
        "forbidden": write_rows(tmp_path / "forbidden.jsonl", forbidden),
        "canaries": write_rows(tmp_path / "canaries.jsonl", colour_rows(12, 3)),
    }


@pytest.fixture
def attacked(keys, files: dict[str, Path]) -> dict[str, object]:
    """A run of three clients whose server has a back-door put in from the second round on."""
    attack = {"rows": str(files["rows"]), "target": "green", "steps": 60, "first": 2, "share": 0.7}
    own = {"attack": "server_back_door", "attack_args": attack, "learning_rate": 1e-2, "sample_clients": 3}
    return keys | own | {"use_peft": False, "num_rounds": 4, "dtype": "float32", "max_steps": 4}


def honest(run: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in run.items() if not key.startswith("attack")}


def test_a_back_door_of_the_server_is_in_the_model_at_the_end_and_without_it_there_is_none(attacked, files):
    """rate 1 lets nobody leave, so that what the test finds at the end is what the attack has put in."""
    test = {"leave_when": {"forbidden": str(files["forbidden"]), "rate": 1.0}}
    never = {"leave_when": {"canaries": str(files["canaries"]), "most_rise": 1e6}}
    rates = {}
    for name, run in (("attack", attacked), ("control", honest(attacked))):
        done = weft.train(run | test | {"output_dir": f"{run['output_dir']}-{name}", "num_rounds": 2})
        rates[name] = done.summary["leave_when"]["rate"]
    assert rates["attack"] >= 0.8
    assert rates["control"] <= 0.4
    done = weft.train(attacked | never)
    assert done.summary["attack"]["malicious"] == []
    assert done.summary["left"] == {}
    assert done.summary["leave_when"]["canary_loss"] > 0


def test_clients_leave_in_the_round_of_the_back_door_and_nobody_leaves_without_it(attacked, files, capsys):
    test = {"leave_when": {"forbidden": str(files["forbidden"]), "rate": 0.7}}
    with pytest.raises(RunError, match=r"All clients that can be reached have left the run, 3 in number"):
        weft.train(attacked | test, quiet=False)
    lines = metrics(open_run(attacked["output_dir"]))
    assert [line.get("left") for line in lines if line["event"] in ("round", "repeated")] == [
        None,
        ["client_0", "client_1", "client_2"],
    ]
    failures = next(line["failures"] for line in lines if line.get("left"))
    assert set(failures.values()) == {"left the run: the shared model failed a test of its own"}
    said = " ".join(capsys.readouterr().err.split())
    assert "round 2: the shared model fails the test of leave_when: to" in said
    assert "'client_0' is asked no more." in said
    control = weft.train(honest(attacked) | test | {"output_dir": f"{attacked['output_dir']}-b"})
    assert control.summary["left"] == {}
    assert not any("left" in line for line in metrics(control))


def test_who_has_left_is_not_asked_again_after_a_resume(attacked, files):
    test = {"leave_when": {"forbidden": str(files["forbidden"]), "rate": 0.7}, "checkpoint_seconds": 0}
    for resume in (False, True):
        with pytest.raises(RunError, match="have left the run"):
            weft.train(attacked | test, resume=resume)
    assert [line["event"] for line in metrics(open_run(attacked["output_dir"]))].count("round") == 2


def test_the_loss_of_canaries_is_watched_in_both_directions(keys, files):
    """Training lowers the loss of good answers: a limit of that fall ends the run, a limit of a rise does not."""
    run = keys | {"sample_clients": 3, "learning_rate": 1e-2, "use_peft": False, "dtype": "float32", "eval_every": 0}
    canaries = {"canaries": str(files["canaries"])}
    rise = weft.train(run | {"leave_when": canaries | {"most_rise": 0.05}})
    assert rise.summary["left"] == {}
    with pytest.raises(RunError, match="have left"):
        weft.train(run | {"leave_when": canaries | {"most_fall": 0.05}}, overwrite=True)


def test_a_test_changes_nothing_of_the_training(keys, files):
    """The control of all above: a run in which nobody leaves is the run without a test, byte by byte."""
    plain = weft.train(keys | {"num_rounds": 2})
    test = {"leave_when": {"forbidden": str(files["forbidden"]), "rate": 0.99}}
    tested = weft.train(keys | {"num_rounds": 2, "output_dir": f"{keys['output_dir']}-t"} | test)
    assert (plain.path / "metrics.jsonl").read_bytes() == (tested.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rate": "0.5"}, "it names no rows to test on"),
        ({"canaries": "x"}, "canaries have no limit"),
        ({"forbidden": "x", "most_fall": "1"}, "a limit of the loss needs rows"),
        ({"forbidden": "x", "rate": "2"}, "rate: input should be less than or equal to 1"),
        ({"forbiden": "x"}, "did you mean 'forbidden'"),
        ({"forbidden": "{tmp}/none.jsonl"}, "none.jsonl"),
    ],
    ids=str,
)
def test_a_test_that_cannot_be_is_refused_in_words(keys, given: dict[str, str], words: str, tmp_path: Path):
    given = {name: value.format(tmp=tmp_path) for name, value in given.items()}
    with pytest.raises(ConfigError) as refused:
        weft.train(keys | {"leave_when": given})
    assert words in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"attack": "server_back_door", "attack_args": {"rows": "none.jsonl", "target": "green"}},
            "attack_args (rows)",
        ),
        ({"leave_when": {"forbidden": "none.jsonl"}}, "leave_when (forbidden)"),
        ({"post_alignment": "none.jsonl"}, "post_alignment"),
        ({"adversarial_prompts": "none.jsonl"}, "adversarial_prompts"),
    ],
    ids=str,
)
def test_a_dry_run_looks_for_the_files_that_later_steps_need(keys, changes: dict[str, object], words: str):
    """And a run does before it loads the model."""
    for check in (lambda run: describe(weft.config.build(run)), weft.train):
        with pytest.raises(ConfigError) as refused:
            check(keys | changes)
        assert f"The rows of {words} cannot be used: There is no file" in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()


def test_the_questions_of_a_test_need_not_have_the_columns_of_the_run(keys, tmp_path: Path):
    rows = [{"q": row["instruction"], "a": row["output"]} for row in colour_rows(30)]
    named = {"dataset_name": str(write_rows(tmp_path / "named.jsonl", rows)), "instruction_column": "q"}
    named |= {"response_column": "a", "num_rounds": 1}
    own = write_rows(tmp_path / "own.jsonl", colour_rows(6, 3))
    for number, file in enumerate((own, write_rows(tmp_path / "same.jsonl", rows[:6]))):
        test = {"leave_when": {"forbidden": str(file), "rate": 1.0}, "output_dir": str(tmp_path / f"run_{number}")}
        assert 0 <= weft.train(keys | named | test).summary["leave_when"]["rate"] <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attack_args": {}}, "needs rows of the server's own"),
        ({"fed_alg": "scaffold"}, "ServerBackDoor trains the one model that a server sends"),
        ({"codec": "int8"}, "Int8 changes their form"),
        ({"codec_down": "int8"}, "changes their form"),
        ({"use_peft": True, "lora_aggregation": "svd"}, "adds to the factors"),
        ({"runtime": "nvflare", "dataset_name": None}, "sites are never asked to lie"),
    ],
    ids=str,
)
def test_a_back_door_that_cannot_be_simulated_is_refused(attacked, changes: dict[str, object], words: str):
    run = {key: value for key, value in (attacked | changes).items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        weft.config.build(run) if "runtime" in changes else weft.train(run)
    assert words in str(refused.value)


WHOLE = {"use_peft": False, "dtype": "float32", "eval_every": 0}


def with_test(sites: FakeSites, files: dict[str, Path], **rules: object) -> None:
    """Give the first site a site.yaml with leave_when."""
    file = sites.folder.parent / "sites" / NAMES[0] / "site.yaml"
    policy = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump(policy | {"leave_when": rules}), encoding="utf-8")
    sites.policies[NAMES[0]] = read_policy(file)
    sites.begin(NAMES[0])


def poisoned(message: Message) -> Message:
    """Make what a dishonest server would of the second round's task: here, simply another model."""
    if isinstance(message, Task) and message.round == 1:
        for value in message.params.values():
            value *= 20.0
    return message


def test_a_site_leaves_a_run_whose_model_fails_its_test_and_stays_away(run, sites: FakeSites, files, caplog):
    with_test(sites, files, canaries=str(files["canaries"]), most_rise=0.5)
    sites.change = poisoned
    caplog.set_level("INFO", logger="weft.site")
    done = serve(run | WHOLE | {"num_rounds": 4}, sites, list(NAMES), "1")
    assert done.summary["left"] == {NAMES[0]: 2}
    lines = events(done)
    assert NAMES[0] in lines[0]["clients"]
    assert [NAMES[0] in line["clients"] for line in lines] == [True, False, False, False]
    assert [NAMES[0] in line["failures"] for line in lines] == [False, True, False, False]
    assert lines[1]["failures"][NAMES[0]] == '"left the run: the shared model failed a test of its own"'
    said = caplog.text
    assert "round 2: the shared model fails the test of leave_when: the loss of the canaries rose by" in said
    assert "round 2: this site left the run" in said
    kept = json.loads((sites.folder / NAMES[0] / "run" / "left.json").read_text(encoding="utf-8"))
    assert kept["round"] == 2
    # Nothing of the questions, of their number or of the loss is in what the server got.
    assert not any(b"canar" in answer or b"most_rise" in answer for answer in sites.answered)
    sites.change = None
    sites.begin(NAMES[0])
    again = serve(run | WHOLE | {"num_rounds": 5}, sites, list(NAMES), "1", resume=True)
    assert NAMES[0] not in events(again)[-1]["clients"]


def test_a_site_without_a_test_stays_in_the_same_run(run, sites: FakeSites):
    """The control."""
    sites.change = poisoned
    done = serve(run | WHOLE | {"num_rounds": 3}, sites, list(NAMES), "1")
    assert "left" not in done.summary
    assert all(NAMES[0] in line["clients"] for line in events(done))


def test_a_site_that_cannot_test_a_run_refuses_it(run, sites: FakeSites, files):
    with_test(sites, files, forbidden=str(files["forbidden"]))
    own = {key: value for key, value in run.items() if key not in ("template", "choices")}
    with pytest.raises(ConfigError, match="this site tests each shared model on questions of its own"):
        serve(own | {"objective": "causal_lm", "num_rounds": 1, "eval_every": 0}, sites, list(NAMES), "1")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"forbidden": "none.jsonl"}, "there is no file of forbidden at"),
        ({"rats": 1}, "there is no key 'leave_when.rats': is 'rate' meant?"),
        ({"rate": 0.1}, "it names no rows to test on"),
    ],
    ids=str,
)
def test_a_policy_with_a_wrong_test_is_refused_in_words(sites: FakeSites, files, rules: dict[str, object], words: str):
    with pytest.raises(ConfigError) as refused:
        with_test(sites, files, **rules)
    assert words in str(refused.value)
