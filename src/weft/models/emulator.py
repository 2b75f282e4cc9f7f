"""Offsite tuning: clients train the first and last layers of a model with fewer layers, the emulator, and the trained
layers are put back into the full model (Xiao et al. 2023, arXiv 2302.04870).

An emulator is a folder that loads as any model; its file `emulator.json` names the full model, the layers that the
emulator has of it, and the number of layers at either end that are trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from weft.core.lowrank import LAYER
from weft.core.model_types import CausalModel
from weft.errors import ConfigError

FILE = "emulator.json"
_FIELDS = {"of": "full_model", "kept": "layer_numbers"}
"""Keys of the file whose fields have another name."""


@dataclass(frozen=True)
class Emulator:
    """Which layers of which model an emulator has."""

    full_model: str
    """Name or folder of the full model."""
    layers: int
    """Number of its layers."""
    layer_numbers: list[int]
    """Numbers of the layers that the emulator has, ascending."""
    ends: int
    """Number of layers at the beginning, and as many at the end, that are trained."""

    @property
    def trained(self) -> list[int]:
        """Numbers, in the emulator, of the layers that are trained."""
        return [*range(self.ends), *range(len(self.layer_numbers) - self.ends, len(self.layer_numbers))]

    def full_name(self, name: str) -> str:
        """Return the name in the full model of a parameter of the emulator."""
        return LAYER.sub(lambda match: str(self.layer_numbers[int(match[1])]), name, count=1)


def emulator_of(folder: str | Path) -> Emulator | None:
    """Read the `emulator.json` of a folder; None where there is none, ConfigError if it is broken."""
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Emulator(**{_FIELDS.get(key, key): value for key, value in content.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"'{path}' cannot be read ({error}): make the emulator again by `weft emulate`.") from None


def choose_layers(layers: int, keep: int, ends: int) -> list[int]:
    """Return the numbers of the `keep` layers of an emulator: the ends, and evenly spaced ones between them.

    Raises:
        ConfigError: `keep` exceeds the model's layers, or is too small for both ends, or the model is.
    """
    if 2 * ends > layers:
        most = layers // 2
        remedy = f"write --ends {most}, or fewer" if most else "take a model of two layers or more"
        raise ConfigError(
            f"An emulator with {ends} layers trained at either end cannot be made of a model of {layers}, which has "
            f"fewer than {2 * ends}: {remedy}."
        )
    if not 2 * ends <= keep <= layers:
        raise ConfigError(
            f"An emulator of {keep} layers with {ends} trained at either end cannot be made of {layers}: write "
            f"--keep_layers {2 * ends} to {layers}."
        )
    middle = keep - 2 * ends
    between = torch.linspace(ends, layers - ends - 1, middle).round().long().tolist() if middle != 1 else [layers // 2]
    return [*range(ends), *between, *range(layers - ends, layers)]


def decoder_layers(model: CausalModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the module that holds the decoder's layers, their name in it, and the layers; ConfigError if not found."""
    count = model.config.get_text_config().num_hidden_layers
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return parent, name, child
    raise ConfigError(f"The layers of a {type(model).__name__} are not found, so none can be left out.")


def keep_layers(model: CausalModel, numbers: Sequence[int]) -> None:
    """Remove all decoder layers of a model but these, in place."""
    parent, name, layers = decoder_layers(model)
    setattr(parent, name, nn.ModuleList(layers[place] for place in numbers))
    for place, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # the layer's place in a key-value cache
                module.layer_idx = place
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[place] for place in numbers]
    config.num_hidden_layers = len(numbers)


@contextmanager
def only_layers(model: CausalModel, numbers: Sequence[int] | None) -> Iterator[None]:
    """Compute with these decoder layers alone inside the context; None: with all."""
    if numbers is None:
        yield
        return
    parent, name, layers = decoder_layers(model)
    # `keep_layers` renumbers modules and changes the configuration: remember what is put back.
    places = {module: module.layer_idx for module in layers.modules() if hasattr(module, "layer_idx")}
    config = model.config.get_text_config()
    types = list(config.layer_types) if getattr(config, "layer_types", None) else None
    keep_layers(model, numbers)
    try:
        yield
    finally:
        setattr(parent, name, layers)
        for module, place in places.items():
            module.layer_idx = place
        config.num_hidden_layers = len(layers)
        if types is not None:
            config.layer_types = types


def train_ends(model: CausalModel, emulator: Emulator) -> None:
    """Freeze a model but for the layers at its ends."""
    model.requires_grad_(False)
    layers = decoder_layers(model)[2]
    for place in emulator.trained:
        layers[place].requires_grad_(True)


def write(folder: Path, emulator: Emulator) -> None:
    """Write `emulator.json` into an emulator's folder."""
    keys = {field: key for key, field in _FIELDS.items()}
    content = {keys.get(field, field): value for field, value in asdict(emulator).items()}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def distil(
    model: CausalModel, teacher: CausalModel, emulator: Emulator, batches: Iterable[torch.Tensor], rate: float
) -> list[float]:
    """Train the layers between the ends so that the emulator's predictions match the full model's.

    Each step is one of AdamW on KL(teacher || emulator), the mean over tokens.

    Args:
        model: the emulator, in place.
        teacher: the full model.
        emulator: names the ends.
        batches: token ids (lines, tokens) of each step.
        rate: the learning rate.

    Returns:
        The divergence (nats per token) before each step; empty where no layer lies between the ends.
    """
    layers = decoder_layers(model)[2]
    ends = set(emulator.trained)
    model.requires_grad_(False)
    middle = [p for place, layer in enumerate(layers) if place not in ends for p in layer.parameters()]
    if not middle:
        return []
    for parameter in middle:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(middle, lr=rate, weight_decay=0.0)
    divergences = []
    for ids in batches:
        with torch.no_grad():
            target = teacher(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        ours = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        loss = (target.exp() * (target - ours)).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(middle, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        divergences.append(float(loss.detach()))
    return divergences
