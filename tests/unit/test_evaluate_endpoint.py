"""`weft evaluate --endpoint`: the scores of the model behind it, early refusals, nothing paid twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.model_server import ModelServer, serving_model
from support.own_tasks import own_task
from weft.cli import main
from weft.models import endpoint as endpoint_module

CHOICE = own_task("colours", "choice: {choices: [red, green, dark blue], answer: colour}", file="things")
GENERATE = own_task("saying", "generate: {answer: colour, max_tokens: 6}", file="things")


@pytest.fixture
def server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setattr(endpoint_module, "WAIT", 0.01)
    with serving_model(tiny_model) as served:
        yield served


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The flags of two own tasks with their data."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "colours.yaml").write_text(CHOICE)
    (tmp_path / "own" / "saying.yaml").write_text(GENERATE)
    lines = [json.dumps({"thing": f"thing {n} ", "colour": ["green", "red"][n % 2]}) for n in range(12)]
    (tmp_path / "own" / "things.jsonl").write_text("\n".join(lines) + "\n")
    return ["--include_path", str(tmp_path / "own"), "--task_data", str(tmp_path / "own"), "--quiet"]


def evaluated(out: Path, *flags: str) -> list[dict]:
    """The records of both tasks, in order."""
    code = main(["evaluate", "--tasks", "colours", "saying", *flags, "--output_dir", str(out)])
    assert code == 0
    lines = [(out / "items" / f"{name}.jsonl").read_text().splitlines()[1:] for name in ("colours", "saying")]
    return [json.loads(line) for own in lines for line in own]


def at(server: ModelServer, *more: str) -> list[str]:
    return ["--endpoint", server.url, "--endpoint_retries", "3", *more]


@pytest.mark.parametrize("model", ["tiny_model", "stories"])
def test_scores_are_those_of_the_model_in_this_process(model, request, words, tmp_path, capsys, monkeypatch):
    """Of a tokenizer that begins texts with a token of its own, and of one that does not."""
    monkeypatch.setattr(endpoint_module, "WAIT", 0.01)
    folder = request.getfixturevalue(model)
    with serving_model(folder) as server:
        server.fails_every = 7
        there = evaluated(tmp_path / "there", *words, *at(server))
    said = capsys.readouterr().err
    here = evaluated(tmp_path / "here", *words, str(folder), "--dtype", "float32", "--device", "cpu")
    assert len(there) == len(here) == 24
    for ours, theirs in zip(here, there, strict=True):
        assert ours["scores"] == theirs["scores"]
        if "text" in ours["reply"]:
            assert ours["reply"] == theirs["reply"]
        else:
            assert theirs["reply"]["logps"] == pytest.approx(ours["reply"]["logps"], abs=1e-4)
            assert theirs["reply"]["tokens"] == ours["reply"]["tokens"]
    repeated = server.requests - len(server.asked)
    assert repeated >= 3
    tokens = 10 * len(server.asked), 2 * len(server.asked)
    assert f"was sent {server.requests + 1} requests ({repeated} repeated), {tokens[0]} tokens of prompts" in said
    results = json.loads((tmp_path / "there" / "results.json").read_text())
    assert results["config"]["model_args"] == f"tiny at {server.url}"
    assert results["config"]["model"] == {"endpoint": server.url, "endpoint_model": "tiny"}
    assert not (tmp_path / "there" / "replies.jsonl").exists()


def test_an_endpoint_that_goes_down_loses_nothing(server, words, tmp_path, capsys):
    whole = evaluated(tmp_path / "whole", *words, *at(server))
    asked, before = len(server.asked), len(server.asked)
    server.ends_after = before + 10
    flags = ["evaluate", "--tasks", "colours", "saying", *words, *at(server), "--output_dir", str(tmp_path / "out")]
    assert main(flags) == 1
    said = capsys.readouterr().err
    assert "answered 503" in said
    assert "what it answered is kept; when it answers again, run the same command again" in said
    server.ends_after = 0
    assert evaluated(tmp_path / "out", *words, *at(server)) == whole
    # Three probes again, and nothing else twice.
    assert len(server.asked) - before == asked + 3
    assert f"; {10 - 3} replies of an earlier command were used again." in capsys.readouterr().err
    server.ends_after = len(server.asked)
    assert main([*flags[:-1], str(tmp_path / "other")]) == 1
    assert "start it, then run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_question_that_is_asked_twice_is_none_of_an_earlier_command(server, words, tmp_path, capsys):
    rows = tmp_path / "own" / "things.jsonl"
    rows.write_text(rows.read_text() * 2)
    evaluated(tmp_path / "out", *words, *at(server))
    assert "earlier command" not in capsys.readouterr().err


def test_what_the_endpoint_cannot_give_is_refused_by_name(server, words, tmp_path, capsys):
    server.scores = False
    out = tmp_path / "out"
    flags = ["evaluate", *words, *at(server), "--output_dir", str(out)]
    assert main([*flags, "--tasks", "colours"]) == 2
    assert "cannot be asked colours: it returns no log-probabilities of texts" in capsys.readouterr().err
    assert not out.exists()
    assert main([*flags, "--tasks", "colours", "saying"]) == 0
    assert "left out: The endpoint" in capsys.readouterr().err
    server.completes = False
    assert main([*flags, "--tasks", "saying"]) == 2
    assert "cannot be asked saying: it refuses completions (404)" in capsys.readouterr().err
    assert main([*flags, "--tasks", "colours", "--apply_chat_template"]) == 2
    assert "leave --apply_chat_template out" in capsys.readouterr().err


def test_a_chat_is_asked_in_turns(server, words, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    out = tmp_path / "out"
    more = ["--apply_chat_template", "--system_instruction", "Be brief.", "--endpoint_key", "MY_KEY"]
    assert main(["evaluate", "--tasks", "saying", *words, *at(server, *more), "--output_dir", str(out)]) == 0
    path, asked = server.asked[-1]
    assert path == "chat/completions"
    assert [one["role"] for one in asked["messages"]] == ["system", "user"]
    assert (asked["temperature"], asked["max_tokens"], asked["model"]) == (0, 6, "tiny")
    assert set(server.keys) == {"Bearer s3cret"}
    assert all("s3cret" not in file.read_text() for file in out.rglob("*") if file.is_file())


def test_a_long_prompt_loses_its_beginning_and_is_counted(server, words, tmp_path, capsys):
    server.longest = 32
    out = tmp_path / "out"
    assert main(["evaluate", "--tasks", "colours", *words, *at(server), "--output_dir", str(out)]) == 0
    assert "lost their beginning: colours (12)" in capsys.readouterr().out
    sent = [text for path, asked in server.asked for text in asked["prompt"]]
    assert any(text.endswith("thing 3 ? dark blue") for text in sent)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["model", "--endpoint", "http://x/v1"], "Both 'model' and --endpoint are named"),
        ([], "Nothing is named"),
        (["--endpoint_model", "x", "model"], "add --endpoint URL, or leave it out"),
        (["--endpoint", "localhost:8000"], "which is no URL"),
        (["--endpoint", "http://me:secret@x/v1"], "leave it out of the URL"),
        (["--endpoint", "http://x/v1", "--endpoint_key", "sk-abc"], "name of an environment variable"),
        (["--endpoint", "http://x/v1", "--dtype", "float32"], "leave --dtype out"),
        (["--endpoint", "http://x/v1", "--batch_size", "4"], "leave --batch_size out"),
        (["--endpoint", "http://x/v1", "--endpoint_parallel", "0"], "write 1 or more"),
        (["--endpoint", "http://x/v1", "--endpoint_timeout", "nan"], "--endpoint_timeout is nan"),
    ],
)
def test_wrong_flags_are_refused_without_their_secrets(flags, said, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--tasks", "colours", *words, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "sk-abc" not in error
    assert "me:secret" not in error


def test_of_several_models_one_has_to_be_named(server, words, capsys):
    server.models = ["a", "b"]
    assert main(["evaluate", "--tasks", "colours", *words, *at(server)]) == 2
    assert "has the models a, b: add --endpoint_model NAME" in capsys.readouterr().err
