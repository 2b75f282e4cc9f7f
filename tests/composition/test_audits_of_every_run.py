"""`weft audit RUN --all` on every kind of run: each audit finds something, or says why it is left out."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import weft
from support.kills import in_a_child
from support.preferences import judged_rows, preference_rows
from support.rows import write_rows
from weft import registry
from weft.cli import main

FEW = ["--all", "--small", "--limit", "12", "--candidates", "15", "--shadows", "2"]
WORDS = [first + second + third for first in "bdgklmprst" for second in "aeiou" for third in "nrst"]

ASKS = {"system_prompt", "refusals"}
"""Every run whose model is here allows these."""
READS = ASKS | {"membership", "verbatim"}
ROUNDS = {"properties", "participant", "gan"}
SHORT = {"inversion", "sequence", "prefixes"}
"""Of rows of 48 tokens at most."""
PLANTED = {"exposure", "extraction", "prompts"}
CANARIES: dict[str, Any] = {"canaries": 8, "canary_repetitions": [2]}
BOUND: dict[str, Any] = {"noise_multiplier": 1.0, "clip_norm": 0.1}
MASKED: dict[str, Any] = {"protection": "masks", "num_clients": 6, "sample_clients": 6}
TEXT: dict[str, Any] = {"data": "text", "objective": "causal_lm", "template": None, "seq_length": 24}
GRPO: dict[str, Any] = {"objective": "grpo", "reward": "length", "max_new_tokens": 4, "num_generations": 2}
SOFT: dict[str, Any] = {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4, "template": "alpaca"}
SEARCHED = SOFT | {"prompt_method": "black_box", "black_box_dim": 12, "population": 4, "fed_alg": "fedbpt"}
WORDED: dict[str, Any] = {
    "use_peft": False, "prompt_method": "text", "fed_alg": "fedtext", "prompt_candidates": ["In a word."],
    "prompt_pool": 2, "prompt_length": 40, "learning_rate": None,
}  # fmt: skip

RUNS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "lora": (CANARIES | {"canary_tokens": 8}, READS | ROUNDS | PLANTED | {"new_tokens", "span"}),
    "full": (CANARIES | {"use_peft": False}, READS | ROUNDS | PLANTED | {"span", "embedding"}),
    "text": (TEXT, READS | ROUNDS | SHORT | {"span"}),
    "text, full": (TEXT | {"use_peft": False}, READS | ROUNDS | SHORT | {"span", "embedding"}),
    "dpo": ({"data": "pairs", "objective": "preference"}, ASKS),
    "kto": ({"data": "judged", "objective": "preference", "loss": "kto"}, ASKS),
    "grpo": (GRPO | {"batch_size": 2}, ASKS),
    "soft prompt": (SOFT, READS | ROUNDS | {"soft_prompt"}),
    "soft prompt, canaries": (
        SOFT | CANARIES | {"canary_tokens": 8},
        READS | ROUNDS | PLANTED | {"soft_prompt", "new_tokens"},
    ),
    "black box": (SEARCHED, READS | {"soft_prompt"}),
    "text prompt": (WORDED, READS),
    "clusters": ({"cluster": 2, "client": "client_0"}, READS),
    "ditto": ({"fed_alg": "ditto"}, READS | ROUNDS | {"span"}),
    "ditto, own model": ({"fed_alg": "ditto", "client": "client_1"}, READS | ROUNDS | {"span"}),
    "personal": ({"personal_steps": 1, "client": "client_1"}, READS | ROUNDS | {"span"}),
    "dual": ({"lora_aggregation": "dual"}, READS | ROUNDS | {"span"}),
    "fedsa": ({"lora_aggregation": "fedsa"}, READS | ROUNDS),
    "ranks": ({"client_ranks": [8, 2, 4], "lora_aggregation": "svd"}, READS | ROUNDS | {"span"}),
    "central": (CANARIES | {"fed_alg": "central"}, READS | PLANTED),
    "local": ({"fed_alg": "local", "client": "client_0"}, READS),
    "fedbuff": ({"fed_alg": "fedbuff"}, READS | ROUNDS | {"span"}),
    "scaffold": ({"fed_alg": "scaffold"}, READS | ROUNDS | {"span"}),
    "fedkseed": ({"fed_alg": "fedkseed"}, READS),
    "diloco": ({"fed_alg": "diloco"}, READS | ROUNDS | {"span"}),
    "masks": ({"protection": "masks"}, READS | ROUNDS | {"span"}),
    "groups": (MASKED | {"group_size": 3, "min_clients": 3}, READS | ROUNDS - {"gan"} | {"span"}),
    "ckks": ({"protection": "ckks"}, READS | ROUNDS | {"span"}),
    "int4": ({"codec": "int4", "codec_down": "int4"}, READS | ROUNDS | {"span"}),
    "sparse": ({"codec": "sparse_loco", "codec_args": {"keep": 300}}, READS | ROUNDS | {"span"}),
    "median": ({"aggregator": "median"}, READS | {"span", "properties"}),
    "private rows": (BOUND | {"use_peft": False, "privacy_unit": "row"}, READS | ROUNDS | {"span", "embedding"}),
    "private clients": (BOUND | CANARIES | {"privacy_unit": "client"}, READS | ROUNDS | PLANTED | {"span"}),
    "sampled": ({"num_clients": 6, "sample_clients": 2}, READS | ROUNDS - {"gan"} | {"span"}),
}
"""Keys of runs, and the audits that each allows: `gan` needs more rows of a client than six of them have here, and the
rule of `median` more clients than are left without one."""
QUICK = ("dpo", "text")


def box_rows(count: int) -> list[dict[str, str]]:
    """Rows whose answers follow from nothing, of a dozen tokens."""
    rng = random.Random(0)
    numbers = rng.sample(range(1000), count)
    return [{"instruction": f"Box {number:03}?", "output": " ".join(rng.choices(WORDS, k=4))} for number in numbers]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    folder, rows = tmp_path_factory.mktemp("rows"), box_rows(90)
    kinds = {
        "boxes": rows,
        "text": [{"text": f"{row['instruction']} {row['output']}"} for row in rows],
        "pairs": preference_rows(60),
        "judged": judged_rows(60),
    }
    return {name: str(write_rows(folder / f"{name}.jsonl", found)) for name, found in kinds.items()}


@pytest.fixture
def given(keys, sources) -> dict[str, Any]:
    own = {"dataset_name": sources["boxes"], "sample_clients": 3, "num_rounds": 2, "max_steps": 2, "dtype": "float32"}
    return keys | own | {"eval_fraction": 0.4, "eval_every": 0}


def digests(run: Path) -> dict[str, str]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in ("audit.json", "report.html"))
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def found_in(run: Path) -> dict[str, Any]:
    """Return what was found, without the seconds; a number that is not finite is no JSON."""

    def never(word: str) -> None:
        raise AssertionError(f"{word} in audit.json")

    found = json.loads((run / "audit.json").read_text(), parse_constant=never)
    return found | {"audits": {name: one | {"seconds": 0} for name, one in found["audits"].items()}}


def check(run: Path, wanted: set[str], capsys, *more: str) -> None:
    """Put all audits to a run, and look at what each says."""
    before = digests(run)
    assert main(["audit", str(run), *FEW, *more]) == 0
    said = capsys.readouterr().out
    assert digests(run) == before
    found = found_in(run)
    left_out = found["left_out"]
    assert set(found["audits"]) == wanted, {name: left_out[name] for name in wanted & set(left_out)}
    assert set(left_out) == set(registry.AUDITS) - wanted
    for name, audit in found["audits"].items():
        assert audit["rows"], name
        assert audit["means"] in said
        assert f"What changes it: {audit['defence']}" in said
    for name, reason in left_out.items():
        assert "\n" not in reason
        assert reason.endswith(".")
        assert f"{name} was left out. {reason}" in said


@pytest.mark.parametrize("kind", [pytest.param(one, marks=[pytest.mark.slow] * (one not in QUICK)) for one in RUNS])
def test_every_audit_finds_something_or_says_why_not(given, sources, kind: str, capsys):
    changes, wanted = RUNS[kind]
    changes = {**changes, "dataset_name": sources[changes.get("data", "boxes")]}
    client = ["--client", changes["client"]] if "client" in changes else []
    own = {name: value for name, value in changes.items() if name not in ("data", "client")}
    keys = {name: value for name, value in (given | own).items() if value is not None or name == "template"}
    run = weft.train(keys, quiet=True)
    capsys.readouterr()
    check(run.path, wanted, capsys, *client)


@pytest.mark.slow
def test_a_run_that_went_on_is_audited(given, capsys):
    weft.train(given | {"num_rounds": 1})
    check(weft.train(given, resume=True).path, READS | ROUNDS | {"span"}, capsys)


@pytest.mark.slow
def test_an_emulator_and_a_model_from_nothing_are_audited(given, sources, tiny_tokenizer, tmp_path: Path, capsys):
    folder, deep = tmp_path / "emulator", tmp_path / "deep"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(deep)
    tiny_tokenizer.save_pretrained(deep)
    assert main(["emulate", str(deep), "--out", str(folder), "--keep_layers", "4", "--ends", "1"]) == 0
    run = weft.train(given | {"model_name_or_path": str(folder), "use_peft": False})
    check(run.path, READS | ROUNDS | {"span"}, capsys)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 300, "tokenizer_text": sources["text"]}
    own = {"dataset_name": sources["text"], "objective": "causal_lm", "seq_length": 24, "use_peft": False}
    left = {name: value for name, value in given.items() if name not in ("model_name_or_path", "template")}
    scratch = weft.train(left | own | shape | {"output_dir": str(tmp_path / "scratch")})
    check(scratch.path, READS | ROUNDS | SHORT | {"span", "embedding"}, capsys)


@pytest.mark.slow
def test_the_folder_of_a_run_of_sites_is_audited(run, sites, capsys):
    pytest.importorskip("nvflare")
    from support.fake_sites import NAMES
    from weft.sites.server import serve

    check(serve(run | {"eval_every": 0}, sites, list(NAMES), "1").path, ASKS, capsys)


def test_an_audit_that_is_killed_leaves_what_it_found_and_is_asked_again(given, capsys):
    run = weft.train(given | {"num_rounds": 1, "max_steps": 1}, quiet=True).path
    words = ["audit", str(run), "--quiet", "--small", "--limit", "4", "--tests", "refusals", "span"]
    assert main(words) == 0
    whole, file, kills = found_in(run), run / "audit.json", 0
    for kill_at in range(1, 40, 3):  # before and after a call by turns
        file.unlink(missing_ok=True)
        if (code := in_a_child(lambda: main(words), kill_at=kill_at)) == 0:
            break
        assert code == 9
        kills += 1
        if file.exists():  # all of an audit, or nothing
            assert found_in(run)["audits"].items() <= whole["audits"].items()
        assert main(words) == 0
        assert found_in(run) == whole
    assert kills >= 3


def test_a_first_look_does_not_stand_among_the_numbers_of_a_whole_audit(given):
    run = weft.train(given | {"num_rounds": 1, "max_steps": 1}, quiet=True).path
    for more, left in (([], {"refusals"}), (["--small"], {"span"}), (["--small"], {"span"})):
        name = "span" if more else "refusals"
        assert main(["audit", str(run), "--quiet", "--limit", "4", *more, "--tests", name]) == 0
        assert set(found_in(run)["audits"]) == left
