"""The product of parts under a budget of clients: every pair runs in one run or another, or is refused in words.

What is allowed is written down here by names, apart from the traits by which the plan decides.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from test_pairs import PROMPTS, TASKS
from test_product import ALGORITHMS, KINDS, allowed

import weft
from support.covering_array import Row, covering, pairs_of
from support.results import events
from support.rows import colour_rows, write_rows
from weft import registry
from weft.config import build
from weft.errors import ConfigError
from weft.launch import compose

pytest.importorskip("dp_accounting")
SUMS = {
    *("fedavg", "fedsgd", "fedprox", "scaffold", "fedavgm", "fedadagrad", "fedyogi", "fedadam", "feddyn", "diloco"),
    *("ditto", "fedkseed"),
}
"""Algorithms that step from one sum of what clients send."""
ONE_MEAN = ("average", "ffa", "rolora", "merge", "fedsa", "fedsb", "dual")
"""LoRA aggregations that take the mean of factors."""
PRIVATE: dict[str, object] = {"privacy_unit": "client", "noise_multiplier": 1.0, "num_clients": 4, "sample_clients": 2}
AXES = {
    "algorithm": sorted(SUMS),
    "aggregation": list(ONE_MEAN),
    "kind": [*KINDS, *PROMPTS],
    "task": ["sft", "text", "dpo", "grpo"],
    "sampling": ["uniform", "poisson", "size"],
    "noise": ["server", "client"],
    "bound": ["adaptive", "0.3"],
    "down": ["none", "int8"],
}


def goes_together(row: Row) -> bool:
    fed_alg, lora, kind, task, sampling, noise, _, down = row
    if down != "none" and (fed_alg == "fedkseed" or lora == "merge"):
        return False
    if noise == "client" and sampling == "poisson":
        return False  # a cohort of chance seldom has the shares
    if kind in PROMPTS:
        return lora == "average" and task == "sft"
    return allowed(fed_alg, lora, kind)


CHOSEN = covering(AXES, goes_together)


def test_every_pair_is_there():
    every = [row for row in itertools.product(*AXES.values()) if goes_together(row)]
    assert set().union(*map(pairs_of, CHOSEN)) == set().union(*map(pairs_of, every))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rows = Path(tmp_path_factory.mktemp("rows")), colour_rows(60)
    kinds = {
        "text": [{"text": f"{row['instruction']} {row['output']}"} for row in rows],
        "dpo": [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "no colour"} for row in rows],
    }
    return {name: str(write_rows(folder / f"{name}.jsonl", made)) for name, made in kinds.items()}


@pytest.mark.parametrize(tuple(AXES), CHOSEN)
def test_every_pair_of_parts_trains_two_private_rounds(
    keys,
    sources,
    algorithm: str,
    aggregation: str,
    kind: str,
    task: str,
    sampling: str,
    noise: str,
    bound: str,
    down: str,
):
    changes = PRIVATE | {"fed_alg": algorithm, "lora_aggregation": aggregation, "num_rounds": 2, "max_steps": 1}
    changes |= (KINDS | PROMPTS)[kind] | TASKS[task] | {"client_sampling": sampling, "noise_at": noise}
    changes |= {"clip_norm": bound, "codec_down": down, "min_clients": 2 if noise == "client" else 0}
    if task in sources:
        changes["dataset_name"] = sources[task]
    run = weft.train(keys | changes, quiet=True)
    assert run.summary["rounds"] == 2
    assert run.summary["failures"] == {}
    first, second = (line["epsilon"] for line in events(run))
    assert 0 < first < second
    assert run.summary["privacy"]["releases"] == 2


REFUSED = [
    (fed_alg, lora)
    for fed_alg, lora in itertools.product([*ALGORITHMS, "fedbpt", "fedtext"], registry.LORA_AGGREGATIONS)
    if fed_alg not in SUMS or (lora not in ONE_MEAN)
]


def test_every_other_algorithm_and_aggregation_is_refused_with_what_can(keys):
    assert len(REFUSED) > 100
    for fed_alg, lora in REFUSED:
        changes = PRIVATE | {"fed_alg": fed_alg, "lora_aggregation": lora, "model_name_or_path": "there/is/none"}
        with pytest.raises(ConfigError) as refused:
            compose.plan(build(keys | changes))
        said = str(refused.value)
        assert any(remedy in said for remedy in ("write", "add", "leave out", "choose")), said
        assert "\n" not in said
