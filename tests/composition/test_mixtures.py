"""Runs of `weft pretrain` with tasks and mixtures of domains."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weft
from support.fake_sites import NAMES, FakeSites
from support.rows import THINGS, write_rows
from weft.errors import ConfigError, DataError, WeftError
from weft.sites.policy import SitePolicy
from weft.sites.server import serve

DOMAINS = ("fruit", "plants", "sky")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of text, one a domain, each row with the column `kind` as well."""
    made = tmp_path / "domains"
    made.mkdir()
    rng = random.Random(0)
    for number, name in enumerate(DOMAINS):
        words = THINGS[number * 4 : number * 4 + 4]
        texts = [" ".join(rng.choices(words, k=rng.randint(8, 30))) for _ in range(20 * (number + 1))]
        write_rows(made / f"{name}.jsonl", [{"text": text, "kind": name} for text in texts])
    return made


@pytest.fixture
def pretraining(folder: Path, tiny_model: Path, tmp_path: Path) -> dict[str, object]:
    return {
        "objective": "causal_lm",
        "model_name_or_path": str(tiny_model),
        "dataset_name": str(folder),
        "num_clients": 2,
        "sample_clients": 2,
        "num_rounds": 2,
        "max_steps": 3,
        "batch_size": 4,
        "seq_length": 48,
        "learning_rate": 1e-3,
        "eval_every": 1,
        "output_dir": str(tmp_path / "run"),
        "token_cache": str(tmp_path / "cache"),
        "report": False,
    }


SHARES = {"mixture": "fruit=0.5,plants=0.5,sky=0", "mixture_column": "kind"}
TASKS = {"pretraining_task": "fim=0.5,prefix=0.3"}


def lines(run: weft.Run, event: str) -> list[dict[str, object]]:
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def weights(run: weft.Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


def test_tasks_and_a_mixture_train_and_a_resumed_run_is_the_same(pretraining, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = pretraining | SHARES | TASKS | {"save_model_freq": 1, "checkpoint_seconds": 0}
    run = weft.train(given)
    shares = [line["mixture"] for line in lines(run, "round")]
    assert all(set(share) == set(DOMAINS) and share["sky"] == 0 for share in shares)
    assert all(sum(share.values()) == pytest.approx(1) for share in shares)
    evaluation = run.summary["eval"]
    assert {"loss", "fim_loss", "middle_bits_per_byte", "infill_exact", "prefix_loss"} <= evaluation.keys()
    assert 0 <= evaluation["infill_exact"] <= 1
    # The marks are special tokens of the model that was saved, with an embedding each.
    tokenizer, model = (kind.from_pretrained(run.path / "model") for kind in (AutoTokenizer, AutoModelForCausalLM))
    marks = tokenizer.convert_tokens_to_ids(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    assert set(marks) <= set(range(model.config.vocab_size))
    assert tokenizer.decode(marks, skip_special_tokens=True) == ""
    again = tmp_path / "again"
    shutil.copytree(run.path, again)
    for path in (again / "checkpoints" / "round_000002", again / "model"):
        shutil.rmtree(path)
    (again / "summary.json").unlink()
    resumed = weft.train(given | {"output_dir": str(again)}, resume=True)
    assert lines(resumed, "round") == lines(run, "round")
    assert lines(resumed, "eval") == lines(run, "eval")
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(run).items())
    # The marks are there now, so an adapter on this model may learn to fill in.
    adapter = {"model_name_or_path": str(run.path), "use_peft": True, "num_rounds": 1, "pretraining_task": "fim"}
    assert weft.train(pretraining | adapter | {"output_dir": str(tmp_path / "lora")}).summary["eval"]["fim_loss"] > 0


EVERYTHING = {
    "fed_alg": "diloco",
    "fed_args": {"delay": 1, "fragments": 2, "bias_correction": True, "outer_warmup": 0.3, "outer_decay": 0.5},
    "optimizer": "muon",
    "codec": "sparse_loco",
    "mixture": "temperature",
}
RESUMED: dict[str, dict[str, object]] = {
    "temperature": {"mixture": "temperature", "pretraining_task": "prefix=0.5"},
    "excess": {"mixture": "excess", "mixture_reference": "fruit=1,plants=2,sky=0"},
    "central": {"mixture": "temperature", "fed_alg": "central", "keep_moments": True},
    "everything": EVERYTHING | TASKS,
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_run_draws_the_same_rows_and_ends_with_the_same_bits(
    pretraining, tmp_path: Path, changes: dict[str, object]
):
    given = pretraining | changes | {"num_rounds": 5, "save_model_freq": 1, "checkpoint_seconds": 0, "eval_every": 2}
    run = weft.train(given, quiet=True)
    again = tmp_path / "again"
    shutil.copytree(run.path, again)
    for path in (*again.glob("checkpoints/round_00000[345]"), again / "model"):
        shutil.rmtree(path)
    (again / "summary.json").unlink()
    resumed = weft.train(given | {"output_dir": str(again)}, resume=True, quiet=True)
    assert (again / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(run).items())


def test_new_marks_begin_at_the_mean_of_the_embeddings(pretraining, tiny_model: Path):
    from weft.config import build
    from weft.models.load import base_model
    from weft.models.tokenizer import load_tokenizer

    config = build(pretraining | {"pretraining_task": "fim"})
    before = base_model(build(pretraining)).get_input_embeddings().weight
    model, size = base_model(config), len(load_tokenizer(config))
    after = model.get_input_embeddings().weight
    assert len(after) == size == len(before) + 3 == model.config.vocab_size
    assert torch.equal(after[: len(before)], before)
    assert torch.allclose(after[len(before) :], before.mean(dim=0).expand(3, -1))
    assert model.get_output_embeddings().weight.shape == after.shape


def test_a_dry_run_tells_the_shares_of_the_mean_client(pretraining, folder: Path):
    """20, 40 and 60 rows; a client of one domain has nothing else."""
    from weft.config import build
    from weft.launch.dry_run import describe

    def said(changes: dict[str, object]) -> str:
        (line,) = re.findall(
            r"^mixture +(.*)$", describe(build(pretraining | changes)).partition("\n\n")[0], re.MULTILINE
        )
        return line

    assert said(SHARES) == "fruit 50.0%, plants 50.0%, sky 0.0%"
    by_rows = re.findall(r"[\d.]+", said({"mixture": "temperature", "mixture_temperature": 1, "eval_fraction": 0}))
    assert [float(share) for share in by_rows] == pytest.approx([100 / 6, 200 / 6, 300 / 6], abs=4)
    alone = {"split_strategy": "domain", "num_clients": 3, "sample_clients": 3, "mixture": "excess"}
    assert said(alone | {"mixture_reference": "fruit=2,plants=2,sky=2"}) == (
        "fruit 33.3%, plants 33.3%, sky 33.3%, times what excess loss makes of it"
    )
    assert "mixture" not in describe(build(pretraining)).partition("\n\n")[0]


def test_a_dry_run_tells_the_marks_and_counts_their_embeddings(pretraining):
    from weft.config import build
    from weft.launch.dry_run import describe

    given = pretraining | {"num_rounds": 1, "eval_every": 0, "pretraining_task": "fim"}
    text = describe(build(given))
    assert "<|fim_prefix|>, <|fim_suffix|>, <|fim_middle|>, for which the model gets 3 embeddings" in text
    assert "middles" not in describe(build(pretraining))
    sent = sum(value.numel() for value in weights(weft.train(given)).values())
    assert re.search(rf"^trained +{sent} parameters", text, re.MULTILINE)


def test_a_span_is_filled_in_exactly_where_generate_writes_it(pretraining):
    """transformers' own greedy decoding, token by token, is the oracle of what one pass tells."""
    from weft.config import build
    from weft.evaluation.pretraining_tasks import greedy_is_exact
    from weft.models.load import load_resident
    from weft.models.tokenizer import load_tokenizer

    config = build(pretraining)
    model = load_resident(config, load_tokenizer(config))
    rng = np.random.default_rng(0)
    rows, expected = [], []
    for size in (5, 9, 14, 20):
        prompt = torch.from_numpy(rng.integers(5, 60, (1, size)))
        options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
        written = model.model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0].numpy()
        other = written.copy()
        other[-1 - size % 3] += 1
        for ids, exact in ((written, True), (other, False)):
            rows.append((ids.astype(np.int32), np.arange(len(ids)) >= size))
            expected.append(exact)
    with model.evaluating():
        assert greedy_is_exact(model, rows) == expected


def test_bytes_of_tokens_add_up_to_those_of_the_text(tiny_model: Path):
    """Also where a token is a part of a character, and of a vocabulary that writes lone bytes as <0x0A>."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from weft.data.vocabulary import train_tokenizer
    from weft.evaluation.pretraining_tasks import text_size

    text = "Zwölf Boxkämpfer 走る, \n done"
    for tokenizer in (train_tokenizer([text, "words"], 270), AutoTokenizer.from_pretrained(tiny_model)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = len(tokenizer.decode(ids).encode())
        assert sum(text_size(tokenizer, np.array([number])) for number in ids) == whole
    pieces = {"<unk>": 0, "▁a": 1, "b": 2, "<0x0A>": 3, "é": 4}
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    llama = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert text_size(llama, np.array([1, 2, 3, 4])) == len(" ab\né".encode())


@pytest.mark.parametrize("fed_alg", ["fedavg", "scaffold", "diloco", "fedkseed", "ditto", "local", "central", "fedsgd"])
def test_a_mixture_and_tasks_go_with_an_algorithm(pretraining, fed_alg: str):
    changes = {"fed_alg": fed_alg, "max_steps": 1, "eval_every": 0}
    run = weft.train(pretraining | SHARES | {"pretraining_task": "prefix=0.5"} | changes, quiet=True)
    assert run.summary["failures"] == {}
    assert [set(line["mixture"]) for line in lines(run, "round")] == [set(DOMAINS)] * 2


def test_a_mixture_goes_with_masked_sums(pretraining, tmp_path: Path):
    """The server sees sums alone; what was drawn of each domain is counted all the same."""
    one = pretraining | SHARES | {"eval_every": 0, "num_clients": 3, "sample_clients": 3}
    masked = weft.train(one | {"protection": "masks"}, quiet=True)
    plain = weft.train(one | {"output_dir": str(tmp_path / "plain")}, quiet=True)
    assert masked.summary["failures"] == {}
    assert [line["mixture"] for line in lines(masked, "round")] == [line["mixture"] for line in lines(plain, "round")]
    for name, value in weights(masked).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=0, atol=1e-4)


def test_a_mixture_goes_with_a_delay(pretraining):
    delayed = {"fed_alg": "diloco", "fed_args": {"delay": 1}, "num_rounds": 3, "eval_every": 0}
    run = weft.train(pretraining | SHARES | delayed, quiet=True)
    assert run.summary["failures"] == {}
    assert [set(line["mixture"]) for line in lines(run, "round")] == [set(DOMAINS)] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "fed_alg", ["fedprox", "fedavgm", "fedyogi", "fednova", "feddyn", "fedexp", "fedcm", "fedbuff"]
)
def test_a_mixture_and_tasks_go_with_the_other_algorithms(pretraining, fed_alg: str):
    test_a_mixture_and_tasks_go_with_an_algorithm(pretraining, fed_alg)


def test_temperature_and_excess_loss_choose_the_shares(pretraining, folder: Path, tmp_path: Path):
    """Files are the domains without a column. The reference is a run with a client for each of them."""
    small = {"split_strategy": "domain", "sample_clients": 3, "output_dir": str(tmp_path / "small")}
    reference = weft.train({key: v for key, v in pretraining.items() if key != "num_clients"} | small)
    losses = {name: scores["loss"] for name, scores in reference.summary["clients"].items()}
    assert set(losses) == set(DOMAINS)
    flat = weft.train(pretraining | {"mixture": "temperature", "mixture_temperature": 50.0, "batch_size": 32})
    assert all(0.2 < share < 0.47 for line in lines(flat, "round") for share in line["mixture"].values())
    # A reference far below on one domain alone: that domain is the one with much to gain.
    told = ",".join(f"{name}={0.0 if name == 'sky' else 99.0}" for name in DOMAINS)
    keys = {"mixture": "excess", "mixture_reference": told, "mixture_strength": 5.0, "batch_size": 32}
    steep = weft.train(pretraining | keys | {"output_dir": str(tmp_path / "steep")})
    assert all(line["mixture"]["sky"] > 0.9 for line in lines(steep, "round"))
    read = weft.train(
        pretraining | keys | {"mixture_reference": str(reference.path), "output_dir": str(tmp_path / "read")}
    )
    assert set(lines(read, "round")[0]["mixture"]) == set(DOMAINS)
    with pytest.raises(
        DataError, match=r"has a client 'client_0', which is no domain .* or write the losses as fruit="
    ):
        weft.train(pretraining | keys | {"mixture_reference": str(flat.path), "output_dir": str(tmp_path / "other")})


def test_public_text_is_a_domain_of_every_client(pretraining, folder: Path, tmp_path: Path):
    public = write_rows(tmp_path / "news.jsonl", [{"text": f"news of day {day}"} for day in range(30)])
    keys = {key: value for key, value in pretraining.items() if key not in ("dataset_name", "num_clients")}
    keys |= {"clients": [f"{name}={folder / name}.jsonl" for name in DOMAINS[:2]], "public_data": str(public)}
    keys |= {"mixture": "fruit=0.5,plants=0.25,public=0.25", "batch_size": 32, "max_steps": 4}
    for fed_alg in ("fedavg", "central"):
        run = weft.train(keys | {"fed_alg": fed_alg, "output_dir": str(tmp_path / fed_alg)})
        for line in lines(run, "round"):
            assert "public" not in line["clients"]
            assert 0.15 < line["mixture"]["public"] < 0.35
            if fed_alg == "fedavg":  # each client has one domain beside, and three quarters of it
                assert line["mixture"]["fruit"] == pytest.approx(line["mixture"]["plants"], abs=0.1)


BAD: dict[str, tuple[dict[str, object], str]] = {
    "shares": ({"mixture": "fruit=0.5,sky=0.4"}, "add up to 0.9: write shares that add up to 1"),
    "a domain": ({"mixture": "fruits=0.5,sky=0.5"}, "'fruits', which is not there: did you mean 'fruit'"),
    "no such column": ({"mixture": "temperature", "mixture_column": "sort"}, "mixture_column"),
    "a client without": ({"mixture": "sky=1", "split_strategy": "domain", "num_clients": 3}, "has no row of a domain"),
    "public twice": ({"mixture": "sky=1", "public_data": "x", "public_share": 0.5}, "leave out --public_share"),
    "public unnamed": ({"mixture": "sky=1", "public_data": "x"}, "add public=SHARE"),
    "public unread": ({"mixture": "sky=0.5,public=0.5"}, "write --public_data FILE"),
    "excess of nothing": ({"mixture": "excess"}, "belong together"),
    "a loss of no domain": (
        {"mixture": "excess", "mixture_reference": "fruits=2,plants=2,sky=2"},
        "mixture_reference names the domain 'fruits', which is not there: did you mean 'fruit'",
    ),
    "a client without a loss": (
        {"mixture": "excess", "mixture_reference": "sky=2", "split_strategy": "domain", "num_clients": 3},
        "no row of a domain with a loss in mixture_reference, but of fruit: give one of these a loss",
    ),
    "no such run": ({"mixture": "excess", "mixture_reference": "runs/none"}, "is no finished run"),
    "single rows": ({"mixture": "sky=1", "privacy_unit": "row", "target_epsilon": 8}, "leave out --mixture"),
    "tasks of single rows": (
        {"pretraining_task": "prefix=0.5", "privacy_unit": "row", "target_epsilon": 8},
        "write --pretraining_task causal, or --privacy_unit client",
    ),
    "canaries": ({"mixture": "sky=1", "canaries": 10}, "leave out --mixture or --canaries"),
    "two columns": (
        {"mixture": "sky=1", "mixture_column": "kind", "split_strategy": "by", "split_column": "text"},
        "write --mixture_column text",
    ),
    "in vain": ({"mixture_temperature": 3.0}, "with mixture temperature or excess"),
    "an order of nothing": ({"fim_spm_share": 0.1}, "add --pretraining_task fim=0.5"),
    "too short": ({"pretraining_task": "fim", "seq_length": 6}, "write --seq_length 8"),
    "an adapter": ({"pretraining_task": "fim", "use_peft": True}, "--use_peft false"),
    "conversations": ({"pretraining_task": "fim", "objective": "sft"}, "weft pretrain"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_mistaken_tasks_and_mixtures_are_refused_in_a_sentence(pretraining, changes: dict[str, object], said: str):
    with pytest.raises((ConfigError, DataError), match=said) as found:
        weft.train(pretraining | changes)
    assert isinstance(found.value, WeftError)


def test_one_domain_alone_is_no_mixture(pretraining, folder: Path):
    for name in DOMAINS[1:]:
        (folder / f"{name}.jsonl").unlink()
    for mixture in ("temperature", "fruit=0.5,sky=0.5"):
        with pytest.raises(DataError, match="All rows are of one domain, 'fruit'"):
            weft.train(pretraining | {"mixture": mixture})


def ruled(policy: SitePolicy, **rules: object) -> SitePolicy:
    accept = type(policy.accept).model_validate(policy.accept.model_dump() | rules)
    return policy.model_copy(update={"accept": accept})


def test_sites_mix_their_own_rows_and_count_them(
    run, sites: FakeSites, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "home"))
    for place, (site, policy) in enumerate(list(sites.policies.items())):
        sites.policies[site] = ruled(policy, domains=list(DOMAINS))
        sites.begin(site)
        rows = [
            {"text": f"{kind} has {n} apples", "kind": kind} for n in range(30) for kind in DOMAINS[: 2 + place % 2]
        ]
        write_rows(Path(policy.data.path), rows)
    left = {key: value for key, value in run.items() if key not in ("choices", "template")}
    keys = left | {"objective": "causal_lm", "seq_length": 32, "num_rounds": 1, "batch_size": 16} | SHARES
    serve(keys | {"pretraining_task": "prefix=0.5"}, sites, list(NAMES), "1")
    text = (Path(str(run["output_dir"])) / "metrics.jsonl").read_text(encoding="utf-8")
    (line,) = (line for line in map(json.loads, text.splitlines()) if line["event"] == "round")
    assert line["mixture"]["fruit"] + line["mixture"]["plants"] == pytest.approx(1)
    with pytest.raises(ConfigError, match="write the shares by name"):
        serve(keys | {"mixture": "temperature"}, sites, list(NAMES), "2")


def test_a_site_lets_no_run_choose_the_rows_of_one_person(
    run, sites: FakeSites, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A server that names a column and a value would have the update of the rows with this value alone."""
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "home"))
    for policy in sites.policies.values():
        rows = [{"text": f"note {n} of the ward", "ward": "north", "patient": f"p{n % 10}"} for n in range(60)]
        rows += [{"text": f"note {n} of Jane Doe", "ward": "hall", "patient": "Jane Doe"} for n in range(4)]
        write_rows(Path(policy.data.path), rows)
    left = {key: value for key, value in run.items() if key not in ("choices", "template")}
    keys = left | {"objective": "causal_lm", "seq_length": 32, "num_rounds": 1, "eval_fraction": 0}
    person = {"mixture_column": "patient", "mixture": "Jane Doe=0.999,p1=0.001"}
    with pytest.raises(
        ConfigError, match="rows of the domain 'Jane Doe', which is not among the domains that this site"
    ):
        serve(keys | person, sites, list(NAMES), "1")

    for site, policy in list(sites.policies.items()):
        sites.policies[site] = ruled(policy, domains=["north", "hall"], min_report_rows=10, min_train_rows=1)
        sites.begin(site)
    small = {"mixture_column": "ward", "mixture": "hall=0.999,north=0.001"}
    with pytest.raises(ConfigError, match="its mixture names a domain of which this site has fewer than 10 rows"):
        serve(keys | small, sites, list(NAMES), "1")
    serve(keys | {"mixture_column": "ward", "mixture": "hall=0,north=1"}, sites, list(NAMES), "1")
