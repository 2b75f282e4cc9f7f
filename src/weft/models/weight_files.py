"""Reading weight files without running code in them: safetensors, and pickles (.bin) that hold tensors alone."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch

from weft.errors import ConfigError
from weft.models.checkpoint_names import TensorInfo


def read_tensors(file: Path, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Return the named tensors of a weight file, or all, on the CPU; ConfigError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".bin":
        return _unpickled(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in (opened.keys() if names is None else names)}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"The weights '{file}' are damaged ({str(error).strip()}): copy the file again.") from None


def headers(file: Path) -> dict[str, TensorInfo]:
    """Return names, shapes and formats of the tensors in a file; ConfigError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".bin":
        return {
            name: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in _unpickled(file, values=False).items()
        }
    formats = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: TensorInfo(tuple(part.get_shape()), formats.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"The weights '{file}' are damaged ({str(error).strip()}): copy the file again.") from None


def _unpickled(file: Path, *, values: bool = True) -> dict[str, torch.Tensor]:
    """Read the tensors of a pickle without running its code; ConfigError if it holds anything else."""
    # A trust boundary: `weights_only` restricts unpickling to tensors and plain containers.
    try:
        content = torch.load(file, map_location="cpu" if values else "meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ConfigError(
            f"The weights '{file}' are damaged, or hold more than tensors ({str(error).splitlines()[0][:100]}): copy "
            "the file again, or have it saved as safetensors."
        ) from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ConfigError(
            f"'{file}' is no dictionary of names and tensors, but a training program's own checkpoint: save the model "
            "by `model.save_pretrained(FOLDER)`."
        )
    return content
