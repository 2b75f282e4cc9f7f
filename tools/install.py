"""Make a virtual environment with Weft and what its tests need; the Makefile runs this with the Python it is given.

    python tools/install.py FOLDER [--ends lock|oldest|newest] [--extras dev] [--index URL] [--cuda]

`lock` installs the exact versions of constraints/lock.txt, `oldest` the lower ends of the ranges in pyproject.toml, and
`newest` the newest that the ranges allow. pip's own configuration counts (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf); an
index for PyTorch can be given beside it. What is to come is asked first: a build of PyTorch for CUDA, which is
several gigabytes, is not installed where there is no NVIDIA GPU, unless it is asked for.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints" / "lock.txt"
LOWEST, HIGHEST = (3, 11), (3, 13)
"""The Pythons of the lock."""


def check_python(ends: str) -> None:
    """Stop in one sentence where the Python that runs this is not one that Weft, or the lock, is for."""
    if sys.version_info < LOWEST or (ends == "lock" and sys.version_info[:2] > HIGHEST):
        raise SystemExit(
            f"This is Python {platform.python_version()}, and what is to be installed is for 3.11 to 3.13: name one of "
            "those, as in make PYTHON=python3.11."
        )


def lower_ends(project: dict[str, Any]) -> list[str]:
    """Return `name==version` for the lower end of every range that users install by."""
    extras = [one for name, group in project["optional-dependencies"].items() if name != "dev" for one in group]
    pairs = [re.match(r"([\w.-]+)>=([\w.]+)", one) for one in project["dependencies"] + extras]
    missing = [one for one, pair in zip(project["dependencies"] + extras, pairs, strict=True) if pair is None]
    if missing:
        name = re.split(r"[<>=!~;\[]", missing[0])[0]
        raise SystemExit(f"pyproject.toml gives {name} no lower end: write {name}>=VERSION.")
    return [f"{pair[1]}=={pair[2]}" for pair in pairs if pair is not None]


def cuda_parts(requires: list[str], machine: str) -> list[str]:
    """Return which of a package's requirements are parts of CUDA, on Linux on this kind of processor."""
    parts = []
    for one in requires:
        name, _, marker = one.partition(";")
        elsewhere = "extra ==" in marker or ("platform_machine" in marker and machine not in marker)
        if re.match(r"(nvidia|cuda)-", name) and not elsewhere:
            parts.append(name.strip())
    return parts


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def check_torch(pip: list[str], chosen: list[str]) -> None:
    """Stop in one sentence where PyTorch would come with CUDA and there is no GPU for it."""
    if sys.platform != "linux" or has_gpu():
        return
    words = [*pip, "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", *chosen]
    report = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for found in report["install"]:
        data = found["metadata"]
        if data["name"] == "torch" and cuda_parts(data.get("requires_dist", []), platform.machine()):
            raise SystemExit(
                f"pip would install PyTorch {data['version']} for CUDA, several gigabytes, and this machine has no "
                "NVIDIA GPU: add TORCH_INDEX=URL with the index of PyTorch's CPU builds, which "
                "pytorch.org/get-started/locally names, or CUDA=1 to install it all the same."
            )


def main() -> None:
    """Install."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ends", choices=["lock", "oldest", "newest"], default="lock")
    parser.add_argument("--extras", default="dev")
    parser.add_argument("--index", default="", help="an index of PyTorch's builds, beside pip's own")
    parser.add_argument("--cuda", action="store_true", help="install PyTorch for CUDA also where there is no GPU")
    given = parser.parse_args()
    check_python(given.ends)
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = given.folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(given.folder)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    constraints = LOCK
    if given.ends == "oldest":
        constraints = given.folder / "oldest.txt"
        constraints.write_text("\n".join(lower_ends(project)) + "\n", encoding="utf-8")
    within = [] if given.ends == "newest" else ["--constraint", str(constraints)]
    # pip and what builds Weft are installed first, and Weft is built with them: nothing comes that is not recorded.
    subprocess.run([*pip, "install", "--quiet", "--upgrade", *within, "pip", "setuptools>=77"], check=True)
    index = ["--extra-index-url", given.index] if given.index else []
    torch = [one for one in project["dependencies"] if one.startswith("torch")]
    if not given.cuda:
        check_torch(pip, [*torch, *within, *index])
    newest = ["--upgrade", "--upgrade-strategy", "eager"] if given.ends == "newest" else []
    what = ["--no-build-isolation", "--editable", f"{ROOT}[{given.extras}]"]
    subprocess.run([*pip, "install", "--quiet", *newest, *within, *index, *what], check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None
