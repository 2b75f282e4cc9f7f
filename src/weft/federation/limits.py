"""What cannot be combined with how clients work: their local steps, their number and speed, where the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.federation.plan import Plan


def local_work(plan: Plan) -> list[tuple[bool, str]]:
    """Return the rules of what clients learn by."""
    algorithm, lora, kind = plan.algorithm, plan.sharing.lora, plan.local.kind
    name, own = type(algorithm).__name__, plan.personal_steps > 0 or plan.sharing.private
    bends = not algorithm.plain_steps or algorithm.uses_moments or algorithm.one_step or algorithm.turns is not None
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
            along and (plan.sharing.keeps or algorithm.choice is not None or lora.alternates or lora.shape != ""),
            f"{name} makes all that is trained from what the run began with: leave out --share and --cluster, and "
            "write --lora_aggregation average.",
        ),
        (
            along and (bool(plan.sharing.ranks) or plan.local.public_share > 0),
            f"{name} has one model of one shape and one set of rows: leave out --client_ranks and --public_share.",
        ),
    ]


def conditions(plan: Plan) -> list[tuple[bool, str]]:
    """Return the rules of slow, spare and missing clients."""
    algorithm = plan.algorithm
    name = type(algorithm).__name__
    return [
        (
            plan.slow_clients and not algorithm.partial_work and algorithm.buffer is None,
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
            plan.over_selected and (algorithm.buffer is not None or not algorithm.shares),
            f"{name} does not wait for a cohort, so none of its clients are spare: leave out --over_selection.",
        ),
        (
            plan.everywhere and algorithm.buffer is not None,
            f"{name} waits for no cohort, so public_data cannot be part of every one: write --public_share, or choose "
            "a synchronous algorithm.",
        ),
        (
            plan.quorum > 0 and (algorithm.buffer is not None or not algorithm.shares),
            f"{name} waits for no cohort, so there is no quorum of one: leave out --min_clients.",
        ),
    ]


def placement(plan: Plan) -> list[tuple[bool, str]]:
    """Return the rules of where a model's layers are."""
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
            spread and (plan.own_models or bool(sharing.ranks)),
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
