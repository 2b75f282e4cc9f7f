"""What is built: a wheel and a source distribution that hold what the README names, and say what they are."""

from __future__ import annotations

import email
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
NAMED = {target for target in LINK.findall(README) if ":" not in target}
NAMED |= set(re.findall(r"examples/\w+\.\w+", README))


def page(text: str, repository: str) -> str:
    shown: str = runpy.run_path(str(ROOT / "setup.py"), run_name="read")["page"](text, repository)
    return shown


def test_links_of_the_readme_work_where_no_file_lies_beside_it():
    assert len(NAMED) > 10
    assert all((ROOT / name).is_file() for name in NAMED)
    assert [target for target in LINK.findall(page(README, "")) if ":" not in target] == []
    shown = LINK.findall(page(README, "https://example.org/weft/"))
    assert "https://example.org/weft/blob/main/docs/server.md" in shown
    assert [target for target in shown if not target.startswith("https://")] == []
    assert page("![A](docs/a.png)", "https://example.org/weft") == "![A](https://example.org/weft/raw/main/docs/a.png)"
    assert page("![A](docs/a.png)", "") == "A (`docs/a.png`)"
    assert page("[Server](docs/server.md), [here](#now)", "") == "Server (`docs/server.md`), [here](#now)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `python -m build` makes of the repository."""
    pytest.importorskip("build")
    work = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "output", "demo-run")
    shutil.copytree(ROOT, work / "weft", ignore=ignored)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work / "dist"), str(work / "weft")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return work / "dist"


def metadata(built: Path) -> Message:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.mark.slow
def test_the_wheel_and_the_source_hold_what_the_readme_names(built: Path):
    (wheel,) = built.glob("*.whl")
    (source,) = built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
    with tarfile.open(source) as archive:
        unpacked = {name.partition("/")[2] for name in archive.getnames()}
    for name in NAMED:
        assert any(one.endswith(f"/share/doc/weft/{name}") for one in inside), name
        assert name in unpacked
    assert "weft/py.typed" in inside
    assert not [name for name in inside if name.startswith(("tests/", "tools/"))]
    assert {"constraints/lock.txt", "tools/install.py", "tests/conftest.py", "Makefile"} <= unpacked


@pytest.mark.slow
def test_the_metadata_of_the_package_is_that_of_the_project(built: Path):
    said = metadata(built)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["Author"] == "The Weft authors"
    assert said["License-Expression"] == "Apache-2.0"
    assert "federated learning" in said["Keywords"]
    assert len(said.get_all("Classifier") or []) == len(project["classifiers"])
    assert said["Description-Content-Type"] == "text/markdown"
    text = said.get_payload()
    assert isinstance(text, str)
    assert text.startswith("# Weft")
    assert [target for target in LINK.findall(text) if ":" not in target] == []
