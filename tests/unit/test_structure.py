"""How the package is built: one way to build a client, short modules and functions, adding a part touches no file."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import weft

pytestmark = pytest.mark.xdist_group("structure")  # all modules are parsed once
ROOT = Path(weft.__file__).parent
ONCE = {
    "ClientHost": {"launch/client.py"},
    "load_resident": {"launch/client.py"},
    "evaluator_of": {"launch/client.py"},
    "refer": {"launch/client.py"},
    "choose_few_shot": {"launch/client.py"},
    "check_fits": {"launch/client.py"},
    # Before there is a model: rows for a tokenizer, and for `weft split`; rows of the server's own.
    "populate": {"launch/client.py", "launch/tokenizer.py", "commands/split.py", "launch/own_rows.py"},
}
"""What belongs to building a client, and the only modules that call it."""


@cache
def modules() -> dict[str, ast.Module]:
    """Return the trees of all modules: some seconds, which collecting the tests need not take."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def calls(tree: ast.Module) -> set[str]:
    nodes = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


@pytest.mark.parametrize("name", ONCE)
def test_a_client_is_built_in_one_place(name: str):
    assert {module for module, tree in modules().items() if name in calls(tree)} <= ONCE[name]


def test_modules_and_functions_are_short():
    long = {module for module in modules() if len((ROOT / module).read_text(encoding="utf-8").splitlines()) > 300}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60:
                long.add(f"{module}: {node.name}")
    assert not long


def test_the_round_is_one_file_of_less_than_170_lines():
    assert len((ROOT / "federation" / "round.py").read_text(encoding="utf-8").splitlines()) < 170


def test_simulations_know_nothing_of_sites():
    """The layers contract says so for modules; this says it for what is imported within functions by a name."""
    knows = set()
    for module, tree in modules().items():
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if any(name.startswith("weft.sites") for name in imported):
            knows.add(module.split("/")[0])
    assert knows == {"sites", "commands"}
