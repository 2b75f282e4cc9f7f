"""`weft evaluate --harness lm_eval`: lm-eval's tasks on Weft's model, offline, with lm-eval's own scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.own_tasks import own_task
from weft.cli import main

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra harness)")

OURS = own_task("hues", "choice: {choices: [red, green, dark blue], answer: colour}", file="hues")


def their_task(name: str, kind: str, *lines: str) -> str:
    """Return a task of lm-eval's with the same rows, in a file that the fixture names."""
    head = [f"task: {name}", "dataset_path: json", "dataset_kwargs: {data_files: {test: FILE}}", "test_split: test"]
    asked = [f"output_type: {kind}", 'doc_to_text: "Which colour is {{thing}}?"']
    return "\n".join([*head, *asked, *lines]) + "\n"


THEIRS = their_task(
    "their_hues",
    "multiple_choice",
    "fewshot_split: test",
    'doc_to_choice: ["red", "green", "dark blue"]',
    "doc_to_target: \"{{['red', 'green', 'dark blue'].index(colour)}}\"",
    "metric_list: [{metric: acc}, {metric: acc_norm}]",
)
SAYS = their_task(
    "their_saying",
    "generate_until",
    'doc_to_target: "{{colour}}"',
    'generation_kwargs: {until: ["."], max_gen_toks: 6}',
    "metric_list: [{metric: exact_match}]",
)
LOGP = their_task(
    "their_logp",
    "loglikelihood",
    'doc_to_target: " {{colour}}"',
    "metric_list: [{metric: perplexity}, {metric: acc}]",
)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own"
    own.mkdir()
    rows = [{"thing": f"thing {n}", "colour": ["green", "red"][n % 2]} for n in range(10)]
    (own / "hues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("their_hues", THEIRS), ("their_saying", SAYS), ("their_logp", LOGP)):
        (own / f"{name}.yaml").write_text(text.replace("FILE", str(own / "hues.jsonl")))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "hues.yaml").write_text(OURS)
    return ["--harness", "lm_eval", "--include_path", str(own)]


def test_scores_equal_lm_evals_and_our_own(words, stories: Path, tmp_path: Path, capsys):
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = ["their_hues", "their_saying", "their_logp"]
    out, local = tmp_path / "out", ["--device", "cpu", "--dtype", "float32"]
    assert main(["evaluate", str(stories), *words, *local, "--tasks", *names, "--output_dir", str(out)]) == 0
    assert "their_hues" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(stories), batch_size=4),
        tasks=names,
        task_manager=TaskManager(include_path=words[-1], include_defaults=False),
        bootstrap_iters=0,
    )
    assert theirs is not None
    for name in names:
        samples = [json.loads(line) for line in (out / "harness" / f"{name}.jsonl").read_text().splitlines()]
        for ours, other in zip(samples, theirs["samples"][name], strict=True):
            assert ours["arguments"] == json.loads(json.dumps(other["arguments"]))
            if name == "their_saying":
                assert ours["resps"] == other["resps"]
                continue
            for (ours_logp, ours_greedy), (logp, greedy) in zip(
                [one[0] for one in ours["resps"]], [one[0] for one in other["resps"]], strict=True
            ):
                assert float(ours_logp) == pytest.approx(float(logp), abs=1e-4)
                assert str(ours_greedy) == str(greedy)
        assert results["n-samples"][name] == {"original": 10, "effective": 10}
    # The same task of Weft's own, into another folder.
    own = ["--include_path", str(tmp_path / "ours"), "--task_data", words[-1], "--tasks", "hues", "--quiet"]
    assert main(["evaluate", str(stories), *own, *local, "--output_dir", str(tmp_path / "own_out")]) == 0
    scores = json.loads((tmp_path / "own_out" / "results.json").read_text())["results"]["hues"]
    assert scores["acc,none"] == results["results"]["their_hues"]["acc,none"]
    assert scores["acc_norm,none"] == results["results"]["their_hues"]["acc_norm,none"]


def test_the_adapter_of_a_run_takes_part(words, keys, tmp_path: Path):
    import weft

    run = weft.train(**keys | {"num_rounds": 1, "learning_rate": 0.05})
    logps = []
    for subject, out in ((run.path, tmp_path / "tuned"), (Path(str(keys["model_name_or_path"])), tmp_path / "base")):
        flags = ["--num_fewshot", "1", "--limit", "3", "--output_dir", str(out)]
        assert main(["evaluate", str(subject), *words, *flags, "--tasks", "their_hues"]) == 0
        samples = [json.loads(line) for line in (out / "harness" / "their_hues.jsonl").read_text().splitlines()]
        assert len(samples) == 3
        prompt = samples[0]["arguments"][0][0]
        assert prompt.count("Which colour is") == 2
        logps.append([one[0][0] for one in samples[0]["resps"]])
    assert logps[0] != logps[1]


def test_nothing_is_said_of_git_outside_a_repository(words, stories: Path, tmp_path: Path, capfd, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    flags = ["--tasks", "their_logp", "--limit", "2", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["evaluate", str(stories), *words, *flags]) == 0
    assert "git" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "their_hue"], "Did you mean 'their_hues'?"),
        (["--tasks", "their_hues", "--task_data", "."], "--task_data is of Weft's own tasks"),
        (["--tasks", "their_hues", "--limit", "3", "--limit_seed", "0"], "--limit_seed is of Weft's own tasks"),
        (["--tasks", "their_hues", "--apply_chat_template"], "has no chat template"),
        (["--tasks", "broken"], "lm-eval cannot load the task 'broken'"),
    ],
)
def test_mistakes_leave_nothing_behind(flags, said, words, tiny_model, tmp_path: Path, capsys):
    (Path(words[-1]) / "broken.yaml").write_text(
        THEIRS.replace("their_hues", "broken").replace("FILE", "/nowhere.json")
    )
    out = tmp_path / "out"
    assert main(["evaluate", str(tiny_model), *words, *flags, "--output_dir", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def qwen3(tiny_model: Path, tmp_path: Path) -> Any:
    """lm-eval's model and Weft's, of one random Qwen3: norms of queries and keys, heads of their own width."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from weft.launch.subject import of_model

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    # eos is the tokenizer's: Qwen3Config's own number is outside this vocabulary.
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen3Config(vocab_size=len(tokenizer), initializer_range=0.2, **shape, **heads, **ends)
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "qwen3")
    tokenizer.save_pretrained(tmp_path / "qwen3")
    ours = of_model(str(tmp_path / "qwen3"), {"device": "cpu", "dtype": "float32"}, chat=False, batch_size=4).model
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), ours


def test_choices_of_a_random_qwen3_equal_lm_evals(qwen3):
    """Prompts that begin alike share their beginning."""
    from lm_eval.api.instance import Instance

    from weft.tasks.prompts import Prompt
    from weft.tasks.requests import Choices

    theirs, ours = qwen3
    prompts, labels = [f"Which colour has thing {n}? Answer:" for n in range(9)], ("red", "green", "dark blue")
    replies = ours.score_choices([Choices(Prompt(text), labels) for text in prompts])
    pairs = [(text, f" {label}") for text in prompts for label in labels]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    found = [logp for reply in replies for logp in reply.logps]
    assert found == pytest.approx([float(logp) for logp, _ in theirs.loglikelihood(asked, disable_tqdm=True)], abs=1e-4)


def test_greedy_texts_of_a_random_qwen3_equal_lm_evals(qwen3):
    """Of prompts of many lengths in one batch, up to one that is longer than the context and loses its beginning."""
    from lm_eval.api.instance import Instance

    from weft.tasks.prompts import Prompt
    from weft.tasks.requests import Writing

    theirs, ours = qwen3
    prompts = [f"Which colour has thing {n}? " * (1 + n) + "Answer:" for n in range(12)] + ["long and longer " * 120]
    free = written_by(theirs, prompts, [], Instance)
    replies = ours.reply([Writing(Prompt(text), (), 24, 0.0) for text in prompts], 0)
    assert [reply.first for reply in replies] == free
    assert replies[-1].cut
    assert not any(reply.cut for reply in replies[:8])
    assert len(set(free)) > 6  # prompts have texts of their own
    # A text that is in the middle of some of them ends these there, and leaves the others as they are.
    stop = next(text[len(text) // 2 :][:3] for text in free if len(text) > 6)
    ended = written_by(theirs, prompts, [stop], Instance)
    assert ended != free
    stopped = ours.reply([Writing(Prompt(text), (stop,), 24, 0.0) for text in prompts], 0)
    assert [reply.first for reply in stopped] == ended


def written_by(model: Any, prompts: list[str], until: list[str], instance: Any) -> list[str]:
    """What lm-eval's model writes."""
    how = {"until": until, "max_gen_toks": 24, "do_sample": False}
    asked = [instance("generate_until", {}, (text, dict(how)), number) for number, text in enumerate(prompts)]
    return list(model.generate_until(asked, disable_tqdm=True))
