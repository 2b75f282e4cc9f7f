"""A page or a part of one as an object: a notebook shows it below its cell, and it can be saved."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from weft.core.files import write_atomic


class View:
    """A page that a notebook shows in a frame of its own, which can neither read nor change the notebook."""

    def __init__(self, name: str, page: bytes, height: int = 640) -> None:
        """Take a page.

        Args:
            name: what it is, where only text can be shown.
            page: the whole file.
            height: of the frame, in pixels.
        """
        self.page, self._name, self._height = page, name, height

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, and return its path."""
        write_atomic(Path(path), self.page)
        return Path(path)

    def __repr__(self) -> str:
        return f"<{self._name}: {len(self.page):,} bytes of HTML; .save(PATH) writes it>"

    def _repr_html_(self) -> str:
        source = escape(self.page.decode("utf-8"))
        style = f"width:100%;height:{self._height}px;border:1px solid #8884;border-radius:6px"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{source}"></iframe>'
