"""Starting a run from an adapter: of an earlier run, or of a folder that peft wrote."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from weft.config import RunConfig
from weft.core.model_types import AdaptedModel
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.models.adapter_files import PROMPTS, put_values, read_values, value_names
from weft.models.emulator import emulator_of
from weft.models.notes import Note, ignore_note


def starting_adapter(name: str) -> Path | None:
    """Return the folder of the adapter in a run's directory or in a folder; None where there is a whole model."""
    path = Path(name).expanduser()
    if (path / "model" / "config.json").exists():
        return None
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").exists():
            return folder
    return None


def adapter_of(config: RunConfig) -> Path | None:
    """Return the folder of the adapter that a run starts from; None: it starts from a model or from random weights."""
    return None if config.from_scratch else starting_adapter(config.model_name_or_path)


def read_adapter(folder: Path) -> JsonObject:
    """Return peft's configuration of an adapter; ConfigError if it is broken."""
    try:
        settings: JsonObject = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"The adapter in '{folder}' cannot be read ({error}): copy it again.") from None
    if not base:
        raise ConfigError(
            f"The adapter in '{folder}' does not say which model it was trained for: write it into its "
            'adapter_config.json, as "base_model_name_or_path".'
        )
    return {"base": str(base), **settings}


_UNEQUAL = ("rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters", "lora_bias", "use_qalora",
            "trainable_token_indices", "layer_replication", "exclude_modules")  # fmt: skip
"""Settings of peft for LoRAs that a run's configuration cannot describe: several ranks, further trained modules, ..."""


def from_adapter(config: RunConfig) -> RunConfig:
    """Return the configuration with rank, scale and modules of the adapter that the run starts from, if any.

    Raises:
        ConfigError: the adapter is no plain LoRA, or the run trains no LoRA or one of another kind.
    """
    name = config.model_name_or_path
    folder = adapter_of(config)
    if folder is None:
        return config
    settings = read_adapter(folder)
    if settings.get("peft_type") in PROMPTS:
        raise ConfigError(
            f"'{name}' holds a prompt ({settings['peft_type']}), from which no run can start: name its base, "
            f"'{settings['base']}'."
        )
    merge = f"merge it first with `weft export {shlex.quote(name)} --merge --out DIR`, and name DIR"
    if not config.use_peft:
        raise ConfigError(f"'{name}' holds an adapter, not a whole model: add --use_peft to go on with it, or {merge}.")
    if settings.get("peft_type") != "LORA" or any(settings.get(key) for key in _UNEQUAL):
        raise ConfigError(f"The adapter in '{name}' is no LoRA of one rank, so a run cannot continue it: {merge}.")
    some_layers = settings.get("layers_to_transform") is not None and emulator_of(settings["base"]) is None
    custom_init = settings.get("init_lora_weights", True) not in (True, False, "gaussian")
    heads = any(".lora_" not in key for key in value_names(folder))
    if some_layers or custom_init or heads or settings.get("bias", "none") != "none":
        raise ConfigError(
            f"The adapter in '{name}' is not just a LoRA on all layers (it has trained heads, biases or a base of its "
            f"own, or leaves layers out), so a run cannot continue it: {merge}."
        )
    if config.lora_aggregation in ("fedsb", "dual"):
        raise ConfigError(
            f"{config.lora_aggregation} starts from its own factors, not from those in '{name}': {merge}."
        )
    targets = settings.get("target_modules")
    return config.model_copy(
        update={
            "peft_lora_r": settings["r"],
            "peft_lora_alpha": settings["lora_alpha"],
            "peft_lora_target_modules": [targets] if isinstance(targets, str) else sorted(targets or ()),
            "use_rslora": bool(settings.get("use_rslora")),
            "use_dora": bool(settings.get("use_dora")),
        }
    )


def fill(model: AdaptedModel, folder: Path, note: Note = ignore_note) -> None:
    """Copy an adapter's values into a peft model of its shape; a model on the meta device is left as it is.

    Raises:
        ConfigError: the file is damaged, or not of this model.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        put_values(model, read_values(folder, note), folder)
