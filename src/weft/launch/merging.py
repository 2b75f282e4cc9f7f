"""Merging an adapter into its base: one that a run trained, or a folder that peft wrote."""

from __future__ import annotations

import sys
from pathlib import Path

from weft.config import build
from weft.errors import ConfigError
from weft.models.adapter_files import PROMPTS, attach
from weft.models.load import base_model
from weft.models.merge import write_merged
from weft.models.starting import read_adapter, starting_adapter
from weft.models.tokenizer import load_tokenizer


def adapter_folder(name: str) -> Path | None:
    """Return the adapter in a folder that is no run's directory, None where there is none."""
    return None if (Path(name).expanduser() / "config.yaml").exists() else starting_adapter(name)


def merge_folder(folder: Path, dtype: str, out: Path, **more: object) -> None:
    """Write the model that an adapter of peft's and its base are together.

    Args:
        folder: the adapter's.
        dtype: of the merged model.
        out: a folder.
        more: keys of the model: trust_remote_code, ...

    Raises:
        ConfigError: the adapter cannot be merged, or its base is not there.
    """
    kind = read_adapter(folder).get("peft_type")
    if kind in PROMPTS:
        raise ConfigError(
            f"The adapter in '{folder}' is a prompt ({kind}), which stands before a model and cannot be merged into "
            "it: load it by peft."
        )
    keys = {"model_name_or_path": str(folder), "dataset_name": "none", "use_peft": True, "device": "cpu"}
    config = build(keys | {"dtype": "float32"} | more)
    base = base_model(config, full_precision=True, note=_say)
    remote = config.trust_remote_code
    write_merged(attach(base, folder, _say), load_tokenizer(config), dtype, out, trust_remote_code=remote)


def _say(sentence: str) -> None:
    print(f"weft: {sentence}", file=sys.stderr)
