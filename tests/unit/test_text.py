"""Plain text: long texts become several rows, stay with one client, and are measured in bits per byte."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

import weft
from conftest import THINGS, write_rows
from weft.data.encode import encode
from weft.data.formats import Example, Turn
from weft.data.templates import PLAIN

RNG = random.Random(0)
TEXTS = [" ".join(RNG.choices(THINGS, k=RNG.randint(3, 60))) + " é∑" for _ in range(40)]


def examples() -> list[Example]:
    return [Example((Turn("assistant", text),)) for text in TEXTS]


@pytest.mark.parametrize("seq_length", [2, 5, 16, 500])
def test_every_token_is_learnt_once(tiny_tokenizer, seq_length: int):
    table = encode(examples(), tiny_tokenizer, PLAIN, seq_length=seq_length, pieces=True)
    whole = encode(examples(), tiny_tokenizer, PLAIN, seq_length=100_000, pieces=True)
    assert table.lengths().max() <= seq_length
    assert table.counts["truncated"] == 0
    for number in range(len(TEXTS)):
        rows = np.flatnonzero(table.rows == number)
        learnt = [ids[mask] for ids, mask in (table[int(row)] for row in rows)]
        ids, _ = whole[number]
        assert (np.concatenate(learnt) == ids[1:]).all()
        assert int(table.text_bytes[rows].sum()) == int(whole.text_bytes[number])
    # Without a token before it, the first one is not predicted, and its bytes do not count.
    first = len(tiny_tokenizer.decode(whole[0][0][:1]).encode())
    assert int(whole.text_bytes[0]) == len(TEXTS[0].encode()) - first


def test_texts_stay_whole_and_bits_per_byte_are_the_loss_over_the_bytes(keys, tmp_path: Path):
    data = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    changes = {"objective": "causal_lm", "dataset_name": str(data), "seq_length": 8, "num_rounds": 1, "num_clients": 4}
    run = weft.train(keys | changes | {"eval_fraction": 0.2})
    found = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.summary["eval"]["bits_per_byte"] == pytest.approx(found["bits_per_byte"])
    from weft.federation.site import InMemory
    from weft.launch.population import populate
    from weft.models.load import load_tokenizer

    population = populate(run.config, load_tokenizer(run.config), InMemory(), text_only=True, pool=False)
    sites = list(population.evaluated)
    owners: dict[int, set[tuple[str, bool]]] = {}
    for site in sites:
        for view, held in ((site.train, False), (site.held, True)):
            for row in view.index:
                owners.setdefault(int(view.table.rows[row]), set()).add((site.name, held))
    assert set(owners) == set(range(len(TEXTS)))
    assert all(len(where) == 1 for where in owners.values())
    # The random model gives about log(vocabulary) nats a token.
    tokens = sum(int(site.held[row][1].sum()) for site in sites for row in range(len(site.held)))
    size = sum(int(population.text_bytes[site.held.index].sum()) for site in sites)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * tokens / math.log(2) / size, rel=1e-6)
