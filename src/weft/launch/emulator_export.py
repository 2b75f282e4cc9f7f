"""Putting the tuned ends of an emulator back into the model that it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weft.config import build
from weft.errors import ConfigError
from weft.launch.run import Run
from weft.models.adapter_files import attach
from weft.models.checkpoint import load_weights
from weft.models.emulator import Emulator, decoder_layers, emulator_of
from weft.models.load import base_model
from weft.models.merge import write_merged
from weft.models.source import model_source
from weft.models.tokenizer import load_tokenizer


def plug_in(run: Run, client: str | None, model: str, out: Path, *, merge: bool, dtype: str) -> None:
    """Write the model with the run's tuned ends, or an adapter for it.

    Args:
        run: a run that trained an emulator.
        client: whose, where each client has its own.
        model: the model that the emulator was made of.
        out: an empty folder.
        merge: of an adapter, write the whole model with it instead.
        dtype: of a whole model.

    Raises:
        ConfigError: the run trained no emulator, or one of a model of another number of layers.
    """
    import torch

    emulator = emulator_of(model_source(run.config.model_name_or_path))
    if emulator is None or run.config.prompt_method is not None:
        raise ConfigError(
            f"The run '{run.path}' did not tune an emulator, so it has no ends to put back: leave out --plug_in, "
            "or make an emulator first by `weft emulate`."
        )
    config = build({"model_name_or_path": model, "dataset_name": "none", "dtype": "float32", "device": "cpu"})
    full = base_model(config)
    count = len(decoder_layers(full)[2])
    if count != emulator.layers:
        raise ConfigError(
            f"'{model}' has {count} layers, and the emulator is of a model of {emulator.layers}: name that one "
            f"('{emulator.full_model}')."
        )
    weights = run.weights(client)
    if run.config.use_peft:
        _rename_adapter(weights, emulator, model, out)
        if not merge:
            return
        with_adapter = attach(full, out)
        for path in out.iterdir():
            path.unlink()
        write_merged(with_adapter, load_tokenizer(config), dtype, out)
        return
    _put_ends(full, weights, emulator)
    full.to(getattr(torch, dtype)).save_pretrained(out)
    load_tokenizer(config).save_pretrained(out)


def _put_ends(full: Any, weights: Path, emulator: Emulator) -> None:
    """Copy the trained layers into the model."""
    import torch

    trained_model = load_weights(str(weights), dtype=torch.float32)
    ours, theirs = decoder_layers(full)[2], decoder_layers(trained_model)[2]
    for place in emulator.trained:
        ours[emulator.layer_numbers[place]].load_state_dict(theirs[place].state_dict())


def _rename_adapter(weights: Path, emulator: Emulator, model: str, out: Path) -> None:
    """Write the adapter under the names that its layers have in the model."""
    from safetensors.torch import load_file, save_file

    values = load_file(weights / "adapter_model.safetensors")
    save_file(
        {emulator.full_name(name): value for name, value in values.items()},
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((weights / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = model
    config["layers_to_transform"] = [emulator.layer_numbers[place] for place in emulator.trained]
    for pattern in ("rank_pattern", "alpha_pattern"):
        config[pattern] = {emulator.full_name(f"{name}.").rstrip("."): n for name, n in config[pattern].items()}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
