"""What pyproject.toml cannot say: the README as it reads on a package index, where no file lies beside it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def page(text: str, repository: str) -> str:
    """Return a README whose links to files and pictures lead into the repository; without one they are names of files.

    The files come with the package: `docs` and `examples` lie in share/doc/weft of the environment.
    """

    def link(found: re.Match[str]) -> str:
        is_picture, words, target = bool(found[1]), found[2], found[3]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        if repository:
            view = "raw" if is_picture else "blob"
            return f"{found[1]}[{words}]({repository.rstrip('/')}/{view}/main/{target})"
        return words if words == f"`{target}`" else f"{words} (`{target}`)"

    return re.sub(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)", link, text)


if __name__ == "__main__":
    from setuptools import setup

    address = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["weft"]["repository"]
    parts = {"Repository": "", "Documentation": "/tree/main/docs", "Changes": "/blob/main/CHANGELOG.md"}
    setup(
        long_description=page((ROOT / "README.md").read_text(encoding="utf-8"), address),
        long_description_content_type="text/markdown",
        project_urls={name: address.rstrip("/") + path for name, path in parts.items()} if address else {},
    )
