"""The units and the container file of examples/deploy: they are valid, and their commands are those that there are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from weft import registry

DEPLOY = ROOT / "examples" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def commands(text: str) -> list[list[str]]:
    """The words of every `weft ...` command of a file, comments included."""
    found = re.findall(r"(?:/bin/weft|\bweft) ((?:server|client) .+)", text)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    copy = tmp_path / unit.name
    # It looks for the program; and a unit of a name that does not exist must be refused (the control).
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/weft/bin/weft", sys.executable), encoding="utf-8")
    run = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/weft/bin/weft", "/no/weft"), encoding="utf-8")
    run = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert "is not executable" in run.stderr


@pytest.mark.parametrize("file", [*UNITS, DEPLOY / "Containerfile"], ids=lambda file: file.name)
def test_the_commands_are_those_of_weft(file: Path):
    from weft.cli import main

    lines = commands(file.read_text(encoding="utf-8"))
    assert len(lines) >= 2
    for words in lines:
        assert words[0] in registry.COMMANDS
        assert words[1] in ("start", "check")
        # The kit of the file is not there, which is what they say, in one sentence; a wrong flag ends otherwise.
        assert main(words) != 0


def test_the_container_installs_what_the_package_has():
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    extras = re.findall(r"/src\[(\w+)\]", text)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert extras == ["nvflare"]
    assert all(f"\n{extra} = [" in project for extra in extras)
    assert (ROOT / re.findall(r"-c /src/(\S+)", text)[0]).is_file()
