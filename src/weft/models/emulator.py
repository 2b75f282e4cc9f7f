"""Offsite tuning: a model with layers left out goes to the clients, its ends are tuned and put back (Xiao et al. 2023,
arXiv 2302.04870).

The emulator is a folder that loads as any model; `emulator.json` beside it says which layers of which model it has, and
how many at either end are to be trained.
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


@dataclass(frozen=True)
class Emulator:
    """What an emulator has of its model."""

    of: str
    """The model's name or folder."""
    layers: int
    """How many the model has."""
    kept: list[int]
    """Which of them, in order."""
    ends: int
    """How many at the beginning and at the end are trained."""

    @property
    def trained(self) -> list[int]:
        """The layers of the emulator that are trained."""
        return [*range(self.ends), *range(len(self.kept) - self.ends, len(self.kept))]

    def full_name(self, name: str) -> str:
        """Return the name that a parameter of the emulator has in the model."""
        return LAYER.sub(lambda found: str(self.kept[int(found[1])]), name, count=1)


def emulator_of(folder: str | Path) -> Emulator | None:
    """Return what a folder's emulator has, or None where the folder holds none; ConfigError if its file is broken."""
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        return None
    try:
        return Emulator(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"'{path}' cannot be read ({error}): make the emulator again by `weft emulate`.") from None


def choose_layers(layers: int, keep: int, ends: int) -> list[int]:
    """Return which layers an emulator of `keep` has: the ends, and evenly spread ones between.

    Raises:
        ConfigError: more than there are, or no room for the ends.
    """
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


def leave_out(model: CausalModel, kept: Sequence[int]) -> None:
    """Leave out all layers of a model but these, in place."""
    parent, name, layers = decoder_layers(model)
    setattr(parent, name, nn.ModuleList(layers[place] for place in kept))
    for place, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # where a cache keeps its keys and values
                module.layer_idx = place
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[place] for place in kept]
    config.num_hidden_layers = len(kept)


@contextmanager
def only_layers(model: CausalModel, kept: Sequence[int] | None) -> Iterator[None]:
    """Leave out all layers of a model but these, for a while; None: keep all."""
    if kept is None:
        yield
        return
    parent, name, layers = decoder_layers(model)
    places = {module: module.layer_idx for module in layers.modules() if hasattr(module, "layer_idx")}
    config = model.config.get_text_config()
    types = list(config.layer_types) if getattr(config, "layer_types", None) else None
    leave_out(model, kept)
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
    """Let only the ends of a whole model be trained."""
    model.requires_grad_(False)
    layers = decoder_layers(model)[2]
    for place in emulator.trained:
        layers[place].requires_grad_(True)


def write(folder: Path, emulator: Emulator) -> None:
    """Say beside an emulator what it has."""
    (folder / FILE).write_text(json.dumps(asdict(emulator), indent=1) + "\n", encoding="utf-8")


def distil(
    model: CausalModel, teacher: CausalModel, emulator: Emulator, batches: Iterable[torch.Tensor], rate: float
) -> list[float]:
    """Train the layers between the ends so that the emulator says what the model says; return the divergences.

    Each step is AdamW on the mean over tokens of KL(teacher || emulator), batches are (lines, tokens) of ids.
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
    seen = []
    for ids in batches:
        with torch.no_grad():
            wanted = teacher(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        ours = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        loss = (wanted.exp() * (wanted - ours)).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(middle, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(float(loss.detach()))
    return seen
