"""Parts in files, in a run of sites: no code travels, so each party takes its own file of the content that is named.

What a run says of such a part is the file's name without a folder, the name in it, and the SHA-256 of its content
(`kinds.with_digests`). The server looks for that content in the folder `parts` of its kit, a site among the files that
its site.yaml lists by their SHA-256. What is found is loaded only if it still has that content.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weft import kinds, plugins
from weft.config import RunConfig, build
from weft.errors import ConfigError
from weft.plugins import PartFile
from weft.sites.run_keys import FROM_RUN

FOLDER = "parts"
"""Of a server's kit: the files that its administrator lets runs use."""


def to_send(config: RunConfig) -> RunConfig:
    """Return a run as it is submitted: its parts' files by name and content; ConfigError where one cannot be read."""
    keys = kinds.with_digests(config.model_dump())
    return build(kinds.with_files(keys, lambda file: replace(file, path=os.path.basename(file.path))))


def at_server(keys: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return the keys of a run with the server's own files in place of those that it names.

    Args:
        keys: as they were submitted.
        folder: holds the files that may be used; None: none may.

    Raises:
        ConfigError: a part whose file is not there.
    """
    there: dict[str, Path] = {}
    if folder is not None and any(True for _ in kinds.files_of(keys)):
        there = {plugins.digest_of(path.read_bytes()): path for path in sorted(folder.glob("*.py")) if path.is_file()}

    def own(file: PartFile) -> PartFile:
        if file.digest not in there:
            content = f" of the SHA-256 {file.digest}" if file.digest else ""
            raise ConfigError(
                f"The run names a part in a file, '{file.public_name}', and no code travels: its file{content} is not "
                f"in the folder '{FOLDER}' of the server's kit, where its administrator puts what runs may use."
            )
        return replace(file, path=str(there[file.digest]))

    return kinds.with_files(keys, own)


def refusal(run: Mapping[str, Any], accepted: Mapping[str, str]) -> str | None:
    """Return why a site does not take the parts of a run that lie in files; None: it takes them, or there are none.

    Args:
        run: its keys, as they were sent.
        accepted: the site's own files, and the SHA-256 of each.
    """
    for key, file in kinds.files_of(run):
        if key in FROM_RUN and file.digest not in accepted.values():
            content = f"of the SHA-256 {file.digest[:16]}..." if file.digest else "of a content that it does not name"
            return (
                f"the run names code of its own for its {kinds.PARTS[key].word} ('{file.public_name}', {content}), and "
                "no code travels: this site does not list that file under accept: parts"
            )
    return None


def at_site(run: Mapping[str, Any], accepted: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys of a run with the site's own files in place of those that it names; all of them are accepted."""
    own = {digest: path for path, digest in accepted.items()}
    return kinds.with_files(run, lambda file: replace(file, path=own[file.digest]))
