"""The files of an adapter that peft wrote, put into a model so that all of them are used and nothing is lacking."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from weft.core.model_types import AdaptedModel, CausalModel
from weft.errors import ConfigError
from weft.models.checkpoint_names import listed
from weft.models.noise import hushed
from weft.models.notes import Note, unsaid
from weft.models.weight_files import headers, read_tensors

PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT")
"""Kinds of adapters, as peft calls them, that stand before a model or in its midst and cannot be merged."""


def _file(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"The adapter in '{folder}' has no adapter_model.safetensors: copy the folder again.")


def read_values(folder: Path, note: Note = unsaid) -> dict[str, Tensor]:
    """Return the tensors of an adapter; ConfigError if there are none, or the file is damaged."""
    file = _file(folder)
    if file.suffix == ".bin":
        note(f"The adapter in '{folder}' is a pickle file (.bin); it is read without running what it can hold.")
    return read_tensors(file)


def value_names(folder: Path) -> list[str]:
    """Return the names of the tensors of an adapter; ConfigError as for `read_values`."""
    return list(headers(_file(folder)))


def put_values(model: AdaptedModel, values: dict[str, Tensor], folder: Path) -> None:
    """Put the values of an adapter into a peft model of its shape.

    Raises:
        ConfigError: some are lacking, left over, or of another shape, as when the adapter is of another base.
    """
    from peft import set_peft_model_state_dict

    try:
        done = set_peft_model_state_dict(model, values)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines() if "size mismatch" in line]
        raise ConfigError(
            f"The adapter in '{folder}' is not of this model ({(lines or [str(error).splitlines()[0]])[0]}): name the "
            'model that it was trained for as "base_model_name_or_path" in its adapter_config.json.'
        ) from None
    own = (getattr(model.base_model, "prefix", "lora_"), ".modules_to_save.default.")
    lacking = [name for name in done.missing_keys if any(part in name for part in own)]
    left = [name for name in done.unexpected_keys if name != "prompt_embeddings"]  # which peft has taken by then
    if lacking or left:
        faults = [f"lacks {listed(lacking)}"] * bool(lacking)
        faults += [f"has {listed(left)}, for which the model has no place"] * bool(left)
        raise ConfigError(
            f"The adapter in '{folder}' does not fit: it {' and '.join(faults)}; name the model that it was trained "
            'for as "base_model_name_or_path" in its adapter_config.json, or copy the adapter again.'
        )


def attach(base: CausalModel, folder: Path, note: Note = unsaid) -> AdaptedModel:
    """Return a model with an adapter that peft wrote, ready to compute or to be merged.

    Raises:
        ConfigError: the adapter is damaged, or not of this model.
    """
    from peft import PeftConfig, get_peft_model

    values = read_values(folder, note)
    with hushed():
        try:
            wanted = PeftConfig.from_pretrained(str(folder))
            wanted.inference_mode = True
            model: AdaptedModel = get_peft_model(base, wanted)
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError) as error:
            raise ConfigError(
                f"The adapter in '{folder}' cannot be put beside its model ({str(error).splitlines()[0]}): name the "
                'model that it was trained for as "base_model_name_or_path" in its adapter_config.json.'
            ) from None
        put_values(model, values, folder)
    model.eval()
    return model
