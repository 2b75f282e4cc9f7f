"""docs/design.md against the code: its layout names every module, its listings are the contracts as they stand."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT

PACKAGE = ROOT / "src" / "weft"
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
LAYOUT = PAGE.partition("\n## 5. ")[2].partition("\n## ")[0]
WIDTH = 100
Members = dict[str, str]


def named() -> set[str]:
    """The modules of the layout: FOLDER/MODULE, by the folder of the heading or of a row."""
    folder, found = "", set()
    for line in LAYOUT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("### "):
            folder = "".join(re.findall(r"`(?:weft/)?(\w*/?)`", line)[:1])
        elif line.startswith("| `") and cells[0].endswith("/`"):
            found |= {cells[0].strip("`") + module for module in re.findall(r"`(\w+)`:", cells[1])}
        elif line.startswith("| `"):
            found.add(folder + cells[0].strip("`"))
    return found


def test_the_layout_names_every_module_and_no_other():
    modules = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py")}
    assert named() == {module for module in modules if not module.endswith("__init__")}


def test_the_layers_are_those_of_the_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    assert LAYOUT.partition("```\n")[2].partition("```")[0].splitlines() == contract["layers"]


def test_the_stages_are_those_of_the_round():
    stages = (PACKAGE / "federation" / "round.py").read_text(encoding="utf-8").split("\n\n")[1].partition('\n"""')[0]
    assert f"```\n{stages}\n```" in PAGE


def member(node: ast.AST) -> tuple[str, str] | None:
    """The name of a field, alias, function or class, and all of it but docstrings, bodies and private members."""
    if isinstance(node, ast.FunctionDef):
        node.body = [ast.Expr(ast.Constant(...))]
        return node.name, ast.unparse(node)
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target), ast.unparse(node)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]), ast.unparse(node)
    if isinstance(node, ast.ClassDef):
        head = ast.ClassDef(node.name, node.bases, node.keywords, [ast.Pass()], node.decorator_list)
        return node.name, ast.unparse(head)
    return None


def members(body: list[ast.stmt]) -> Members:
    found = dict(one for node in body if (one := member(node)) is not None)
    return {name: text for name, text in found.items() if not name.startswith("_")}


def listed() -> Iterator[tuple[str, list[ast.stmt]]]:
    """The listings of the page whose first line names a module, and that module."""
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        if found := re.match(r"# (weft[\w.]+)\n", code):
            yield found[1], ast.parse(code).body


@pytest.mark.parametrize(("module", "body"), list(listed()))
def test_a_listing_is_what_the_module_says(module: str, body: list[ast.stmt]):
    tree = ast.parse((ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in body:
        if not isinstance(node, ast.ClassDef):
            continue
        shown, there = members(node.body), members(classes[node.name].body)
        shortened = any(isinstance(one, ast.Expr) and ast.unparse(one) == "..." for one in node.body)
        assert shown == ({name: there[name] for name in shown if name in there} if shortened else there)
    assert members(body).items() <= members(tree.body).items()


def test_what_the_page_says_of_a_module_is_there():
    referred = re.findall(r"`([\w/]+\.py): (\w+)(?:\.(\w+))?`", " ".join(PAGE.split()))
    assert len(referred) > 50
    texts = {file: (PACKAGE / file).read_text(encoding="utf-8") for file, _, _ in referred}
    for file, name, method in referred:
        assert re.search(rf"^(?:def |class )?{name}\b", texts[file], re.MULTILINE), f"{file}: {name}"
        assert not method or re.search(rf"^    def {method}\b", texts[file], re.MULTILINE), f"{file}: {method}"
    files = set(re.findall(r"`([\w/]+\.py)`", PAGE)) - {"main_sft.py", "main_dpo.py"}  # OpenFedLLM's
    assert {file for file in files if not any((root / file).is_file() for root in (PACKAGE, ROOT))} == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_lines_of_text_are_not_too_long(page: Path):
    code, long = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.lstrip().startswith("```")
        code ^= fence
        if not (code or fence or line.lstrip().startswith("|")) and len(line) > WIDTH:
            long.append(number)
    assert long == []
