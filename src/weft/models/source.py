"""Locating a model, and turning errors of its loaders into sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from weft.errors import ConfigError
from weft.models.starting import read_adapter, starting_adapter


@contextlib.contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """Turn an exception of a loader inside the context into a ConfigError of one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise ConfigError(
                f"'{name}' comes with its own Python code, which is not run by default: read it, and add "
                "--trust_remote_code."
            ) from None
        kind = "folder" if Path(name).is_dir() else "model"
        raise ConfigError(
            f"The {kind} '{name}' cannot be loaded ({lines[0].strip().rstrip('.')}): "
            "give a hub name that is reachable, or a folder with config.json and weights."
        ) from None


def model_source(name: str) -> str:
    """Return a model's folder or hub name: a finished run's `model/`, the base of an adapter, else the name itself.

    Raises:
        ConfigError: the path does not exist.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")):
            raise ConfigError(f"There is no model folder '{name}': check the path, or give a hub name.")
        return name
    if (path / "model" / "config.json").exists():
        return str(path / "model")
    adapter = starting_adapter(name)
    if adapter is None:
        return str(path)
    base = read_adapter(adapter)["base"]
    if base.startswith((".", "/", "~")) and not Path(base).expanduser().exists():
        raise ConfigError(
            f"The adapter in '{name}' was trained for the model '{base}', which is not there: write where it is into "
            f"'{adapter / 'adapter_config.json'}', as \"base_model_name_or_path\"."
        )
    return model_source(base)
