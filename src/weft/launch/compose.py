"""From the flat keys of a configuration to the parts of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from weft import kinds
from weft.aggregation.mean import Mean
from weft.algorithms.clustered import Clustered
from weft.config import RunConfig
from weft.core.exchange import Aggregator, Protection
from weft.core.parts import Algorithm
from weft.core.secret import Secret
from weft.core.texts import unfit
from weft.errors import ConfigError
from weft.federation.compatibility import check
from weft.federation.conditions import Conditions
from weft.federation.plan import Plan
from weft.federation.rules import compares_norms
from weft.federation.sampling import Selection
from weft.federation.sharing import Sharing
from weft.keys.privacy import CLIENT, bound, unit_kind
from weft.launch.availability import read_trace
from weft.launch.budgets import privacy_part, row_noise
from weft.launch.mixtures import mixture_of
from weft.launch.objectives import objective
from weft.launch.parts import check as check_parts
from weft.launch.parts import part
from weft.launch.population import PUBLIC, Population
from weft.launch.scoring import with_scores
from weft.training.evolution import Evolution
from weft.training.loop import GradientSteps
from weft.training.optimizers import Optimizer
from weft.training.private import PrivateSteps
from weft.training.private_scores import PrivateEvolution, PrivateWords
from weft.training.schedules import Schedule
from weft.training.wording import InstructionSearch
from weft.training.zeroth import SeedSteps

SITES_NORM, SITES_NORM_EPOCHS = 100.0, 10_000.0
"""Default limits for sites: rounds of as many steps at every site, and rounds of epochs."""
HIDING: dict[type[GradientSteps], type[GradientSteps]] = {
    GradientSteps: PrivateSteps,
    Evolution: PrivateEvolution,
    InstructionSearch: PrivateWords,
}
"""Local training that bounds and hides single units, in place of that which does not."""


def algorithm(config: RunConfig) -> Algorithm:
    """Make the algorithm, `localN` included; ConfigError for a client number that does not exist."""
    only = kinds.check_algorithm(config.fed_alg)
    if only is None:
        algorithm_part: Algorithm = part("fed_alg", config)
        return algorithm_part
    from weft.algorithms.local import OnlyClient

    clients = len(config.clients) if config.clients else config.num_clients
    if only >= clients > 0:
        raise ConfigError(
            f"fed_alg is local{only}, but there are {clients} clients, counted from 0: local{clients - 1} is the last."
        )
    return OnlyClient(only, config.keep_moments)


def plan(config: RunConfig) -> Plan:
    """Return the composed plan; ConfigError for parts that cannot be combined, and for those that cannot be loaded."""
    base_algorithm = algorithm(config)
    check_parts(config)
    protection: Protection = part("protection", config)
    everywhere = config.public_data is not None and not config.public_in_batches
    result = Plan(
        algorithm=Clustered(base_algorithm, config.cluster, config.seed) if config.cluster > 1 else base_algorithm,
        aggregator=_aggregator(config, base_algorithm),
        attack=part("attack", config),
        privacy=privacy_part(config),
        codec=part("codec", config),
        codec_down=part("codec_down", config),
        protection=protection,
        objective=objective(config),
        local=local_steps(config, base_algorithm.local, pools=base_algorithm.pools_data),
        sharing=sharing(config),
        trainable=_trainable(config),
        quorum=config.min_clients,
        cohort=config.cohort_size + everywhere,
        weighting=part("client_weight", config),
        max_update_norm=_norm_limit(config, base_algorithm, protection),
        max_client_share=config.max_client_share,
        slow_clients=any(speed < 1 for speed in config.client_speed or ()),
        over_selected=config.over_selection > 0,
        sampled=config.client_sampling == "poisson",
        everywhere=everywhere,
        trusted=PUBLIC if everywhere else "",
        parallel=config.parallel,
        offloaded=config.model_offload != "none",
        personal_steps=config.personal_steps,
    )
    check(result)
    if config.num_rounds and config.sample_clients < protection.smallest_sum:
        raise ConfigError(
            f"protection {config.protection} opens sums of {protection.smallest_sum} clients or more, and a round has "
            f"sample_clients {config.sample_clients}: write --sample_clients {protection.smallest_sum} or more."
        )
    return with_scores(config, result)


def _aggregator(config: RunConfig, algorithm: Algorithm) -> Aggregator:
    """Return the aggregator; that of a baseline, in which there is nothing to combine, is the mean."""
    found: Aggregator = part("aggregator", config)
    return Mean() if algorithm.pools_data or kinds.is_local(config.fed_alg) else found


def check_cohort(plan: Plan, config: RunConfig, population: Population) -> None:
    """Refuse a population that is too small for the run's aggregator; raises as `check` does."""
    members = len(population.trained) - len(population.absent)
    sampled = plan.sampled or config.sample_clients + plan.everywhere < members
    check(replace(plan, cohort=min(config.sample_clients + plan.everywhere, members), sampled=sampled))


def _norm_limit(config: RunConfig, algorithm: Algorithm, protection: Protection) -> float:
    """Return the limit of an update's norm, as a multiple of the round's median; 0: none.

    By default simulations, whose clients nobody can replace by hostile ones, have none. Sites do: generous, since their
    rows differ. Where they train for epochs, one of many rows also makes more steps.
    """
    if config.max_update_norm is not None:
        return config.max_update_norm
    hidden = (protection.sum_only and not protection.grouped) or config.privacy_unit == CLIENT
    if config.runtime != "nvflare" or hidden or not compares_norms(algorithm):
        return 0.0
    return SITES_NORM if config.max_steps > 0 else SITES_NORM_EPOCHS


def _trainable(config: RunConfig) -> str:
    if config.prompt_method is not None:
        return "prompt"
    return ("dora" if config.use_dora else "lora") if config.use_peft else "full"


def sharing(config: RunConfig) -> Sharing:
    """Return what of the model travels."""
    return Sharing(
        lora=part("lora_aggregation", config),
        scale=config.lora_scale if config.use_peft and not config.use_dora else None,
        patterns=tuple(config.share or ()),
        ranks=tuple(config.client_ranks or ()),
        layers=_layers(config),
        private=config.private_tokens > 0,
    )


def _layers(config: RunConfig) -> tuple[tuple[int, ...], ...]:
    """Return the layers of the model that clients have; ConfigError for a number that cannot be."""
    if config.client_layers is None:
        return ()
    from weft.models.emulator import choose_layers
    from weft.models.load import load_model_config
    from weft.models.scratch import shape_of

    if config.from_scratch:
        count = shape_of(config)["num_layers"]
    else:
        count = load_model_config(config).get_text_config().num_hidden_layers
    for number in config.client_layers:
        if not 1 <= number <= count:
            raise ConfigError(f"A client has {number} layers, and the model {count}: write numbers from 1 to {count}.")
    return tuple(tuple(choose_layers(count, number, ends=min(1, number // 2))) for number in config.client_layers)


def conditions(config: RunConfig) -> Conditions:
    """Return the drop-outs and speeds of clients that a simulation has."""
    return Conditions(config.seed, config.client_failure_rate, tuple(config.client_speed or ()))


def selection(config: RunConfig, population: Population, secret: Callable[[], Secret] | None = None) -> Selection:
    """Return how cohorts are chosen from a population; DataError for a trace that cannot be read.

    Args:
        config: the run.
        population: its clients.
        secret: of the server, which chooses them where clients are protected; None: the run's seed does.
    """
    names = population.trained.names
    gone = tuple(client for client in population.forgotten if client in population.absent and drawn_alike(config))
    return Selection(
        seed=config.seed,
        count=config.sample_clients,
        over_selection=config.over_selection,
        always=(names.index(PUBLIC),) if PUBLIC in names else (),
        absent=tuple(client for client in population.absent if client not in gone),
        removed=gone,
        weights=population.trained.sizes() if config.client_sampling == "size" else None,
        poisson=config.client_sampling == "poisson",
        secret=secret if config.privacy_unit == CLIENT and config.client_sampling != "size" else None,
        availability=read_trace(config.availability, names, config.availability_period)
        if config.availability
        else None,
    )


def drawn_alike(config: RunConfig) -> bool:
    """Say whether who is drawn into a cohort does not depend on who else is there, nor on anybody's rows.

    Clients that are forgotten are then drawn with the others and taken out, so that all other cohorts stay.
    """
    return config.client_sampling != "size" and config.fed_alg != "fedbuff"


def read_candidates(config: RunConfig) -> tuple[str, ...]:
    """Return the instructions that clients know; ConfigError for one that is too long or not to be shown."""
    texts = [text.strip() for text in config.prompt_candidates if text.strip()]
    for text in texts:
        if unfit(text):
            raise ConfigError(f"The instruction {text[:40]!r} holds control characters: remove them.")
        if len(text.encode()) > config.prompt_length:
            raise ConfigError(
                f"The instruction {text[:40]!r}... has {len(text.encode())} bytes, and prompt_length is "
                f"{config.prompt_length}: shorten it, or write a larger --prompt_length."
            )
    return tuple(texts)


def local_steps(config: RunConfig, kind: str = "gradients", *, pools: bool = False) -> GradientSteps:
    """Return the local training that a configuration describes, for an algorithm that wants a kind of it.

    Args:
        config: the run.
        kind: "directions", or what the configuration says.
        pools: all rows, and all that clients know, are at one place.
    """
    options: dict[str, Any] = {}
    steps_class: type[GradientSteps] = SeedSteps if kind == "directions" else GradientSteps
    if config.prompt_method == "black_box":
        steps_class, options = Evolution, {"population": config.population}
    if config.prompt_method == "text":
        steps_class, options = (
            InstructionSearch,
            {
                "candidates": read_candidates(config),
                "clients": 1 if pools else max(1, len(config.clients or ()) or config.num_clients),
                "proposals": config.prompt_proposals,
                "length": config.prompt_length,
            },
        )
    if unit_kind(config.privacy_unit) in ("row", "column") and steps_class in HIDING:
        bound_of_unit = bound(config)
        assert isinstance(bound_of_unit, float)  # `weft.keys.privacy.check` refuses an adaptive one
        steps_class = HIDING[steps_class]
        options |= {"bound": bound_of_unit, "noise_of": partial(row_noise, config)}
    return steps_class(
        **options,
        schedule=Schedule(
            kind=config.lr_scheduler_type,
            peak=config.learning_rate,
            floor=config.min_learning_rate,
            rounds=config.num_rounds,
            warmup_steps=config.warmup_steps,
            warmup_ratio=config.warmup_ratio,
            decay_ratio=config.decay_ratio,
        ),
        seed=config.seed,
        steps=max(0, config.max_steps),
        epochs=config.num_train_epochs,
        public_share=config.public_share,
        mixture=mixture_of(config),
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        max_grad_norm=config.max_grad_norm,
        optimizer=Optimizer(
            kind=config.optimizer,
            weight_decay=config.weight_decay,
            decay_matrices_only=config.decay_matrices_only,
            betas=(config.adam_beta1, config.adam_beta2),
            epsilon=config.adam_epsilon,
            muon_momentum=config.muon_momentum,
        ),
    )
