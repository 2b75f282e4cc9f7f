"""Prompts for a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import weft
from support.completions_server import Completions, serving
from support.flags import flags
from weft.cli import main
from weft.errors import ClientFailed, ConfigError, RunError
from weft.models.completions import ScoredText
from weft.models.endpoint import Endpoint
from weft.models.instruction import Instruction
from weft.models.remote import RemoteModel


@pytest.fixture
def server(tiny_model: Path) -> Iterator[Completions]:
    with serving(tiny_model) as served:
        yield served


@pytest.fixture
def asked(keys, server: Completions) -> dict[str, object]:
    own = {"use_peft": False, "endpoint": server.url, "endpoint_retries": 2, "sample_clients": 3, "batch_size": 8}
    own |= {"endpoint_timeout": 0.5, "dtype": "float32", "num_rounds": 2, "max_steps": 1, "eval_every": 1}
    return {key: value for key, value in (keys | own).items() if key != "learning_rate"}


WORDS = {"prompt_method": "text", "fed_alg": "fedtext", "prompt_length": 40}
WORDS |= {"prompt_candidates": ["Answer in one word.", "red green blue", "Name the colour of it."], "prompt_pool": 4}
WORDS |= {"dtype": None}
BLACK = {"prompt_method": "black_box", "fed_alg": "fedbpt", "learning_rate": 1.0, "num_virtual_tokens": 4}
BLACK |= {"black_box_dim": 8, "population": 4, "max_steps": 2}


def quick(server: Completions, **how) -> Endpoint:
    return Endpoint(server.url, "tiny", **{"retries": 2, "wait": 0.01, "timeout": 0.5} | how)


def test_a_text_prompt_found_through_an_endpoint_is_the_one_found_with_a_local_model(
    asked, server: Completions, tmp_path: Path
):
    """The same prompt with the same numbers: an answer's end token alone is not asked for, as no text has it."""
    there = weft.train(asked | WORDS, quiet=True)
    assert there.summary["failures"] == {}
    here = {key: value for key, value in asked.items() if not key.startswith("endpoint")}
    here |= {"output_dir": str(tmp_path / "here")}
    local = weft.train(here | WORDS, quiet=True)
    assert there.instruction() in {*WORDS["prompt_candidates"], ""}
    ours, theirs = (run.summary["eval"] for run in (local, there))
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=0.2)
    rounds = [json.loads(line) for line in (there.path / "timing.jsonl").read_text().splitlines()]
    assert all(line["endpoint_requests"] > 0 and line["endpoint_retries"] == 0 for line in rounds)
    sent = {text for request in server.asked if request.get("echo") for text in request["prompt"]}
    assert any(text.startswith(WORDS["prompt_candidates"][0] + "\n") for text in sent)
    assert (there.path / "prompt.txt").read_text() == there.instruction() + "\n"


def test_a_black_box_is_searched_in_words_of_the_tokenizer(asked, server: Completions, capsys):
    run = weft.train(asked | BLACK, quiet=True)
    assert run.summary["failures"] == {}
    found = run.instruction()
    assert found
    assert found.isprintable()
    begun = {text.split("\n")[0] for request in server.asked if request.get("echo") for text in request["prompt"]}
    assert len(begun) > 3, "candidates differ in the words that stand before the rows"
    assert run.summary["bytes_up"] < 2 * 3 * 1000
    assert main(["chat", str(run.path), "--prompt", "What colour is the sky?"]) == 2
    said = capsys.readouterr().err
    assert server.url in said
    assert "prompt.txt" in said


def test_likelihoods_are_those_of_the_model(server: Completions, tiny_model: Path, tiny_tokenizer):
    """Against the sums worked out from the model's own logits, chunk by chunk, in order, with offsets and without."""
    import torch
    from transformers import AutoModelForCausalLM

    texts = [f"What colour is the {'big ' * n}sky? blue" for n in range(5)]
    spoken = [ScoredText(text, ((len(text) - 5, len(text)),)) for text in texts]
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    wanted = []
    for text in texts:
        ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer.encode(text, add_special_tokens=False)]
        tail = tiny_tokenizer.encode(" blue", add_special_tokens=False)
        assert ids[-len(tail) :] == tail
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        wanted.append(sum(float(logps[len(ids) - len(tail) + i - 1, token]) for i, token in enumerate(tail)))
    for offsets in (True, False):
        server.offsets = offsets
        found = quick(server).likelihoods(spoken, size=2)
        assert [total for total, _ in found] == pytest.approx(wanted, rel=1e-5)
        assert {count for _, count in found} == {len(tail)}


def test_rows_are_spelled_out_and_their_answers_asked_for(server: Completions, tiny_tokenizer):
    begin = np.array([tiny_tokenizer.bos_token_id], dtype=np.int32)
    remote = RemoteModel(tiny_tokenizer, quick(server), Instruction(8), begin)
    first, answer, second, last = (
        tiny_tokenizer.encode(text, add_special_tokens=False) for text in ("What?", " red", " And?", " green")
    )
    ids = np.array([0, *first, *answer, *second, *last, 1], dtype=np.int32)
    learn = np.concatenate([np.full(1 + len(first), False), np.full(len(answer), True), np.full(len(second), False)])
    learn = np.concatenate([learn, np.full(len(last) + 1, True)])
    assert remote._scored_text(ids, learn) == ScoredText("What? red And? green", ((5, 9), (14, 20)))
    ((_, count),) = remote.remote_likelihoods([(ids, learn)])
    assert count == len(answer) + len(last)


@pytest.mark.parametrize("faults", [[503, 429], [0, 500], [1], [408]])
def test_what_fails_for_a_moment_is_asked_again(server: Completions, faults: list[int]):
    endpoint, text = quick(server), [ScoredText("One two three", ((0, 13),))]
    wanted = endpoint.likelihoods(text)
    assert endpoint.tally() == {"endpoint_requests": 1.0, "endpoint_retries": 0.0}
    server.faults = list(faults)
    assert endpoint.likelihoods(text) == wanted
    again = float(len(faults))
    assert endpoint.tally() == {"endpoint_requests": 1 + again, "endpoint_retries": again}


def test_what_goes_on_failing_drops_the_client_and_refusals_stop_the_run(server: Completions, monkeypatch):
    endpoint, text = quick(server), [ScoredText("One two three", ((0, 13),))]
    server.down = 503
    with pytest.raises(ClientFailed, match=r"answered 503 .*, 3 times"):
        endpoint.likelihoods(text)
    with pytest.raises(RunError, match="run the same command again"):
        endpoint.check()
    server.down = 404
    with pytest.raises(ConfigError, match=r"404 .*--endpoint_model \(tiny\)"):
        endpoint.likelihoods(text)
    server.down = 0
    server.scores = False
    with pytest.raises(ConfigError, match="returns no log-probabilities"):
        endpoint.check()
    server.scores = True
    monkeypatch.setenv("SECRET", "abc")
    quick(server, key="SECRET").check()
    assert server.keys[-1] == "Bearer abc"
    assert server.keys[0] is None
    with pytest.raises(ClientFailed, match="could not be reached"):
        Endpoint("http://127.0.0.1:9/v1", "tiny", retries=1, wait=0.01).likelihoods(text)


def test_a_round_goes_on_without_the_clients_whose_endpoint_fails(asked, server: Completions):
    """It fails through the whole first turn of a client; the round counts the others, and nothing is lost."""
    server.faults = [200, *[503] * 3]
    run = weft.train(asked | WORDS | {"endpoint_parallel": 1, "eval_every": 2}, quiet=True)
    assert sum(run.summary["failures"].values()) == 1
    assert run.summary["rounds"] == 2
    assert run.instruction() in {*WORDS["prompt_candidates"], ""}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_method": "soft", "fed_alg": "fedavg"}, "black_box or text"),
        ({"endpoint": "localhost:8000"}, "no URL"),
        ({"objective": "preference"}, "weft prompt"),
    ],
)
def test_keys_that_do_not_go_with_an_endpoint_are_refused(asked, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(asked | WORDS | changes, quiet=True)


def test_the_plan_names_the_endpoint(asked, server: Completions, capsys):
    given = {key: value for key, value in (asked | BLACK).items() if key not in ("use_peft", "fed_alg")}
    assert main(["prompt", *flags(given), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert f"behind {server.url}" in said
    assert "8 parameters in 1 tensors" in said
    assert server.asked == []
