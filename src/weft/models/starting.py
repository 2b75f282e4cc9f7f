"""Going on from an adapter: a run that trained one, or a folder that peft wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weft.config import RunConfig
from weft.errors import ConfigError


def starting_adapter(name: str) -> Path | None:
    """Return the folder of the adapter that a run, or a folder, of this name holds; None where it holds a model."""
    path = Path(name).expanduser()
    if (path / "model" / "config.json").exists():
        return None
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").exists():
            return folder
    return None


def read_adapter(folder: Path) -> dict[str, Any]:
    """Return peft's configuration of an adapter; ConfigError if it is broken."""
    try:
        found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return {"base": str(found["base_model_name_or_path"]), **found}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"The adapter in '{folder}' cannot be read ({error}): copy it again.") from None


def from_adapter(config: RunConfig) -> RunConfig:
    """Return the configuration with the rank, scale and places of the adapter that it begins from, if it does.

    Raises:
        ConfigError: the adapter is no plain LoRA, or the run trains no LoRA, or one of another shape.
    """
    name = config.model_name_or_path
    folder = None if config.from_scratch else starting_adapter(name)
    if folder is None:
        return config
    merge = f"merge it first with `weft export {name} --merge --out DIR`, and name DIR"
    if not config.use_peft:
        raise ConfigError(f"'{name}' holds an adapter, not a whole model: add --use_peft to go on with it, or {merge}.")
    found = read_adapter(folder)
    if found.get("peft_type") != "LORA" or found.get("rank_pattern") or found.get("modules_to_save"):
        raise ConfigError(f"The adapter in '{name}' is no LoRA of one rank, which a run could go on with: {merge}.")
    if config.lora_aggregation in ("fedsb", "dual"):
        raise ConfigError(
            f"{config.lora_aggregation} begins from factors of its own, and '{name}' holds some: {merge}."
        )
    targets = found.get("target_modules")
    return config.model_copy(
        update={
            "peft_lora_r": found["r"],
            "peft_lora_alpha": found["lora_alpha"],
            "peft_lora_target_modules": [targets] if isinstance(targets, str) else sorted(targets or ()),
            "use_rslora": bool(found.get("use_rslora")),
            "use_dora": bool(found.get("use_dora")),
        }
    )


def fill(model: Any, folder: Path) -> None:
    """Put an adapter's values into a peft model of its shape; one without values stays so.

    Raises:
        ConfigError: the file is broken, or of another shape.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if any(parameter.is_meta for parameter in model.parameters()):
        return
    try:
        done = set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"The adapter in '{folder}' cannot be loaded ({str(error).splitlines()[0]}).") from None
    if done is not None and done.unexpected_keys:
        raise ConfigError(f"The adapter in '{folder}' has parts that the model has not: {done.unexpected_keys[0]}.")
