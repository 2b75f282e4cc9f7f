"""From the flat keys of a configuration to the parts of a plan."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from weft import registry
from weft.config import RunConfig, check_algorithm
from weft.core.parts import Algorithm
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.training.loop import GradientSteps
from weft.training.schedules import Schedule


def part(table: dict[str, str], name: str, kind: str, config: RunConfig) -> Any:
    """Make the part of a name; its fields are taken from the keys that their metadata names ("key"), if any."""
    made = registry.load(table, name, kind)
    keys = {field.name: field.metadata["key"] for field in fields(made) if "key" in field.metadata}
    return made(**{field: getattr(config, key) for field, key in keys.items()})


def algorithm(config: RunConfig) -> Algorithm:
    """Make the algorithm, `localN` included; ConfigError for a client that there is none of."""
    alone = check_algorithm(config.fed_alg)
    if alone is None:
        made: Algorithm = part(registry.ALGORITHMS, config.fed_alg, "algorithm", config)
        return made
    from weft.algorithms.local import OnlyClient

    clients = len(config.clients) if config.clients else config.num_clients
    if alone >= clients:
        raise ConfigError(
            f"fed_alg is local{alone}, but there are {clients} clients, counted from 0: local{clients - 1} is the last."
        )
    return OnlyClient(alone)


def plan(config: RunConfig) -> Plan:
    """Return the composed plan; ConfigError for parts that cannot be combined."""
    return Plan(
        algorithm=algorithm(config),
        aggregator=part(registry.AGGREGATORS, "mean", "aggregator", config),
        privacy=part(registry.PRIVACY, "none", "privacy", config),
        codec=part(registry.CODECS, "none", "codec", config),
        protection=part(registry.PROTECTIONS, "none", "protection", config),
        objective=part(registry.OBJECTIVES, config.objective, "objective", config),
        local=local_steps(config),
    )


def local_steps(config: RunConfig) -> GradientSteps:
    """Return the local training that a configuration describes."""
    return GradientSteps(
        schedule=Schedule(
            kind=config.lr_scheduler_type,
            peak=config.learning_rate,
            floor=config.min_learning_rate,
            rounds=config.num_rounds,
            warmup_steps=config.warmup_steps,
            warmup_ratio=config.warmup_ratio,
        ),
        seed=config.seed,
        steps=max(0, config.max_steps),
        epochs=config.num_train_epochs,
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        epsilon=config.adam_epsilon,
    )
