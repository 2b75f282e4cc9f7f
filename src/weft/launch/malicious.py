"""Who is malicious in a simulation, what these clients train on, and how well they were recognised."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from weft.attacks.simple import Mimic
from weft.config import RunConfig
from weft.core.attack import Attack
from weft.core.exchange import Runtime
from weft.core.seeds import derive, generator
from weft.data.encode import closed_set
from weft.data.formats import Example
from weft.errors import ConfigError
from weft.federation.own_attack import poisoned
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.launch.parts import part
from weft.runtimes.attacked import Attacked


def count_of(config: RunConfig, clients: int) -> int:
    """Return the number of malicious clients among so many; ConfigError where nobody would be honest."""
    share = config.num_malicious
    count = max(1, math.floor(share * clients + 1e-9)) if 0 < share < 1 else int(share)
    if count >= clients:
        raise ConfigError(
            f"{count} of {clients} clients would be malicious, and nobody honest: write a smaller --num_malicious, or "
            "a larger --num_clients."
        )
    return count


def malicious_of(config: RunConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the malicious clients, drawn from the run's seed: it is a simulation.

    Raises:
        ConfigError: there would be no honest client, or not the one that the attack copies.
    """
    attack: Attack = part("attack", config)
    if config.attack == "none" or attack.spreads or attack.changes_model:
        return ()
    count = count_of(config, len(names))
    most = min(len(names) - count, config.sample_clients)
    if isinstance(attack, Mimic) and attack.client >= most:
        raise ConfigError(
            f"client is {attack.client} in --attack_args, and a round has {most} honest clients at most, counted from "
            f"0: write client={most - 1} or less."
        )
    chosen = generator(config.seed, "malicious").permutation(len(names))[:count]
    return tuple(sorted((names[place] for place in chosen), key=list(names).index))


def attacked(plan: Plan, runtime: Runtime, seed: int, malicious: Collection[str]) -> Runtime:
    """Return the runtime, or one in which the malicious clients lie."""
    if not malicious or not plan.attack.sends:
        return runtime
    return Attacked(runtime, plan, frozenset(malicious), seed)


def poison(config: RunConfig, examples: list[Any], names: Sequence[str], train: Sequence[np.ndarray]) -> bool:
    """Change the training rows of clients as the run's attack says; return whether any were.

    Args:
        config: names the attack.
        examples: all conversations or preferences; changed in place.
        names: of the clients.
        train: the numbers of each client's training examples.
    """
    attack: Attack = part("attack", config)
    if not attack.poisons:
        return False
    bad = names if attack.spreads else malicious_of(config, names)
    choices: list[str] | None = None
    if examples and isinstance(examples[0], Example):
        choices = closed_set(examples[number].answer for numbers in train for number in numbers)
    for name, numbers in zip(names, train, strict=True):
        if name not in bad:
            continue
        lots = random.Random(derive(config.seed, "poison", name))
        rows = [examples[number] for number in numbers]
        changed = poisoned(attack, rows, choices and sorted(choices), lots)
        for number, example in zip(numbers.tolist(), changed, strict=True):
            examples[number] = example
    return True


def recognised(malicious: Collection[str], clients: Collection[str], flagged: Collection[str]) -> JsonObject:
    """Return who of a round was malicious, and how well the rule flagged them.

    `precision` is the share of the flagged that are malicious, None where nobody is flagged; `recall` that of the
    malicious that are flagged, None where nobody is malicious.
    """
    bad = sorted(set(malicious) & set(clients))
    hits = len(set(bad) & set(flagged))
    return {
        "malicious": bad,
        "precision": hits / len(flagged) if flagged else None,
        "recall": hits / len(bad) if bad else None,
    }
