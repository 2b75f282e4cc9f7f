"""`weft contribution`: values of clients, by hand, of duplicates and of noisy labels, and who has none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import weft
from support.rows import colour_rows, write_rows
from weft.aggregation.mean import Mean
from weft.cli import main
from weft.config import build
from weft.core.types import DELTA, Update
from weft.errors import ConfigError
from weft.launch.contribution import along, check, leave_one_out
from weft.launch.run import Run


def sent(client: str, value: float, weight: float) -> Update:
    return Update(client, 0, 0, {DELTA: {"w": torch.tensor([value])}}, weight)


def test_values_of_a_linear_loss_are_those_worked_out_by_hand():
    """The loss is w. The mean of 1, -1 and (twice) 2 is 1; without the first it is 1, the second 5/3, the third 0."""
    updates = [sent("a", 1.0, 1.0), sent("b", -1.0, 1.0), sent("c", 2.0, 2.0)]

    def worth(some: Any) -> float:
        return -float(Mean().combine(some).streams[DELTA]["w"]) if some else 0.0

    assert leave_one_out(updates, worth) == pytest.approx([0.0, 2 / 3, -1.0])
    assert along(updates, {"w": torch.tensor([1.0])}) == pytest.approx([-0.25, 0.25, -1.0])  # their sum is -1
    twins = [sent("a", 3.0, 2.0), sent("b", 3.0, 2.0), sent("c", -1.0, 1.0)]
    first, second, _ = leave_one_out(twins, worth)
    assert first == second
    assert leave_one_out(updates[:1], worth) == [-1.0]  # alone, it is compared with no step


@pytest.fixture
def four(keys, tmp_path: Path) -> dict[str, Any]:
    """A run of two clients with the same rows, one with others, and one whose answers are wrong; all in one batch."""
    good = colour_rows(24, 1)
    asked = [row | {"instruction": f"Now: {row['instruction']}"} for row in colour_rows(20, 7)]
    held = write_rows(tmp_path / "held.jsonl", asked)  # no row of the training
    turned = {"red": "green", "green": "blue", "blue": "red"}
    rows = {
        "one": good,
        "same": good,
        "other": colour_rows(24, 2),
        "noisy": [row | {"output": turned[row["output"]]} for row in colour_rows(24, 3)],
    }
    clients = [
        {"name": name, "data": str(write_rows(tmp_path / f"{name}.jsonl", some)), "eval": str(held)}
        for name, some in rows.items()
    ]
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients", "eval_fraction")}
    own = {"clients": clients, "sample_clients": 4, "batch_size": 24, "max_steps": 1, "num_rounds": 5, "eval_every": 0}
    model = {"use_peft": False, "dtype": "float32", "learning_rate": 5e-3, "lr_scheduler_type": "constant"}
    return left | own | model


def test_duplicates_have_equal_values_and_wrong_labels_the_least(four, capsys):
    run = weft.train(four)
    assert main(["contribution", str(run.path), "--quiet"]) == 0
    said = capsys.readouterr().out
    found = json.loads((run.path / "contribution.json").read_text())
    assert found["same_bits"]
    assert found["rounds"] == 5
    for value in ("leave_one_out", "gradient"):
        values = {name: one[value] for name, one in found["clients"].items()}
        spread = max(values.values()) - min(values.values())
        assert abs(values["one"] - values["same"]) < 0.02 * spread
        assert min(values, key=values.__getitem__) == "noisy"
        assert values["other"] > values["noisy"] + spread / 2
    assert list(found["clients"])[-1] == "noisy"
    assert "noisy" in said
    page = (run.path / "report.html").read_text()
    assert "<td>noisy</td>" in page


def test_under_masks_groups_have_values_and_clients_have_none(keys):
    masked = {"protection": "masks", "num_clients": 6, "sample_clients": 6, "group_size": 3, "min_clients": 3}
    run = weft.train(keys | masked | {"num_rounds": 1, "eval_every": 0, "dtype": "float32", "eval_fraction": 0.2})
    assert main(["contribution", str(run.path), "--quiet"]) == 0
    found = json.loads((run.path / "contribution.json").read_text())
    assert "clients" not in found
    members = [name for group in found["groups"] for name in group["members"]]
    assert len(found["groups"]) == 2
    assert sorted(members) == [f"client_{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"protection": "masks"}, "opens one sum of all clients of a round"),
        ({"privacy_unit": "client", "noise_multiplier": 1.0, "clip_norm": 0.1}, "would tell more"),
        ({"fed_alg": "scaffold"}, "remembers more of a client than its update"),
        ({"aggregator": "median", "aggregator_args": {"attackers": 1}}, "with Median the step is no mean"),
        ({"fed_alg": "local"}, "sends no updates of one shared model"),
        ({"use_peft": True, "lora_aggregation": "svd"}, "combines factors in another way"),
        ({"objective": "preference", "template": None}, "the objective of the run in 'x' is preference"),
    ],
    ids=str,
)
def test_a_run_without_values_says_why(more: dict[str, Any], words: str):
    keys = {"dataset_name": "any", "num_clients": 6, "sample_clients": 3, "use_peft": False} | more
    config = build({name: value for name, value in keys.items() if value is not None})
    run = cast(Run, SimpleNamespace(config=config, path=Path("x"), finished=True))
    with pytest.raises(ConfigError) as refused:
        check(run)
    assert words in str(refused.value)
    with pytest.raises(ConfigError, match="is not finished"):
        check(cast(Run, SimpleNamespace(config=config, path=Path("x"), finished=False)))
