"""Parts in files, in a run of sites: no code travels, so each party loads its own file with the same content.

A run names such a part by the file's name without a folder, the name in it, and the SHA-256 of its content
(`kinds.with_digests`). The server looks for a file of that content in the folder `parts` of its kit, a site among the
files that its site.yaml lists by their SHA-256. The content is checked again when the file is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from weft import kinds, plugins
from weft.config import RunConfig, build
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.plugins import PartFile
from weft.sites.run_keys import FROM_RUN

FOLDER = "parts"
"""Folder in a server's kit with the files whose parts runs may use."""


def to_send(config: RunConfig) -> RunConfig:
    """Return a run as it is submitted: files of parts by name and SHA-256; ConfigError if one cannot be read."""
    keys = kinds.with_digests(config.model_dump())
    return build(kinds.with_files(keys, lambda file: replace(file, path=os.path.basename(file.path))))


def at_server(keys: Mapping[str, object], folder: Path | None) -> JsonObject:
    """Return the keys of a run with the server's files in place of those that the run names.

    Args:
        keys: the run's keys as they were submitted.
        folder: holds the files that may be used; None: none may.

    Raises:
        ConfigError: no file in `folder` has the content of a part's file.
    """
    paths: dict[str, Path] = {}  # by SHA-256
    if folder is not None and any(True for _ in kinds.files_of(keys)):
        paths = {plugins.digest_of(path.read_bytes()): path for path in sorted(folder.glob("*.py")) if path.is_file()}

    def local(file: PartFile) -> PartFile:
        if file.digest not in paths:
            content = f" of the SHA-256 {file.digest}" if file.digest else ""
            raise ConfigError(
                f"The run names a part in a file, '{file.public_name}', and no code travels: its file{content} is not "
                f"in the folder '{FOLDER}' of the server's kit, where its administrator puts what runs may use."
            )
        return replace(file, path=str(paths[file.digest]))

    return kinds.with_files(keys, local)


def refusal(run: Mapping[str, object], accepted: Mapping[str, str]) -> str | None:
    """Return the reason to refuse the parts of a run that are in files; None: the site accepts them, or there are none.

    Args:
        run: the run's keys as they were sent.
        accepted: paths of the site's own files, and the SHA-256 of each.
    """
    for key, file in kinds.files_of(run):
        if key in FROM_RUN and file.digest not in accepted.values():
            content = f"of the SHA-256 {file.digest[:16]}..." if file.digest else "of a content that it does not name"
            return (
                f"the run names code of its own for its {kinds.PARTS[key].word} ('{file.public_name}', {content}), and "
                "no code travels: this site does not list that file under accept: parts"
            )
    return None


def at_site(run: Mapping[str, object], accepted: Mapping[str, str]) -> JsonObject:
    """Return the keys of an accepted run with the site's own files in place of those that the run names."""
    paths = {digest: path for path, digest in accepted.items()}
    return kinds.with_files(run, lambda file: replace(file, path=paths[file.digest]))
