"""The parts that docs/adding-an-algorithm.md shows are run as they stand there, from outside the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import weft
from support.paths import ROOT
from weft import kinds
from weft.runs import checkpoint

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGE = (ROOT / "docs" / "adding-an-algorithm.md").read_text(encoding="utf-8")
OWN_PARTS: dict[str, dict[str, object]] = {
    "smoothed.py": {"fed_alg": "smoothed.py:Smoothed", "fed_args": {"beta": 0.5}},
    "frozen_a.py": {"lora_aggregation": "frozen_a.py:FrozenA"},
    "first_most.py": {"split_strategy": "first_most.py:first_most", "split_args": {"share": 0.75}},
    "half.py": {"codec": "half.py:Half"},
    "median.py": {"aggregator": "median.py:Median"},
    "clipped.py": {"privacy": "clipped.py:Clipped", "privacy_args": {"norm": 1e-3}},
    "soft_labels.py": {"objective": "soft_labels.py:SoftLabels", "objective_args": {"smoothing": 0.2}},
    "without.py": {"clean": ["without.py:Without"], "clean_args": {"without.py:Without.word": "red"}},
    "short.py": {"reward": "short.py:short", "objective": "grpo", "max_new_tokens": 4, "num_generations": 2},
}


def parts_of_the_page() -> dict[str, str]:
    return {code.splitlines()[0].removeprefix("# "): code for code in CODE.findall(PAGE)}


def test_each_part_of_the_docs_is_run():
    assert parts_of_the_page().keys() == OWN_PARTS.keys()


@pytest.mark.parametrize("name", OWN_PARTS)
def test_the_parts_of_the_docs_work_from_outside_the_package(
    name: str, keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each example is one file: its text is run as it stands in the page, and the package is left as it is."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(parts_of_the_page()[name], encoding="utf-8")
    short = keys | {"num_rounds": 2, "max_steps": 1, "eval_every": 0}
    run = weft.train(short | OWN_PARTS[name], quiet=True)
    plain = weft.train(short | {"output_dir": f"{keys['output_dir']}-plain"}, quiet=True)
    assert (run.path / "metrics.jsonl").read_bytes() != (plain.path / "metrics.jsonl").read_bytes()
    found = checkpoint.latest(run.directory)
    assert found is not None
    if name == "smoothed.py":
        assert set(found[0].memory) == {"momentum"}
    if name == "half.py":
        assert run.metrics["bytes_up"].iloc[0] == plain.metrics["bytes_up"].iloc[0] / 2


def test_the_page_of_parts_names_every_key_and_every_group():
    for key, kind in kinds.PARTS.items():
        assert f"| `--{key}` |" in PAGE
        assert f"`{kind.group}`" in PAGE
        assert not kind.args or f"`--{kind.args}`" in PAGE
