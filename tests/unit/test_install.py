"""How it is installed: exact versions that fit the ranges, and no CUDA where nobody asked for it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.paths import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLACES = list(
    itertools.product(("3.11", "3.12", "3.13"), (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")))
)
NEEDS_CUDA = [
    'nvidia-cublas==13.1.1.3; platform_system == "Linux"',
    'cuda-bindings<14,>=13.0.3; platform_system == "Linux" and platform_machine == "x86_64"',
    'nvidia-extra==1; extra == "more"',
    "sympy>=1.13.3",
]


def tool(name: str) -> ModuleType:
    """Return a program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install() -> ModuleType:
    return tool("install")


def pins(python: str, system: str, machine: str) -> dict[str, str]:
    """Return name -> version of the lock in one place; every line is one pin, and none has two versions."""
    here = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": system}
    here |= {"platform_machine": machine, "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system]}
    found: dict[str, str] = {}
    for line in (ROOT / "constraints" / "lock.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        one = Requirement(line)
        if one.marker is None or one.marker.evaluate(here):
            (pin,) = one.specifier
            assert pin.operator == "=="
            assert found.setdefault(canonicalize_name(one.name), pin.version) == pin.version, one.name
    return found


@pytest.mark.parametrize(("python", "place"), PLACES)
def test_the_lock_has_a_version_in_every_range_and_none_of_cuda(python: str, place: tuple[str, str]):
    found = pins(python, *place)
    here = {"sys_platform": place[0]}
    groups = PROJECT["optional-dependencies"]
    wanted = [Requirement(one) for name in groups if name not in tool("lock").APART for one in groups[name]]
    for one in wanted + [Requirement(one) for one in PROJECT["dependencies"]]:
        if one.marker is not None and not one.marker.evaluate(here):
            continue
        assert one.specifier.contains(found[canonicalize_name(one.name)]), one
    assert len(found) > 100
    assert not [name for name in found if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_every_range_has_two_ends(install: ModuleType):
    extras = [one for name, group in PROJECT["optional-dependencies"].items() if name != "dev" for one in group]
    for one in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert {part.operator for part in one.specifier} == {">=", "<"}, one
    ends = dict(one.split("==") for one in install.lower_ends(PROJECT))
    assert len(ends) == len({Requirement(one).name for one in [*PROJECT["dependencies"], *extras]})
    assert all(Requirement(f"{name}>={version}").specifier.contains(version) for name, version in ends.items())
    with pytest.raises(SystemExit, match="rich no lower end: write rich>=VERSION"):
        install.lower_ends({"dependencies": ["rich<16"], "optional-dependencies": {}})


def test_cuda_parts_of_pytorch_are_found_by_machine(install: ModuleType):
    assert install.cuda_parts(NEEDS_CUDA, "x86_64") == ["nvidia-cublas==13.1.1.3", "cuda-bindings<14,>=13.0.3"]
    assert install.cuda_parts(NEEDS_CUDA, "aarch64") == ["nvidia-cublas==13.1.1.3"]
    assert install.cuda_parts(["sympy>=1.13.3"], "x86_64") == []


@pytest.mark.parametrize(
    ("system", "gpu", "requires", "stops"),
    [
        ("linux", False, NEEDS_CUDA, True),
        ("linux", False, ["sympy>=1.13.3"], False),
        ("linux", True, NEEDS_CUDA, False),
        ("darwin", False, NEEDS_CUDA, False),
    ],
)
def test_pytorch_for_cuda_without_a_gpu_stops_the_installation(
    install: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    system: str,
    gpu: bool,
    requires: list[str],
    stops: bool,
):
    report = {"install": [{"metadata": {"name": "torch", "version": "2.13.0", "requires_dist": requires}}]}
    pip = tmp_path / "pip.py"
    pip.write_text(f"print({json.dumps(json.dumps(report))})\n")
    monkeypatch.setattr(install, "has_gpu", lambda: gpu)
    monkeypatch.setattr(install.sys, "platform", system)
    if stops:
        with pytest.raises(SystemExit, match=r"no NVIDIA GPU: add TORCH_INDEX=URL .* or CUDA=1"):
            install.check_torch([sys.executable, str(pip)], ["torch"])
    else:
        install.check_torch([sys.executable, str(pip)], ["torch"])


def test_torch_index_and_cuda_given_to_make_reach_the_installer():
    if shutil.which("make") is None:
        pytest.skip("no make")
    words = ["make", "--dry-run", "--always-make", "demo", "TORCH_INDEX=https://example.org/cpu", "CUDA=1"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tools/install.py --index https://example.org/cpu --cuda .venv" in said


def test_another_python_is_refused_in_a_sentence(install: ModuleType, monkeypatch: pytest.MonkeyPatch):
    install.check_python("lock")
    for version, ends in (((3, 10, 2), "newest"), ((3, 14, 0), "lock")):
        monkeypatch.setattr(install.sys, "version_info", version)
        with pytest.raises(SystemExit, match=r"make PYTHON=python3\.11"):
            install.check_python(ends)
    install.check_python("newest")
