"""What cannot be combined, by traits: (whether it is so, the sentence that says it and the remedy)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.federation.plan import Plan


def refusals(plan: Plan) -> list[tuple[bool, str]]:
    """Return all rules for a plan."""
    return [
        *_protection(plan),
        *_lora(plan),
        *_clusters(plan),
        *_local_work(plan),
        *_personal(plan),
        *_conditions(plan),
        *_placement(plan),
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
            lora.alternates and algorithm.asynchronous,
            f"{how} trains other factors in every round, and in {name} clients of several rounds meet: write "
            "--lora_aggregation ffa, or a synchronous algorithm.",
        ),
    ]


def _clusters(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, lora = plan.algorithm, plan.sharing.lora
    several = not algorithm.one_model
    kept = algorithm.stateful_clients or algorithm.period > 1 or not algorithm.shares
    return [
        (
            several and (kept or algorithm.asynchronous or algorithm.one_step),
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


def _personal(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, sharing = plan.algorithm, plan.sharing
    name = type(algorithm).__name__
    what = "share" if sharing.patterns else type(sharing.lora).__name__
    instead = "leave out --share" if sharing.patterns else "write --lora_aggregation average"
    return [
        (
            sharing.keeps and not algorithm.shares,
            f"{what} says which parameters travel, but with {name} none do: {instead}, or choose a federated "
            "algorithm.",
        ),
        (
            sharing.keeps and algorithm.personal,
            f"{what} and {name} each give every client a model of its own: {instead}, or choose an algorithm with a "
            "shared model only.",
        ),
        (
            plan.personal_steps > 0 and (algorithm.personal or algorithm.pools_data),
            f"{name} "
            + ("has no clients to make personal steps" if algorithm.pools_data else "makes personal models already")
            + ": leave out --personal_steps.",
        ),
    ]


def _local_work(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, lora, kind = plan.algorithm, plan.sharing.lora, plan.local.kind
    name, own = type(algorithm).__name__, plan.personal_steps > 0 or plan.sharing.private
    bends = not algorithm.plain_steps or algorithm.uses_moments or algorithm.one_step or algorithm.period > 1
    bends = bends or (algorithm.stateful_clients and algorithm.shares)
    along = kind == "directions"
    return [
        (
            kind == "search" and (algorithm.local not in ("search", "gradients") or bends),
            f"{name} works on gradients, keeps an optimizer's values or learns otherwise; a black box has none: write "
            "--fed_alg fedbpt, fedavg, fedavgm, fedadam, fedexp, local or central.",
        ),
        (
            kind == "words" and algorithm.local != "words" and algorithm.shares and not algorithm.pools_data,
            f"{name} averages numbers, and these are words: write --fed_alg fedtext, local or central.",
        ),
        (
            kind == "words" and algorithm.pools_data and plan.aggregator.additive and not algorithm.adds_mean,
            f"{name} cannot carry words: write --fed_alg fedtext.",
        ),
        (
            kind != "gradients" and own,
            "Personal steps and private vectors are learnt by gradients, and there are none here: leave them out, or "
            "write --prompt_method soft.",
        ),
        (
            kind == "gradients" and algorithm.local != "gradients",
            f"{name} is made for prompts that are found without gradients: write --prompt_method "
            f"{'text' if algorithm.local == 'words' else 'black_box'}, or another --fed_alg.",
        ),
        (
            along and (plan.sharing.keeps or not algorithm.one_model or lora.alternates or lora.shape != ""),
            f"{name} makes all that is trained from what the run began with: leave out --share and --cluster, and "
            "write --lora_aggregation average.",
        ),
        (
            along and (bool(plan.sharing.ranks) or plan.local.public_share > 0),
            f"{name} has one model of one shape and one set of rows: leave out --client_ranks and --public_share.",
        ),
    ]


def _conditions(plan: Plan) -> list[tuple[bool, str]]:
    algorithm = plan.algorithm
    name = type(algorithm).__name__
    return [
        (
            plan.slow_clients and not algorithm.partial_work and not algorithm.asynchronous,
            f"{name} needs every client to make all its steps, but client_speed lets some make fewer: leave out "
            "--client_speed, or choose an algorithm that takes partial work (fedavg, fednova, ...).",
        ),
        (
            algorithm.uses_moments and not plan.local.optimizer.plain,
            f"{name} works with AdamW's moments in full, which {plan.local.optimizer.kind} does not have: write "
            "--optimizer adamw, or choose another algorithm.",
        ),
        (
            algorithm.one_step and (plan.local.steps != 1 or plan.local.accumulation != 1),
            f"{name} exchanges the gradient of every step, so a round is one step: write --max_steps 1 and "
            "--gradient_accumulation_steps 1, or choose an algorithm with local steps.",
        ),
        (
            plan.spare and (algorithm.asynchronous or not algorithm.shares),
            f"{name} does not wait for a cohort, so none of its clients are spare: leave out --over_selection.",
        ),
        (
            plan.everywhere and algorithm.asynchronous,
            f"{name} waits for no cohort, so public_data cannot be part of every one: write --public_share, or choose "
            "a synchronous algorithm.",
        ),
        (
            plan.quorum > 0 and (algorithm.asynchronous or not algorithm.shares),
            f"{name} waits for no cohort, so there is no quorum of one: leave out --min_clients.",
        ),
    ]


def _placement(plan: Plan) -> list[tuple[bool, str]]:
    algorithm, sharing, spread = plan.algorithm, plan.sharing, plan.parallel != "none"
    name, how = type(algorithm).__name__, type(sharing.lora).__name__
    return [
        (
            spread and plan.local.kind != "gradients",
            f"{name} learns without gradients, which are all that is spread over processes: write --parallel none.",
        ),
        (
            spread and not algorithm.plain_steps,
            f"{name} bends every local step by values of its own, which are not spread over processes: write "
            "--parallel none, or choose an algorithm with plain local steps (fedavg, diloco, fedadam, ...).",
        ),
        (
            spread and (algorithm.personal or sharing.keeps or plan.personal_steps > 0 or bool(sharing.ranks)),
            "Clients' own models, parts and ranks are not spread over processes: write --parallel none, or leave them "
            "out.",
        ),
        (
            spread and not sharing.lora.plain,
            f"{how} is not spread over processes: write --lora_aggregation average, or --parallel none.",
        ),
        (
            spread and not plan.objective.by_token,
            f"Several processes train one model on next tokens, and {type(plan.objective).__name__} does not: write "
            "--parallel none.",
        ),
        (
            plan.offloaded and bool(sharing.lora.shape or sharing.lora.frozen),
            f"{how} needs the layers of the base at hand, and they wait elsewhere: write --lora_aggregation average, "
            "or drop --model_offload.",
        ),
    ]
