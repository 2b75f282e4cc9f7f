"""Tokenizers of one's own, from text and from clients' counts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import weft
from support.rows import THINGS, write_rows
from weft.config import build
from weft.core.secret import Secret
from weft.data.vocabulary import common_words, tokenizer_of_words, train_tokenizer, words_of
from weft.errors import ConfigError, DataError
from weft.launch.tokenizer import with_tokenizer


def texts(seed: int, count: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices([*THINGS, "été", "x9", "it's", "\n\n"], k=rng.randint(1, 30))) for _ in range(count)]


def test_counts_of_every_word_make_the_tokenizer_of_the_text():
    one, two = texts(1), texts(2)
    sums = common_words([words_of(one, 1), words_of(two, 1)], 1, 0.0, Secret.random)
    found = tokenizer_of_words(sums, 330)
    assert found.backend_tokenizer.to_str() == train_tokenizer(one + two, 330).backend_tokenizer.to_str()


def test_a_client_sends_frequent_words_only():
    sent = words_of(["sea sea sea", "sea sky sky", "moss"], 2)
    assert sent == {" sea": 2, "sea": 2, " sky": 2}


def test_only_words_of_several_clients_are_kept():
    sent = [{"a": 5, "secret": 900}, {"a": 7, "b": 5}, {"b": 5}]
    assert common_words(sent, 2, 0.0, Secret.random) == {"a": 12, "b": 10}
    with pytest.raises(DataError, match="No word was sent by 3 clients"):
        common_words(sent, 3, 0.0, Secret.random)


def test_noise_is_discrete_laplace():
    many = {f"w{n}": 10_000 for n in range(20_000)}
    secret = Secret(bytes(range(32)))
    noised = common_words([many], 1, 4.0, lambda: secret)
    errors = [count - 10_000 for count in noised.values()]
    # Its variance is 2 p / (1 - p)^2 with p = exp(-1 / b).
    p = 2.718281828 ** (-1 / 4)
    assert sum(errors) / len(errors) == pytest.approx(0, abs=0.15)
    assert sum(e * e for e in errors) / len(errors) == pytest.approx(2 * p / (1 - p) ** 2, rel=0.05)
    assert common_words([many], 1, 4.0, lambda: secret) == noised != common_words([many], 1, 4.0, Secret.random)
    assert len(common_words([dict.fromkeys(many, 1)], 1, 4.0, Secret.random)) < 15_000


def test_counts_beyond_measure_are_divided_alike():
    most = 100_000
    words = {"a": 3 * most, " b": 3 * most, " bb": 1}
    assert tokenizer_of_words(words, 300, most).tokenize(" b") == ["Ġb"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "domains"
    made.mkdir()
    for number, name in enumerate(("one", "two", "three")):
        rows = [{"text": f"secret{name} {text}"} for text in texts(number)]
        write_rows(made / f"{name}.jsonl", rows)
    return made


def keys(folder: Path, tmp_path: Path) -> dict[str, object]:
    return {
        "objective": "causal_lm",
        "dataset_name": str(folder),
        "split_strategy": "domain",
        "sample_clients": 3,
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "federated_tokenizer": True,
        "vocab_size": 340,
        "num_rounds": 1,
        "max_steps": 1,
        "seq_length": 32,
        "output_dir": str(tmp_path / "run"),
    }


def test_a_run_with_a_federated_tokenizer_saves_it_and_what_clients_sent(folder: Path, tmp_path: Path):
    run = weft.train(keys(folder, tmp_path))
    told = json.loads((run.path / "tokenizer" / "federated.json").read_text())
    assert set(told["clients"]) == {"one", "two", "three"}
    assert all(one["bytes"] > 0 for one in told["clients"].values())
    assert told["words"] < sum(one["words"] for one in told["clients"].values())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    assert len(tokenizer) <= 340
    # What one client alone has is not in it; what all have is.
    assert not any("secret" in token for token in tokenizer.get_vocab())
    assert "Ġsea" in tokenizer.get_vocab()


def test_a_vocabulary_larger_than_the_counts_allow_is_made_smaller_and_told(folder: Path, tmp_path: Path, capsys):
    run = weft.train(keys(folder, tmp_path) | {"vocab_size": 5000})
    assert "of 5000 tokens: its text gives no more" in capsys.readouterr().err
    assert run.summary["eval"]["bits_per_byte"] > 0


def test_words_that_nobody_shares_are_an_error(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="write a smaller --tokenizer_min_count"):
        weft.train(keys(folder, tmp_path) | {"tokenizer_min_clients": 4})


def test_a_split_by_tokens_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="makes the tokenizer after the split"):
        weft.train(keys(folder, tmp_path) | {"split_strategy": "length", "num_clients": 2})


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_model: Path, tmp_path: Path, folder: Path):
    import shutil

    odd = shutil.copytree(tiny_model, tmp_path / "odd")
    train_tokenizer(texts(0), 2000).save_pretrained(odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"vocab_size": 280}))
    with pytest.raises(ConfigError, match="280 embeddings"):
        weft.train(
            {"objective": "causal_lm", "dataset_name": str(folder), "model_name_or_path": str(odd)}
            | {"output_dir": str(tmp_path / "run")}
        )


def test_the_noise_of_a_run_is_its_servers_and_no_other_party_can_take_it_off(folder: Path, tmp_path: Path):
    """From the configuration, which every party has, and its seed follows nothing of it."""
    config = build(keys(folder, tmp_path) | {"tokenizer_noise": 5.0})
    secret = Secret(bytes(range(32)))
    made = {}
    for name, source in {"one": secret, "same": secret, "other": Secret(bytes(32)), "drawn": None}.items():
        with_tokenizer(config, tmp_path / name, print, *([] if source is None else [lambda source=source: source]))
        made[name] = (tmp_path / name / "tokenizer.json").read_bytes()
    assert made["one"] == made["same"]
    assert len(set(made.values())) == 3
