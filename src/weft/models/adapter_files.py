"""Loading an adapter that peft wrote: every tensor of the file is used, and none of the model's is missing."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from weft.core.model_types import AdaptedModel, CausalModel
from weft.errors import ConfigError
from weft.models.checkpoint_names import join_names
from weft.models.noise import quiet_libraries
from weft.models.notes import Note, ignore_note
from weft.models.quantised import without_probing
from weft.models.weight_files import headers, read_tensors

PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT")
"""peft's names of the adapters that are prompts or lie between layers: they cannot be merged into weights."""


def _file(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"The adapter in '{folder}' has no adapter_model.safetensors: copy the folder again.")


def read_values(folder: Path, note: Note = ignore_note) -> dict[str, Tensor]:
    """Return the tensors of an adapter; ConfigError if there are none, or the file is damaged."""
    file = _file(folder)
    if file.suffix == ".bin":
        note(f"The adapter in '{folder}' is a pickle file (.bin); it is read without running any code in it.")
    return read_tensors(file)


def value_names(folder: Path) -> list[str]:
    """Return the names of the tensors of an adapter; ConfigError as for `read_values`."""
    return list(headers(_file(folder)))


def put_values(model: AdaptedModel, values: dict[str, Tensor], folder: Path) -> None:
    """Copy the values of an adapter into a peft model of the same shape.

    Raises:
        ConfigError: values are missing, unexpected or of another shape, as when the adapter belongs to another base.
    """
    from peft import set_peft_model_state_dict

    try:
        report = set_peft_model_state_dict(model, values)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines() if "size mismatch" in line]
        raise ConfigError(
            f"The adapter in '{folder}' is not of this model ({(lines or [str(error).splitlines()[0]])[0]}): name the "
            'model that it was trained for as "base_model_name_or_path" in its adapter_config.json.'
        ) from None
    adapter_names = (getattr(model.base_model, "prefix", "lora_"), ".modules_to_save.default.")
    # peft reports every weight of the frozen base as missing; only the adapter's own names count.
    missing = [name for name in report.missing_keys if any(part in name for part in adapter_names)]
    unexpected = [name for name in report.unexpected_keys if name != "prompt_embeddings"]  # peft has loaded it by then
    if missing or unexpected:
        faults = [f"lacks {join_names(missing)}"] * bool(missing)
        faults += [f"has {join_names(unexpected)}, for which the model has no place"] * bool(unexpected)
        raise ConfigError(
            f"The adapter in '{folder}' does not fit: it {' and '.join(faults)}; name the model that it was trained "
            'for as "base_model_name_or_path" in its adapter_config.json, or copy the adapter again.'
        )


@without_probing()
def attach(base: CausalModel, folder: Path, note: Note = ignore_note) -> AdaptedModel:
    """Return a model with an adapter that peft wrote, in evaluation mode.

    Raises:
        ConfigError: the adapter is damaged, or not of this model.
    """
    from peft import PeftConfig, get_peft_model

    values = read_values(folder, note)
    with quiet_libraries():
        try:
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            model: AdaptedModel = get_peft_model(base, config)
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError) as error:
            raise ConfigError(
                f"The adapter in '{folder}' cannot be put beside its model ({str(error).splitlines()[0]}): name the "
                'model that it was trained for as "base_model_name_or_path" in its adapter_config.json.'
            ) from None
        put_values(model, values, folder)
    model.eval()
    return model
