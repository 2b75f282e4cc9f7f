"""Parts that do not come with Weft: the text of a file that holds one of each kind, and their names in it."""

from __future__ import annotations

PARTS = '''
"""One part of each kind. Each that takes part writes its name and what it was given beside this file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from weft.core import tensors
from weft.core.attack import Attack
from weft.core.exchange import Aggregator, Codec, Privacy, Protection, Weighting
from weft.core.parts import Algorithm, LoraAggregation
from weft.core.types import Total
from weft.data.cleaning.cleaner import Cleaner
from weft.data.splits import Shares
from weft.data.templates import VICUNA, Template
from weft.objectives.sft import SFT


def note(*words):
    with open(Path(__file__).with_name("seen"), "a") as file:
        print(*words, file=file)


@dataclass(frozen=True)
class MyAlgorithm(Algorithm):
    keep: float = 0.5

    def step(self, state, total):
        note("fed_alg", self.keep)
        return super().step(state, replace(total, streams={"delta": tensors.scale(total.streams["delta"], self.keep)}))


@dataclass(frozen=True)
class MyLora(LoraAggregation):
    keep: float = 0.5

    def combine(self, total, state, products):
        note("lora_aggregation", self.keep)
        return total


def my_split(rows, how, *, keep: float = 0.5):
    note("split_strategy", keep)
    cut = int(keep * len(rows))
    return Shares([np.arange(cut), np.arange(cut, len(rows))], ["first", "second"])


@dataclass(frozen=True)
class MyWeight(Weighting):
    by_rows: ClassVar[bool] = False
    single_updates: ClassVar[bool] = True
    keep: float = 0.5

    def factor(self, client, metrics, memory):
        note("client_weight", self.keep)
        return self.keep, {}


@dataclass(frozen=True)
class MyAggregator(Aggregator):
    keep: float = 0.5

    def combine(self, updates):
        note("aggregator", self.keep)
        kept = list(updates)
        total = sum(update.weight for update in kept)
        return Total(dict(kept[0].streams), tuple(update.client for update in kept), total)


class MyPrivacy(Privacy):
    def __init__(self, keep: float = 0.5) -> None:
        self.keep = keep

    def on_client(self, update, party):
        note("privacy", self.keep)
        return update, party.memory


@dataclass(frozen=True)
class MyCodec(Codec):
    keep: float = 0.5

    def encode(self, update, coding, party):
        note("codec", self.keep)
        return update, party.memory

    def encode_task(self, task, coding, party):
        note("codec_down", self.keep)
        return task, party.memory


@dataclass(frozen=True)
class MyProtection(Protection):
    keep: float = 0.5

    def seal(self, update, task, party):
        note("protection", self.keep)
        return update


@dataclass(frozen=True)
class MyAttack(Attack):
    changes_updates: ClassVar[bool] = True
    keep: float = 0.5

    def send(self, own, honest, scene):
        note("attack", self.keep)
        return own


@dataclass(frozen=True)
class MyObjective(SFT):
    keep: float = 0.5

    def loss(self, model, batch):
        note("objective", self.keep)
        return super().loss(model, batch)


class Noted(Template):
    def pieces(self, example, tokenizer):
        note("template", 0.25)
        return super().pieces(example, tokenizer)


MY_TEMPLATE = Noted(**{name: getattr(VICUNA, name) for name in VICUNA.__dataclass_fields__} | {"name": "mine"})


def my_reward(prompt, completion, answer):
    note("reward", 0.25)
    return 1.0


@dataclass(frozen=True)
class MyCleaner(Cleaner):
    keep: float = 0.5

    def faults(self, samples, tools):
        note("clean", self.keep)
        return {}
'''
NAMES = {
    "fed_alg": "MyAlgorithm",
    "lora_aggregation": "MyLora",
    "split_strategy": "my_split",
    "client_weight": "MyWeight",
    "aggregator": "MyAggregator",
    "privacy": "MyPrivacy",
    "codec": "MyCodec",
    "codec_down": "MyCodec",
    "protection": "MyProtection",
    "attack": "MyAttack",
    "objective": "MyObjective",
    "template": "MY_TEMPLATE",
    "reward": "my_reward",
    "clean": "MyCleaner",
}
BESIDE: dict[str, dict[str, object]] = {
    "split_strategy": {"num_clients": 2, "sample_clients": 2},
    "attack": {"num_clients": 2, "sample_clients": 2},
    "reward": {"objective": "grpo", "max_new_tokens": 4, "num_generations": 2, "batch_size": 2},
}
"""Keys without which a part of the kind cannot take part."""


def once(keys: dict[str, object]) -> dict[str, object]:
    """Make a run one of a single step."""
    return keys | {"num_rounds": 1, "max_steps": 1, "eval_every": 0, "dataset_sample": 24}
