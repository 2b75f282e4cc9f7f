"""The weights that a checkpoint gives are those that the run itself wrote at its end, whatever it trains."""

from __future__ import annotations

import pytest

import weft
from weft.cli import main

PROMPT = {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4}
KINDS: dict[str, dict[str, object]] = {
    "words": {
        "use_peft": False,
        "prompt_method": "text",
        "prompt_length": 24,
        "fed_alg": "fedtext",
        "max_steps": 1,
        "learning_rate": None,
    },
    "a prompt": PROMPT,
    "a prompt with a part that stays": PROMPT | {"private_tokens": 2},
    "seeds": {"fed_alg": "fedkseed", "fed_args": {"seeds": 16}, "learning_rate": 1e-4},
    "several models": {"cluster": 2},
    "a side adapter": {"lora_aggregation": "residual"},
    "a whole model": {"use_peft": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_last_round_are_rebuilt_without_the_written_results(keys, tmp_path, kind):
    changes = {"num_rounds": 2, "save_model_freq": 1, "checkpoint_seconds": 0, "sample_clients": 3, "eval_every": 0}
    run = weft.train(keys | changes | KINDS[kind])
    clients: tuple[str | None, ...] = (None,)
    if kind == "several models":
        clients = ("client_1",)
    elif kind == "a prompt with a part that stays":
        clients = (None, "client_1")
    theirs = [run.weights(client) for client in clients]
    run.directory.summary_file.unlink()  # as if it had been killed while it wrote its results
    opened = weft.open_run(run.path)
    for client, written in zip(clients, theirs, strict=True):
        made = opened.weights(client)
        assert made != written
        files = [written] if written.is_file() else sorted(written.glob("*.safetensors"))
        assert files
        for file in files:
            other = made if made.is_file() else made / file.name
            assert other.read_bytes() == file.read_bytes()
    more = ["--client", clients[-1]] if clients[-1] else []
    words = [str(run.path), "--round", "1", *more]
    assert main(["export", *words, "--out", str(tmp_path / "first")]) == 0
    assert main(["chat", *words, "--prompt", "What?", "--max_new_tokens", "2"]) == 0
