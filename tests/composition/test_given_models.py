"""Checkpoints that people met, from their folders to the end of a run or to the sentence that stops it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import weft
from support.rows import write_rows
from weft.errors import ConfigError

pytestmark = pytest.mark.xdist_group("given_models")  # what all of it needs is made once

TRAINED = {
    "compiled": "begin with _orig_mod., which a wrapper left",
    "wrapped_by_peft": "begin with base_model.model., which a wrapper left",
    "mixtral": "experts' weights are fused",
    "qwen3_moe": "experts' weights are fused",
    "gemma2": "",
    "phi3": "",
}
"""What trains, and what is said of it (by transformers 5, of experts)."""
REFUSED = {
    "two_layers_missing": r"lacks model\.layers\.3\.input_layernorm\.weight, .* and 15 more; .* --allow_missing",
    "classifier": r"lacks lm_head\.weight and has score\.weight without a place",
    "bert": r"\(bert\) looks ahead",
    "bart": r"an encoder with a decoder \(bart\)",
    "gptq": "quantised by gptq, which Weft does not load",
    "awq": "quantised by awq, which Weft does not load",
}


@pytest.fixture(scope="module")
def given(stories: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all of them."""
    maker = shared_data.parent / "cases" / "make_models.py"
    if not maker.is_file():
        pytest.skip(f"no cases in {maker.parent}")
    out = tmp_path_factory.mktemp("given")
    subprocess.run([sys.executable, str(maker), str(stories), str(out)], check=True, capture_output=True)
    return out


@pytest.fixture
def run_of(given: Path, tmp_path: Path):
    """Run a step on a model by its name; the loss."""
    rows = [{"text": f"Once upon a time there was a girl who had {i} and {i % 7} cats."} for i in range(40)]
    data = write_rows(tmp_path / "text.jsonl", rows)

    def run(name: str, **more: object) -> float:
        keys = {"model_name_or_path": str(given / name), "dataset_name": str(data), "objective": "causal_lm"}
        small = {"num_clients": 2, "num_rounds": 1, "max_steps": 1, "batch_size": 2, "seq_length": 64, "use_peft": True}
        made = weft.train(keys | small | {"output_dir": str(tmp_path / "run"), "eval_fraction": 0.2} | more, quiet=True)
        return float(made.summary["eval"]["loss"])

    return run


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_saved_in_an_odd_way_is_trained_and_the_oddity_is_told(run_of, name: str, capsys):
    loss = run_of(name)
    assert loss < (5 if "compiled" in name or "peft" in name else 6.5)  # the real model's, or a random one's
    assert TRAINED[name] in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_trained_is_refused_with_the_reason(run_of, name: str):
    with pytest.raises(ConfigError, match=REFUSED[name]):
        run_of(name, use_peft=name == "bert")


def test_missing_weights_are_drawn_where_that_is_asked_for(run_of, capsys):
    assert 5 < run_of("two_layers_missing", allow_missing=True) < 9
    assert "lacks 18 weights" in capsys.readouterr().err
