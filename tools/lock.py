"""Remake constraints/lock.txt: one exact version of everything that an extra may need, and check that it can be had.

Run by `make lock`. The resolver is uv, in an environment of its own. It asks the index that pip would ask
(PIP_INDEX_URL), writes one file for every Python and system below, and then looks for wheels for each of them.
What only CUDA builds of PyTorch need is left out: it comes with such a build, in the versions that it names.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints" / "lock.txt"
ENVIRONMENT = ROOT / ".venv-lock"
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
ONLY_AS_SOURCE = ("pyhocon", "rouge-score", "sqlitedict", "word2number")
"""Plain Python that has no wheel on the index."""
APART = ("presidio", "vllm")
"""Extras outside the lock: spaCy, which Presidio needs, is compiled and large; vLLM asks for an older transformers."""
ELSEWHERE = re.compile(r"^(nvidia-|cuda-|triton==)|; .*sys_platform == '(win32|emscripten)'")
"""What comes with CUDA builds of PyTorch, and what other systems need."""
HEADER = """\
# Made by `make lock`, not by hand: what `make demo` and `make test` install on Python 3.11 to 3.13, Linux and macOS 14.
# `pip install -c constraints/lock.txt 'weft[...]'` gives the same versions elsewhere.
"""


def uv(*words: str) -> str:
    """Return what uv prints; its complaints go where ours go."""
    env = dict(os.environ)
    if "PIP_INDEX_URL" in env:
        env.setdefault("UV_DEFAULT_INDEX", env["PIP_INDEX_URL"])
    env.setdefault("MACOSX_DEPLOYMENT_TARGET", "14.0")  # the oldest that PyTorch is built for
    command = [str(ENVIRONMENT / "bin" / "uv"), "--quiet", *words]
    return subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def compiled(*words: str, text: str = "pyproject.toml") -> list[str]:
    """Return the lines of a resolution."""
    out = uv("pip", "compile", text, *words, "--no-header", "--no-annotate")
    return [line for line in out.splitlines() if line.strip()]


def extras_of(project: Path) -> list[str]:
    """Return the names of the extras in the lock."""
    groups = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return [name for name in groups if name not in APART]


def main() -> int:
    """Write the lock and check it."""
    if not (ENVIRONMENT / "bin" / "uv").exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    extras = [word for name in extras_of(ROOT / "pyproject.toml") for word in ("--extra", name)]
    everything = compiled(
        *extras, "--constraint", str(LOCK.parent / "held.txt"), "--universal", "--python-version", PYTHONS[0]
    )
    kept = [line for line in everything if not ELSEWHERE.search(line)]
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(HEADER + "\n".join(kept) + "\n", encoding="utf-8")
    source = [word for name in ONLY_AS_SOURCE for word in ("--no-binary", name)]
    for python, system in itertools.product(PYTHONS, SYSTEMS):
        where = ("--python-version", python, "--python-platform", system)
        found = compiled(*extras, *where, "--only-binary", ":all:", *source, "--constraint", str(LOCK))
        print(f"Python {python} on {system}: {len([line for line in found if not ELSEWHERE.search(line)])} packages")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:  # uv has said why
        sys.exit(error.returncode)
