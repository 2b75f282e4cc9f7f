"""Compatibility rules of the server: access to single updates, weights, LoRA aggregations."""

from __future__ import annotations

from weft.core.parts import Algorithm
from weft.federation.plan import Plan
from weft.federation.remedies import AGGREGATOR, ALGORITHM, CODEC, LORA, WEIGHTING, Refusal, name_of, summed

FEDERATED = ALGORITHM.with_description("a federated algorithm")


def secrecy(plan: Plan) -> list[Refusal]:
    """Return the rules of protection: what the server may see."""
    algorithm, protection, lora = plan.algorithm, plan.protection, plan.sharing.lora
    name, protector = name_of(algorithm), type(protection).__name__
    mean, factors = type(plan.aggregator).__name__, type(lora).__name__
    clusters = "leave out --cluster"
    return [
        Refusal(
            protection.sum_only and not algorithm.sums_updates and algorithm.choice is None,
            f"{name} looks at single updates, but {protector} shows the server sums only",
            [*summed(algorithm), ALGORITHM.with_description("another algorithm"), "write --protection none"],
        ),
        Refusal(
            protection.sum_only and algorithm.choice is not None,
            f"The server looks at which model each client chose, but {protector} shows it sums only",
            [clusters, "write --protection none"],
        ),
        Refusal(
            protection.sum_only and not algorithm.shares and not algorithm.pools_data,
            f"{name} sends no updates, so there is nothing for {protector} to hide",
            ["write --protection none", FEDERATED],
        ),
        Refusal(
            protection.sum_only and lora.single_updates,
            f"{factors} multiplies each client's factors, but {protector} shows the server sums only",
            [LORA, "write --protection none"],
        ),
        Refusal(
            protection.sum_only and not protection.grouped and not plan.aggregator.additive,
            f"{mean} compares single updates, but {protector} shows the server sums only",
            [AGGREGATOR, *_in_groups(plan), "write --protection none"],
        ),
        Refusal(
            protection.sum_only and not plan.codec.addable,
            f"Updates encoded by {type(plan.codec).__name__} cannot be added up under {protector}",
            [
                *([protection.fewer_bytes] if protection.fewer_bytes else []),
                CODEC.with_description("another codec"),
                "write --protection none",
            ],
        ),
        Refusal(
            protection.sum_only and bool(plan.sharing.ranks or plan.sharing.layers),
            f"Clients of different ranks or layers send updates of different shapes, which {protector} cannot add up",
            ["leave out --client_ranks and --client_layers", "write --protection none"],
        ),
        Refusal(
            protection.sum_only and (plan.over_selected or algorithm.buffer is not None),
            f"{protector} opens the sum of a whole cohort, and here the server uses the first updates that come",
            ["leave out --over_selection", "write --protection none"],
        ),
    ]


def means(plan: Plan) -> list[Refusal]:
    """Return the rules of what is computed of a cohort: a mean of updates where privacy accounts for one."""
    algorithm, privacy, lora = plan.algorithm, plan.privacy, plan.sharing.lora
    private, mean, factors = type(privacy).__name__, type(plan.aggregator).__name__, type(lora).__name__
    return [
        Refusal(
            privacy.bounded and not plan.aggregator.additive,
            f"{private} accounts for a mean, and {mean} is none",
            [AGGREGATOR, "leave out --privacy_unit"],
        ),
        Refusal(
            privacy.bounded and lora.single_updates,
            f"{private} accounts for a mean of updates, and {factors} averages products",
            [LORA, "leave out --privacy_unit"],
        ),
        Refusal(
            algorithm.pools_data and (plan.protection.sum_only or privacy.bounded),
            f"{name_of(algorithm)} brings all rows to one place, where there is nobody to protect them from",
            ["leave out --protection and --privacy_unit", FEDERATED],
        ),
    ]


def _in_groups(plan: Plan) -> list[str]:
    """Return the remedy of sums over groups, which can be compared, where the protection has them."""
    return ["add --group_size, with which sums of groups are compared"] if plan.protection.can_group else []


def compares_norms(algorithm: Algorithm) -> bool:
    """Say whether the norm of an update means something: not that of scores and texts, or of no update."""
    return algorithm.shares and algorithm.local not in ("search", "words")


def weights(plan: Plan) -> list[Refusal]:
    """Return the rules of the weights of updates."""
    algorithm, weighting = plan.algorithm, plan.weighting
    name, weigher = name_of(algorithm), type(weighting).__name__
    hider = type(plan.protection if plan.protection.sum_only else plan.privacy).__name__
    return [
        Refusal(
            weighting.single_updates and (plan.protection.sum_only or plan.privacy.bounded),
            f"{weigher} weighs every client by its own loss or reward, which {hider} keeps from the server",
            [WEIGHTING],
        ),
        Refusal(
            weighting.single_updates and algorithm.adds_up,
            f"{name} adds up over rounds what clients send, and {weigher} changes a client's weight in every round",
            [WEIGHTING, ALGORITHM],
        ),
        Refusal(
            weighting.single_updates and not algorithm.shares,
            f"{name} sends no updates, so there is nothing for {weigher} to weigh",
            [WEIGHTING, FEDERATED],
        ),
        Refusal(
            plan.max_update_norm > 0 and not compares_norms(algorithm),
            f"{name} sends candidates with their scores, or nothing, and norms of those cannot be compared",
            ["leave out --max_update_norm", ALGORITHM.with_description("another algorithm")],
        ),
        Refusal(
            plan.max_update_norm > 0 and plan.protection.sum_only and not plan.protection.grouped,
            f"max_update_norm compares single updates, but {hider} shows the server sums only",
            ["leave out --max_update_norm", *_in_groups(plan), "write --protection none"],
        ),
        Refusal(
            plan.max_client_share < 1 and (plan.protection.sum_only or not algorithm.shares),
            "max_client_share changes the weights of single updates, and the server sees none here",
            ["leave out --max_client_share"],
        ),
        Refusal(
            plan.max_client_share < 1 and algorithm.adds_up,
            f"{name} adds up over rounds what clients send, and max_client_share changes a client's weight with the "
            "cohort",
            ["leave out --max_client_share", ALGORITHM],
        ),
    ]


def factors(plan: Plan) -> list[Refusal]:
    """Return the rules of LoRA aggregations."""
    algorithm, sharing, lora = plan.algorithm, plan.sharing, plan.sharing.lora
    name, aggregation = name_of(algorithm), type(lora).__name__
    sums = lora.single_updates or lora.shape == "side"  # what is put aside is made of the mean of the updates
    return [
        Refusal(
            plan.trainable in ("full", "prompt") and not lora.plain,
            f"{aggregation} combines LoRA factors, and none are trained here",
            ["add --use_peft", LORA],
        ),
        Refusal(
            plan.trainable == "dora" and not lora.plain,
            f"{aggregation} needs the product of the factors to be added as it is, but DoRA normalises it",
            ["leave out --use_dora", LORA],
        ),
        Refusal(
            bool(sharing.ranks) and plan.trainable != "lora",
            "client_ranks are ranks of LoRA adapters, and none are trained here",
            ["add --use_peft (without --use_dora)", "leave out --client_ranks"],
        ),
        Refusal(
            bool(sharing.ranks) and not lora.any_rank,
            f"{aggregation} needs factors of one rank, but client_ranks are given",
            [LORA, "leave out --client_ranks"],
        ),
        Refusal(
            sums and not algorithm.shares,
            f"{name} sends no updates, so there is nothing for {aggregation} to combine",
            [LORA, FEDERATED],
        ),
        Refusal(
            not lora.keeps_basis and algorithm.remembers_coordinates,
            f"{aggregation} changes the basis of the factors in every round, and {name} remembers values for their "
            "coordinates",
            [LORA, ALGORITHM],
        ),
        Refusal(
            sums and not algorithm.adds_mean,
            f"{aggregation} is made for the mean of the updates, and {name} does not step by it",
            [LORA, ALGORITHM],
        ),
        Refusal(
            lora.alternates and algorithm.buffer is not None,
            f"{aggregation} trains other factors in every round, and {name} mixes clients of several rounds",
            [LORA, ALGORITHM.with_description("a synchronous algorithm")],
        ),
        Refusal(
            lora.alternates and algorithm.turns is not None,
            f"{aggregation} trains other factors in every round, and of {name} other parts travel in every round, so "
            "that some would be trained in rounds only in which they do not travel",
            [LORA, "leave out fragments in --fed_args"],
        ),
        Refusal(
            lora.alternates and algorithm.early is not None,
            f"{aggregation} trains other factors in every round, and with a delay {name} would mix them with those of "
            "another round",
            [LORA, "leave out delay in --fed_args"],
        ),
    ]
