"""Plain text: long texts become several rows, stay with one client, and are measured in bits per byte."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

import weft
from support.rows import THINGS, write_rows
from weft.data.documents import Documents
from weft.data.store import open_store
from weft.data.texts import TextSource
from weft.data.tokens import TextTokenizer

RNG = random.Random(0)
TEXTS = [" ".join(RNG.choices(THINGS, k=RNG.randint(3, 60))) + " é∑" for _ in range(40)]


def table(tokenizer, folder: Path, seq_length: int) -> Documents:
    data = write_rows(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    text = TextTokenizer(tokenizer)
    return Documents([open_store(TextSource(str(data)), text, folder / "cache")], seq_length, len(text.begin))


@pytest.mark.parametrize("seq_length", [2, 5, 16, 500])
def test_every_token_is_learnt_once(tiny_tokenizer, tmp_path: Path, seq_length: int):
    cut, whole = (table(tiny_tokenizer, tmp_path, length) for length in (seq_length, 100_000))
    assert max(len(cut[row][0]) for row in range(len(cut))) <= seq_length
    for number in range(len(TEXTS)):
        rows = cut.rows_of(np.array([number]))
        learnt = [ids[mask] for ids, mask in (cut[row] for row in rows)]
        ids, _ = whole[number]
        assert (np.concatenate(learnt) == ids[1:]).all()
        assert sum(cut.text_bytes(row) for row in rows) == whole.text_bytes(number)
    # Without a token before it, the first one is not predicted, and its bytes do not count.
    first = len(tiny_tokenizer.decode(whole[0][0][:1]).encode())
    assert whole.text_bytes(0) == len(TEXTS[0].encode()) - first


def test_texts_stay_whole_and_bits_per_byte_are_the_loss_over_the_bytes(keys, tmp_path: Path):
    data = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    changes = {"objective": "causal_lm", "dataset_name": str(data), "seq_length": 8, "num_rounds": 1, "num_clients": 4}
    changes |= {"template": None}
    run = weft.train(keys | changes | {"eval_fraction": 0.2})
    found = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.summary["eval"]["bits_per_byte"] == pytest.approx(found["bits_per_byte"])
    from weft.federation.clients import InMemory
    from weft.launch.population import populate
    from weft.models.tokenizer import load_tokenizer

    population = populate(run.config, load_tokenizer(run.config), InMemory(), rows="text", pool=False)
    sites = list(population.evaluated)
    owners: dict[int, set[tuple[str, bool]]] = {}
    for site in sites:
        for view, held in ((site.train, False), (site.held_out, True)):
            for row in view.index:
                owners.setdefault(view.table._place(row)[0], set()).add((site.name, held))
    assert set(owners) == set(range(len(TEXTS)))
    assert all(len(where) == 1 for where in owners.values())
    # The random model gives about log(vocabulary) nats a token.
    tokens = sum(int(site.held_out[row][1].sum()) for site in sites for row in range(len(site.held_out)))
    size = sum(population.text_bytes(row) for site in sites for row in site.held_out.index)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * tokens / math.log(2) / size, rel=1e-6)
