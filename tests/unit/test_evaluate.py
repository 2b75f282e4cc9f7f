"""`weft evaluate`: equal to lm-eval item by item, resumable, and true to whose results they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.judge_server import JudgeServer, judging
from support.own_tasks import own_task
from support.paths import DATA
from weft.cli import main
from weft.launch.subject import of_model
from weft.tasks.catalogue import catalogue
from weft.tasks.local_model import LocalModel
from weft.tasks.requests import Choices, EvaluatedModel, Text, Writing
from weft.tasks.rows import items_of, rows_of

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "harness.json").read_text())
TOLERANCE = 1e-4
"""Of lm-eval's log-probabilities, absolute, in float32."""
TASK = own_task("colours", "shots: {}\nchoice: {choices: [red, green], answer: colour}", file="colours")


@pytest.fixture(scope="module")
def story_model(stories: Path) -> EvaluatedModel:
    return of_model(str(stories), {"device": "cpu", "dtype": "float32"}, chat=False, batch_size=5).model


@pytest.mark.parametrize("key", ORACLE["tasks"])
def test_items_equal_lm_eval(key: str, story_model: EvaluatedModel):
    name, shots = key.split()
    task, expected = catalogue()[name], ORACLE["tasks"][key]
    rows = rows_of(task, [DATA / "eval", DATA / "instruct"], int(shots))
    if name == "bbh":
        rows = replace(rows, asked=[row for row in rows.asked if row["task"] == "boolean_expressions"])
    asked = items_of(task, replace(rows, asked=rows.asked[: len(expected)]), int(shots), None)
    for item, other in zip(asked, expected, strict=True):
        assert hashlib.sha256(item.prompt.text.encode()).hexdigest() == other["prompt"]
    requests = [task.scorer.request(item) for item in asked]
    requests = [replace(r, max_tokens=ORACLE["tokens"]) if isinstance(r, Writing) else r for r in requests]
    for reply, other in zip(story_model.reply(requests, 0), expected, strict=True):
        if "text" in other:
            assert reply.first == other["text"]
        else:
            assert reply.logps == pytest.approx(other["logps"], abs=TOLERANCE)


def test_long_texts_equal_lm_eval(story_model: EvaluatedModel, shared_data: Path):
    gsm8k, pubmed = (rows_of(catalogue()[name], [DATA / "eval"], 0).asked for name in ("gsm8k", "pubmedqa"))
    texts = [row["question"] for row in gsm8k[:12]] + [pubmed[0]["context"] * 3]
    replies = story_model.score_texts([Text(text) for text in texts])
    assert [reply.logp for reply in replies] == pytest.approx(ORACLE["texts"], rel=1e-6, abs=TOLERANCE)
    assert replies[-1].windows > 1


def test_a_shared_prompt_gives_what_each_choice_alone_gives(story_model: EvaluatedModel):
    prompt = items_of(catalogue()["pubmedqa"], rows_of(catalogue()["pubmedqa"], [DATA / "eval"], 0), 0, 1)[0].prompt
    together = story_model.score_choices([Choices(prompt, ("yes", "no", "maybe so"))])[0]
    alone = [
        story_model.score_choices([Choices(prompt, (choice,))])[0].logps[0] for choice in ("yes", "no", "maybe so")
    ]
    assert together.logps == pytest.approx(alone, abs=TOLERANCE)
    assert together.cut  # the abstract is longer than the model's context


def test_mode_and_random_state_stay(story_model: EvaluatedModel):
    assert isinstance(story_model, LocalModel)
    resident = story_model.model
    resident.model.train()
    before = torch.random.get_rng_state()
    prompt = items_of(catalogue()["gsm8k"], rows_of(catalogue()["gsm8k"], [DATA / "eval"], 0), 0, 1)[0].prompt
    story_model.write([Writing(prompt, max_tokens=4, temperature=1.0, samples=2)], 0)
    assert resident.model.training
    assert torch.equal(before, torch.random.get_rng_state())
    resident.model.eval()


def test_texts_end_before_a_stop(story_model: EvaluatedModel):
    prompt = items_of(catalogue()["gsm8k"], rows_of(catalogue()["gsm8k"], [DATA / "eval"], 0), 0, 1)[0].prompt
    (whole,) = story_model.write([Writing(prompt, max_tokens=24)], 0)
    stop = whole.first.split()[2]
    (cut,) = story_model.write([Writing(prompt, max_tokens=24, until=(stop,))], 0)
    assert cut.first == whole.first.partition(stop)[0]
    assert cut.ended


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """The flags of an own task with its data."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(TASK)
    things = ("grass", "blood", "a leaf", "a rose")
    lines = [json.dumps({"thing": thing, "colour": ["green", "red"][n % 2]}) for n, thing in enumerate(things)]
    (tmp_path / "tasks" / "colours.jsonl").write_text("\n".join(lines) + "\n")
    return ["--tasks", "colours", "--include_path", str(tmp_path / "tasks"), "--task_data", str(tmp_path / "tasks")]


def test_a_run_is_scored_and_another_model_is_refused(keys, own, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import weft

    run = weft.train(**keys | {"num_rounds": 1, "quiet": True} if "quiet" in keys else keys | {"num_rounds": 1})
    out = tmp_path / "out"
    assert main(["evaluate", str(run.path), *own, "--output_dir", str(out), "--num_fewshot", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["n-samples"]["colours"] == {"original": 4, "effective": 4}
    assert results["results"]["colours"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    records = (out / "items" / "colours.jsonl").read_text().splitlines()
    assert len(records) == 5
    # Again: nothing is asked, and the results are the same.
    assert main(["evaluate", str(run.path), *own, "--output_dir", str(out), "--num_fewshot", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results
    # A kill in the middle of a line: what was whole stays.
    (out / "items" / "colours.jsonl").write_text("\n".join(records[:3]) + "\n" + records[3][:20])
    assert main(["evaluate", str(run.path), *own, "--output_dir", str(out), "--num_fewshot", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == results["results"]
    base = str(keys["model_name_or_path"])
    assert main(["evaluate", base, *own, "--output_dir", str(out), "--num_fewshot", "1"]) == 2
    assert "holds results of another evaluation: model was" in capsys.readouterr().err
    assert main(["evaluate", base, *own, "--output_dir", str(out), "--num_fewshot", "1", "--overwrite"]) == 0


def test_results_of_tasks_add_up(own, tiny_model, questions: Path, tmp_path: Path):
    out = str(tmp_path / "out")
    assert main(["evaluate", str(tiny_model), *own, "--max_new_tokens", "4", "--output_dir", out]) == 0
    with judging(lambda text: "[[5]]") as judge:
        assert judged(tiny_model, questions, *by(judge, tmp_path / "out")) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"colours", "mt_bench"} <= set(results["results"])
    assert set(results["n-samples"]) == {"colours", "mt_bench"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "colour"], "There is no task or suite named 'colour'"),
        (["--tasks", "medqa"], "The data of the task 'medqa' is not at hand"),
        (["--limit", "0"], "--limit is 0: write 1 or more"),
        (["--limit_seed", "1"], "--limit_seed draws the rows of --limit, which is not given"),
        (["--client", "a"], "is no run's directory: leave --client out"),
        (["--apply_chat_template"], "has no chat template: leave --apply_chat_template out"),
        (["--task_data", "nowhere"], "There is no folder of task data 'nowhere'"),
    ],
)
def test_mistakes_leave_nothing_behind(flags, said, own, tiny_model, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["evaluate", str(tiny_model), *own, *flags]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "broken", "said"),
    [
        ("items/colours.jsonl", lambda text: text.replace('"scores"', '"scored"', 1), "Line 2 of '"),
        ("items/colours.jsonl", lambda text: "nonsense\n" + text, "Line 1 of '"),
        ("settings.json", lambda text: text[:20], "does not say what the results beside it are of"),
        ("settings.json", lambda text: "[]", "does not say what the results beside it are of"),
    ],
)
def test_broken_files_are_named(file: str, broken, said: str, own, tiny_model, tmp_path: Path, capsys):
    flags = [str(tiny_model), *own, "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", *flags]) == 0
    path = tmp_path / "out" / file
    path.write_text(broken(path.read_text()))
    assert main(["evaluate", *flags]) == 2
    assert said in capsys.readouterr().err
    assert main(["evaluate", *flags, "--overwrite"]) == 0


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"results": []}'])
def test_a_broken_results_file_is_written_anew(content: bytes, own, tiny_model, tmp_path: Path):
    flags = [str(tiny_model), *own, "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", *flags]) == 0
    file = tmp_path / "out" / "results.json"
    whole = file.read_bytes()
    file.write_bytes(content)
    assert main(["evaluate", *flags]) == 0
    assert file.read_bytes() == whole


def test_tasks_are_listed(own, capsys: pytest.CaptureFixture[str]):
    assert main(["tasks", "finance", "--json"]) == 0
    listed = {task["name"]: task for task in json.loads(capsys.readouterr().out)}
    assert {"fpb", "fiqa", "tfns", "nwgi"} <= set(listed)
    assert "CC BY-NC-SA" in listed["fpb"]["license"]
    assert main(["tasks", "colours", *own[2:]]) == 0
    assert "data: at hand" in capsys.readouterr().out


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two conversations in MT-Bench's columns, one with reference answers."""
    rows = [
        {"question_id": 1, "category": "writing", "turns": ["Write.", "Again."], "reference": None},
        {"question_id": 2, "category": "math", "turns": ["1+1?", "2+2?"], "reference": ["2", "4"]},
    ]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mt_bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows"


def judged(model: Path, questions: Path, *flags: str) -> int:
    words = ["evaluate", str(model), "--tasks", "mt_bench", "--task_data", str(questions), "--max_new_tokens", "4"]
    return main([*words, *flags])


def by(judge: JudgeServer, out: Path) -> list[str]:
    """The flags of a judge, and of the folder of its judgements."""
    return ["--judge_endpoint", judge.url, "--judge_model", "stub", "--output_dir", str(out)]


def test_a_judge_rates_every_turn(tiny_model, questions: Path, tmp_path: Path, capsys):
    with judging(lambda text: "[[4]]" if "2+2" in text else "[[8]]") as judge:
        flags = [*by(judge, tmp_path / "out"), "--json"]
        assert judged(tiny_model, questions, *flags) == 0
        scores = json.loads(capsys.readouterr().out)["results"]["mt_bench"]
        assert (scores["rating_turn_1,none"], scores["rating_turn_2,none"]) == (8.0, 6.0)
        assert (scores["rating,none"], scores["unrated,none"]) == (7.0, 0.0)
        assert len(judge.asked) == 4
        assert "2+2?" in json.dumps([one for one in judge.asked if "1+1" in json.dumps(one)])
        assert judged(tiny_model, questions, *flags) == 0
        assert len(judge.asked) == 4  # nothing is paid for twice


def test_verdicts_that_cannot_be_read_are_counted(tiny_model, questions: Path, tmp_path: Path, capsys):
    with judging(lambda text: "[[9]]" if "Again" in text else "Lovely.") as judge:
        flags = [*by(judge, tmp_path / "out"), "--json"]
        assert judged(tiny_model, questions, *flags) == 0
    scores = json.loads(capsys.readouterr().out)["results"]["mt_bench"]
    assert (scores["rating,none"], scores["unrated,none"]) == (9.0, 0.75)


def paired(first: str, second: str) -> Callable[[str], str]:
    """A judge that rates 5 and prefers one text to another, wherever they stand; of others it prefers what is first."""

    def verdict(text: str) -> str:
        if "assistant A" not in text:
            return "[[5]]"
        a, b = (text.find(f"Assistant A:\n{first}"), text.find(f"Assistant B:\n{first}"))
        if first == second or (a < 0 and b < 0):
            return "[[A]]"
        return "[[A]]" if a >= 0 else "[[B]]"

    return verdict


def answers(out: Path) -> list[list[str]]:
    lines = (out / "items" / "mt_bench.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["reply"]["samples"][0] for line in lines]


def test_a_judge_compares_two_models_in_both_orders(tiny_model, questions: Path, tmp_path: Path, capsys):
    """Answers that win in both places win; a judge that always takes the first place decides nothing."""
    with judging(lambda text: "[[5]]") as judge:
        assert judged(tiny_model, questions, *by(judge, tmp_path / "b"), "--seed", "1") == 0
    theirs = tmp_path / "b" / "items" / "mt_bench.jsonl"
    lines = [json.loads(line) for line in theirs.read_text().splitlines()]
    for line in lines[1:]:  # so that the two models differ, of which one writes nothing but this
        line["reply"]["samples"] = [["so it is"] * len(line["reply"]["samples"][0])]
    theirs.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def compared(name: str, verdict: Callable[[str], str]) -> tuple[dict[str, float], int]:
        with judging(verdict) as server:
            flags = [*by(server, tmp_path / name), "--against", str(tmp_path / "b"), "--json"]
            capsys.readouterr()
            assert judged(tiny_model, questions, *flags) == 0
            return json.loads(capsys.readouterr().out)["results"]["mt_bench"], len(server.asked)

    lost, asked = compared("lost", paired("so it is", ""))
    assert asked == 4 + 2 * 4  # a rating of two turns of two conversations, and each pair in both orders
    assert (lost["win_rate,none"], lost["split_verdicts,none"], lost["undecided,none"]) == (0.0, 0.0, 0.0)
    assert lost["rating,none"] == 5.0
    even, _ = compared("even", paired("", ""))
    assert (even["win_rate,none"], even["split_verdicts,none"]) == (0.5, 1.0)
    assert (even["win_rate_turn_1,none"], even["win_rate_turn_2,none"]) == (0.5, 0.5)
    mute, _ = compared("mute", lambda text: "[[5]]" if "assistant A" not in text else "well")
    assert mute["undecided,none"] == 1.0
    assert "win_rate,none" not in mute
    with judging(lambda text: "[[5]]") as server:
        assert judged(tiny_model, questions, *by(server, tmp_path / "own"), "--against", str(tmp_path / "lost")) == 0
        assert len(server.asked) == 4  # the ratings
    assert "2 of 2 answers equal those that they are compared with, and tie" in capsys.readouterr().err


def test_what_a_judge_cannot_compare_is_refused_before_a_model_is_asked(tiny_model, questions: Path, tmp_path, capsys):
    with judging(lambda text: "[[5]]") as judge:
        assert judged(tiny_model, questions, *by(judge, tmp_path / "b"), "--limit", "1") == 0
        asked = len(judge.asked)

        def says(*flags: str) -> str:
            capsys.readouterr()
            assert judged(tiny_model, questions, *by(judge, tmp_path / "a"), *flags) == 2
            assert not (tmp_path / "a").exists()
            return capsys.readouterr().err

        assert "--judge_price is -1: write what a million tokens cost" in says("--judge_price", "-1", "1")
        assert "is no folder of an evaluation" in says("--against", str(tmp_path / "none"))
        assert "has answers to 1 items of mt_bench and not to item" in says("--against", str(tmp_path / "b"))
        file = tmp_path / "b" / "items" / "mt_bench.jsonl"
        head, line = file.read_text().splitlines()
        file.write_text(f"{head}\n{json.dumps(json.loads(line) | {'row': 'other'})}\n")
        assert "is another one in" in says("--against", str(tmp_path / "b"), "--limit", "1")
        assert len(judge.asked) == asked


@pytest.mark.parametrize(
    ("flags", "said"),
    [([], "add --judge_endpoint URL and --judge_model NAME"), (["--judge_model", "x"], "add --judge_endpoint URL")],
)
def test_a_task_with_a_judge_says_what_it_takes(flags, said, tiny_model, questions: Path, capsys):
    assert judged(tiny_model, questions, *flags) == 2
    assert said in capsys.readouterr().err
