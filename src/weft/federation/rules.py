"""What cannot be combined, by traits: (whether it is so, the sentence that says it and the remedy)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.core.types import DELTA
from weft.federation.limits import conditions, local_work, placement

if TYPE_CHECKING:
    from weft.federation.plan import Plan


def refusals(plan: Plan) -> list[tuple[bool, str]]:
    """Return all rules for a plan."""
    return [
        *_protection(plan),
        *_lora(plan),
        *_clusters(plan),
        *_depths(plan),
        *local_work(plan),
        *_personal(plan),
        *conditions(plan),
        *placement(plan),
    ]


def _protection(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, protection = plan.algorithm, plan.protection
    name, hidden = type(algorithm).__name__, type(protection).__name__
    lora = plan.sharing.lora
    return [
        (
            protection.sum_only and not algorithm.sums_updates,
            f"{name} looks at single updates, but {hidden} shows the server sums only: choose another algorithm, or "
            "--protection none.",
        ),
        (
            protection.sum_only and lora.single_updates,
            f"{type(lora).__name__} multiplies each client's factors, but {hidden} shows the server sums only: write "
            "--lora_aggregation ffa or rolora, or --protection none.",
        ),
        (
            protection.sum_only and not plan.aggregator.additive,
            f"{type(plan.aggregator).__name__} compares single updates, but {hidden} shows the server sums only: write "
            "--aggregator mean, or --protection none.",
        ),
        (
            protection.sum_only and not plan.codec.dense,
            f"Updates encoded by {type(plan.codec).__name__} cannot be added up under {hidden}: choose another codec, "
            "or --protection none.",
        ),
        (
            plan.weighting.single_updates and (protection.sum_only or plan.privacy.bounded),
            f"{type(plan.weighting).__name__} weighs every client by its own loss or reward, which "
            f"{hidden if protection.sum_only else type(plan.privacy).__name__} keeps from the server: write "
            "--client_weight size or uniform.",
        ),
        (
            plan.weighting.single_updates and algorithm.adds_up,
            f"{name} adds up over rounds what clients send, and {type(plan.weighting).__name__} weighs a client "
            "otherwise in every round: write --client_weight size or uniform, or --fed_alg fedavg.",
        ),
        (
            plan.weighting.single_updates and not algorithm.shares,
            f"{name} sends no updates, so there is nothing for {type(plan.weighting).__name__} to weigh: write "
            "--client_weight size, or choose a federated algorithm.",
        ),
        (
            plan.privacy.bounded and not plan.aggregator.additive,
            f"{type(plan.privacy).__name__} accounts for a mean, and {type(plan.aggregator).__name__} is none: write "
            "--aggregator mean.",
        ),
        (
            plan.privacy.bounded and lora.single_updates,
            f"{type(plan.privacy).__name__} accounts for a mean of updates, and {type(lora).__name__} averages "
            "products: write --lora_aggregation ffa.",
        ),
        (
            algorithm.pools_data and (protection.sum_only or plan.privacy.bounded),
            f"{name} brings all rows to one place, where there is nobody to protect them from: leave out --protection "
            "and --privacy, or choose a federated algorithm.",
        ),
    ]


def _lora(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, lora = plan.algorithm, plan.sharing.lora
    name, how = type(algorithm).__name__, type(lora).__name__
    average = "write --lora_aggregation average"
    sums = lora.single_updates or lora.shape == "side"  # what is put aside is made of the mean of the updates
    return [
        (
            plan.trainable in ("full", "prompt") and not lora.plain,
            f"{how} combines LoRA factors, and none are trained here: add --use_peft, or {average}.",
        ),
        (
            plan.trainable == "dora" and not lora.plain,
            f"{how} needs the product of the factors to be added as it is, but DoRA normalises it: leave out "
            f"--use_dora, or {average}.",
        ),
        (
            bool(plan.sharing.ranks) and plan.trainable != "lora",
            "client_ranks are ranks of LoRA adapters, and none are trained here: add --use_peft (without --use_dora), "
            "or leave out --client_ranks.",
        ),
        (
            bool(plan.sharing.ranks) and not lora.any_rank,
            f"{how} needs factors of one rank, but client_ranks are given: write --lora_aggregation svd or stack, or "
            "leave out --client_ranks.",
        ),
        (
            sums and not algorithm.shares,
            f"{name} sends no updates, so there is nothing for {how} to combine: {average}.",
        ),
        (
            not lora.keeps_basis and algorithm.remembers_coordinates,
            f"{how} changes the basis of the factors in every round, and {name} remembers values for their coordinates:"
            " write --lora_aggregation average, ffa, rolora, fedsb or dual, or --fed_alg fedavg.",
        ),
        (
            sums and not algorithm.adds_mean,
            f"{how} is made for the mean of the updates, and {name} goes another way from there: write "
            "--lora_aggregation average, ffa, rolora, fedsb or dual, or --fed_alg fedavg.",
        ),
        (
            lora.alternates and algorithm.buffer is not None,
            f"{how} trains other factors in every round, and in {name} clients of several rounds meet: write "
            "--lora_aggregation ffa, or a synchronous algorithm.",
        ),
        (
            lora.alternates and algorithm.turns is not None,
            f"{how} trains other factors in every round, and of {name} other parts travel in every round, so that some "
            "would be trained in rounds only in which they do not travel: write --lora_aggregation ffa, or leave out "
            "fragments in --fed_args.",
        ),
    ]


def _clusters(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, lora = plan.algorithm, plan.sharing.lora
    several = algorithm.choice is not None
    kept = algorithm.stateful_clients or algorithm.turns is not None or not algorithm.shares
    kept = kept or algorithm.adds_up  # a client's part would be in the sum of one model, then in that of another
    return [
        (
            several and (kept or algorithm.buffer is not None or algorithm.one_step),
            "Clusters are several models that clients move between, and this algorithm keeps something of one model at "
            "its clients, or waits for no cohort: leave out --cluster, or write --fed_alg fedavg, fedprox, fedavgm, "
            "fedadam, fedyogi, fedadagrad, fednova, fedexp or fedcm.",
        ),
        (
            several and (lora.single_updates or lora.shape in ("side", "twin") or bool(lora.kept)),
            f"{type(lora).__name__} keeps a product or a part of one model, and clusters are several: write "
            "--lora_aggregation average, ffa, rolora or fedsb, or leave out --cluster.",
        ),
    ]


def _depths(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, sharing, lora = plan.algorithm, plan.sharing, plan.sharing.lora
    fewer = bool(sharing.layers)
    other = algorithm.streams != (DELTA,) or bool(algorithm.scalars) or algorithm.one_step
    other = other or algorithm.pools_data or not algorithm.shares or algorithm.choice is not None
    own = plan.own_models or algorithm.stateful_clients
    other = other or algorithm.buffer is not None or algorithm.turns is not None or algorithm.local != "gradients"
    return [
        (
            fewer
            and (
                other
                or own
                or algorithm.buffer is not None
                or algorithm.turns is not None
                or algorithm.local != "gradients"
            ),
            f"With client_layers clients have parts of one model, and {type(algorithm).__name__}, or what clients keep "
            "for themselves, needs the whole: leave out --client_layers, or write --fed_alg fedavg, fedprox, fedavgm "
            "or fedadam, without --share, --personal_steps and --cluster.",
        ),
        (
            fewer and (lora.single_updates or bool(lora.shape)),
            f"{type(lora).__name__} combines the factors of whole models, and client_layers gives parts: write "
            "--lora_aggregation average, ffa or rolora.",
        ),
        (
            fewer and (plan.trainable == "prompt" or plan.parallel != "none" or plan.offloaded),
            "client_layers leaves out layers of a model that is whole in one process, with what is trained in them: "
            "leave out --client_layers, or prompts, --parallel and --model_offload.",
        ),
        (
            fewer and (plan.privacy.bounded or not plan.aggregator.additive),
            "A mean over those who have a layer is not the one that "
            f"{type(plan.privacy if plan.privacy.bounded else plan.aggregator).__name__} is made for: leave out "
            "--client_layers.",
        ),
    ]


def _personal(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, sharing = plan.algorithm, plan.sharing
    name = type(algorithm).__name__
    what = "share" if sharing.patterns else type(sharing.lora).__name__
    single = algorithm.personal is not None or algorithm.choice is not None
    instead = "leave out --share" if sharing.patterns else "write --lora_aggregation average"
    return [
        (
            sharing.keeps and not algorithm.shares,
            f"{what} says which parameters travel, but with {name} none do: {instead}, or choose a federated "
            "algorithm.",
        ),
        (
            sharing.keeps and single,
            f"{what} and {name} each give every client a model of its own: {instead}, or choose an algorithm with a "
            "shared model only.",
        ),
        (
            plan.personal_steps > 0 and (single or algorithm.pools_data),
            f"{name} "
            + ("has no clients to make personal steps" if algorithm.pools_data else "makes personal models already")
            + ": leave out --personal_steps.",
        ),
    ]
