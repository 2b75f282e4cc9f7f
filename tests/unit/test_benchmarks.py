"""The benchmarks name what there is: what they import, and keys that have an effect in the arm that sets them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT
from weft.config import gather, settle

FILES = sorted((ROOT / "benchmarks").glob("*.py"))


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, found)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_of_weft_is_there(file: Path):
    """Also within functions, which no test runs."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("weft"):
            if node.module == "weft.sites.flare" or "flare" in str(node.module):
                pytest.importorskip("nvflare")
            there = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(there, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_the_arms_of_the_algorithm_study_set_keys_that_work(monkeypatch: pytest.MonkeyPatch):
    study = module("algorithms", monkeypatch)
    for arm, (fixed, _) in study.ARMS.items():
        for setting in study.grid("tfns", arm):
            settle(*gather({"dataset_name": "any", "num_clients": 5} | fixed | setting, {}))


@pytest.mark.parametrize(("name", "keys"), [("arithmetic", "GRPO"), ("preference", "KEYS")])
def test_the_arms_of_a_study_set_keys_that_work(name: str, keys: str, monkeypatch: pytest.MonkeyPatch):
    study = module(name, monkeypatch)
    for changes in study.ARMS.values():
        settle(*gather({"dataset_name": "any"} | getattr(study, keys) | changes, {}))


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """With tiny sizes, so that it works at the first call where a GPU is lent."""
    module("gpu", monkeypatch).main(["--tiny", "--parts", "acdef", "--deadline", "60"])
    printed = capsys.readouterr().out
    assert "failed" not in printed
    for words in ("TFLOP/s", "round / bare steps", "tokens/s, transformers", "20 losses against float32", "a step"):
        assert words in printed


def test_the_benchmark_of_a_gpu_ends_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module("gpu", monkeypatch).main(["--tiny", "--deadline", "-1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(line.endswith("not measured, the deadline has come") for line in lines)
