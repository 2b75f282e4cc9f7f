"""The configuration of a run: one flat set of typed keys, which are the flags' names too.

A run file (YAML) gives the keys, flags override them, `weft.train({...})` takes the same words. Unknown keys are
refused with the nearest known one. This module imports nothing heavy and knows nothing of the parts themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from weft import registry
from weft.errors import ConfigError
from weft.keys import Client, RunConfig

__all__ = ["ALIASES", "VOLATILE", "Client", "RunConfig", "build", "read_file"]

ALIASES = {
    "log_with": "report_to",
    "use_auth_token": "token",
    "lr_scheduler": "lr_scheduler_type",
    "data": "dataset_name",
}
"""Other names of keys: OpenFedLLM's, and short ones."""


VOLATILE = frozenset(
    {
        "output_dir",
        "accept_changed",
        "token_cache",
        "report_to",
        "save_model_freq",
        "save_total_limit",
        "checkpoint_seconds",
        "logging_steps",
        "save_steps",
        "threads",
        "runtime",
        "ray_address",
        "num_actors",
        "silence_timeout",
        "client_resources",
        "endpoint_key",
        "endpoint_timeout",
        "endpoint_retries",
        "endpoint_parallel",
    }
)
"""Keys that may differ when a run is resumed, because no result depends on them."""


def build(values: dict[str, Any]) -> RunConfig:
    """Check the keys and return the typed configuration.

    Raises:
        ConfigError: an unknown key (with the nearest known), a value of the wrong kind, values that exclude each other.
    """
    values = {ALIASES.get(key, key): value for key, value in values.items()}
    known = list(RunConfig.model_fields)
    for key in values:
        if key not in known:
            guess = registry.nearest(key, known)
            meant = f" Did you mean '{guess}'?" if guess else " `weft sft --help` lists all keys."
            raise ConfigError(f"There is no key '{key}'.{meant}")
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        # Where a value may be of several types, pydantic names the type too.
        inside = Client.model_fields.keys()
        where = ".".join(str(p) for i, p in enumerate(first["loc"]) if i == 0 or isinstance(p, int) or p in inside)
        raise ConfigError(f"The value {first['input']!r} of '{where}' cannot be: {first['msg'].lower()}.") from None


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a run file.

    Raises:
        ConfigError: no such file, broken YAML (with its line), or something other than keys and values in it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"There is no run file '{path}' that can be read: check the path after --config.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"The run file '{path}' is not valid YAML{where}: write one `key: value` a line.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"The run file '{path}' holds no keys: write one `key: value` a line.")
    return {str(key): value for key, value in values.items()}
