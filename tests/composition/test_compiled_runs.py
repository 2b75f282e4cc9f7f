"""Compiled layers with kinds of training, objectives, ways to compute a step, and algorithms: as plain layers train."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from test_pairs import PATHS, TASKS
from test_product import KINDS
from torch import nn

import weft
from support.rows import colour_rows, write_rows
from weft.errors import ConfigError
from weft.models import compiled, varlen
from weft.objectives import chunks

PROMPT = {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4}
RUNS: dict[str, dict[str, object]] = {
    "recomputed": KINDS["dora"] | TASKS["sft"] | PATHS["recomputed"] | {"fed_alg": "fedprox"},
    "chunks": KINDS["full"] | TASKS["text"] | {"fed_alg": "scaffold"},
    "offsets": KINDS["rslora"] | TASKS["dpo"] | {"fed_alg": "ditto"},
    "muon": KINDS["lora"] | TASKS["mixed tasks"] | PATHS["muon"] | {"fed_alg": "fedcm"},
    "float16": KINDS["lora"] | TASKS["kto"] | PATHS["float16"] | {"fed_alg": "fedadamw"},
    "a prompt": PROMPT | TASKS["sft"] | {"fed_alg": "fednova"},
    "generation": KINDS["lora"] | TASKS["grpo"] | {"fed_alg": "fedavg"},
}
"""Each with a path, kind, task and algorithm that the others have not, as far as there are."""

MEASURED = ("reward", "bits_per_byte", "prefix_loss", "preference_accuracy", "loss")


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file with all the columns that any of the tasks reads."""
    rows = [
        row
        | {"prompt": row["instruction"], "chosen": row["output"], "rejected": "no colour"}
        | {"completion": row["output"], "label": place % 2 == 0}
        for place, row in enumerate(colour_rows(40))
    ]
    texts = [{"text": f"{row['instruction']} {row['output']}", "kind": "ab"[n % 2]} for n, row in enumerate(rows)]
    return str(write_rows(tmp_path / "rows.jsonl", texts if request.param in ("chunks", "muon") else rows))


@pytest.mark.slow
@pytest.mark.skipif(compiled.find_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(("name", "source"), [(name, name) for name in RUNS], indirect=["source"])
def test_compiled_layers_train_as_plain_ones(
    keys: dict[str, object], source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from torch._dynamo.utils import counters

    # Captured and differentiated as for any backend; that of C++ takes a minute a run, and has test_compiled.py.
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: whole(self, backend="aot_eager", **options))
    if name == "chunks":  # of five targets, as if the vocabulary had millions of tokens
        monkeypatch.setattr(chunks, "MOST", 5 * 640)
    if name == "offsets":  # as on CUDA; on a CPU row by row
        monkeypatch.setattr(varlen, "use", lambda model, device, dtype: varlen.install(model))
    changes = {"dtype": "float32", "num_rounds": 2, "eval_every": 0, "max_steps": 2, "dataset_name": source}
    changes |= RUNS[name]
    losses = {}
    for way in ("off", "on"):
        counters.clear()
        run = weft.train(keys | changes | {"compile": way, "output_dir": str(tmp_path / way)}, quiet=True)
        assert run.summary["failures"] == {}
        measured = map(run.summary["eval"].get, MEASURED)
        losses[way] = [*run.metrics.get("train_loss", []), *(value for value in measured if value is not None)]
        assert (counters["frames"]["ok"] > 0) == (way == "on")
    assert losses["on"]
    assert all(map(math.isfinite, losses["on"]))
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-2 if name == "float16" else 1e-3)


def test_an_algorithm_without_gradients_has_nothing_to_compile(keys: dict[str, object]):
    with pytest.raises(ConfigError, match="compile has no effect in this run, because there are no gradients"):
        weft.train(keys | {"use_peft": False, "fed_alg": "fedkseed", "compile": "on"})
    assert not Path(str(keys["output_dir"])).exists()
