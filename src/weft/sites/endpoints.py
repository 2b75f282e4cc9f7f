"""The endpoints that a server of sites may ask: whoever submits a run chooses neither an address nor a variable.

A run names an endpoint and the environment variable of its API key. At a server they come from another person, who
could have any variable of the server's environment sent to any address. The server's administrator lists both instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from weft.config import read_yaml
from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject

FILE = "endpoints.yaml"
"""File in a server's kit: for each endpoint that runs may name, the environment variable of its key, or null."""
NO_KEY = "WEFT_NO_KEY"
"""The variable of an endpoint without a key; never set."""


def at_server(keys: Mapping[str, object], file: Path | None) -> JsonObject:
    """Return the keys of a run with the server's own variable for the key of its endpoint.

    Args:
        keys: the run's keys as they were submitted.
        file: the list of endpoints; None: there is none.

    Raises:
        ConfigError: the run names an endpoint that is not listed, or the list cannot be read.
    """
    url = keys.get("endpoint")
    if url is None:
        return dict(keys)
    listed = _read(file) if file is not None and file.is_file() else {}
    if not isinstance(url, str) or url not in listed:
        raise ConfigError(
            f"The run asks a model behind an endpoint, which the server asks too, and its administrator has not listed "
            f"the address: add it to '{FILE}' in the server's kit, as ADDRESS: NAME_OF_THE_KEYS_VARIABLE or "
            "ADDRESS: null."
        )
    return {**keys, "endpoint_key": listed[url] or NO_KEY}


def write(file: Path, url: str, key: str) -> None:
    """List one endpoint, and the environment variable of its key."""
    write_atomic(file, yaml.safe_dump({url: key}).encode())


def _read(file: Path) -> dict[str, str | None]:
    listed = read_yaml(file, f"'{file}'")[1] or {}
    if not isinstance(listed, dict) or not all(
        isinstance(url, str) and (key is None or isinstance(key, str)) for url, key in listed.items()
    ):
        raise ConfigError(f"'{file}' is no list of endpoints: write `ADDRESS: VARIABLE`, one a line.")
    return listed
