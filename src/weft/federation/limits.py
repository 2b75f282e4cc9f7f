"""Compatibility rules of local work: steps, number and speed of clients, placement of the model."""

from __future__ import annotations

from weft.federation.plan import Plan
from weft.federation.remedies import ALGORITHM, LORA, Refusal, name_of


def local_work(plan: Plan) -> list[Refusal]:
    """Return the rules of local training: gradients, searches, directions, words."""
    algorithm, lora, kind = plan.algorithm, plan.sharing.lora, plan.local.kind
    name, own_parameters = name_of(algorithm), plan.personal_steps > 0 or plan.sharing.private
    bends = not algorithm.plain_steps or algorithm.uses_moments or algorithm.one_step or algorithm.turns is not None
    bends = bends or (algorithm.stateful_clients and algorithm.shares)
    rebuilds = kind == "directions" or algorithm.rebuild is not None
    several = algorithm.choice is not None
    method = "text" if algorithm.local == "words" else "black_box"
    return [
        Refusal(
            kind == "search" and (algorithm.local not in ("search", "gradients") or bends),
            f"{name} needs gradients or an optimizer's state, and a black box has neither",
            [ALGORITHM],
        ),
        Refusal(
            kind == "words" and algorithm.local != "words" and algorithm.shares and not algorithm.pools_data,
            f"{name} averages parameters, and a text prompt has none",
            [ALGORITHM],
        ),
        Refusal(
            kind == "words" and algorithm.pools_data and plan.aggregator.additive and not algorithm.adds_mean,
            f"{name} cannot train a text prompt",
            [ALGORITHM],
        ),
        Refusal(
            kind != "gradients" and own_parameters,
            "Personal steps and private vectors are trained by gradients, and there are none here",
            ["leave out --personal_steps and --private_tokens", "write --prompt_method soft"],
        ),
        Refusal(
            kind == "gradients" and algorithm.local != "gradients",
            f"{name} is made for prompts that are searched without gradients",
            [f"write --prompt_method {method}", ALGORITHM.with_description("another algorithm")],
        ),
        Refusal(
            rebuilds and (plan.sharing.keeps or several or lora.alternates or lora.shape != ""),
            f"{name} rebuilds all trained parameters from those at the start of the run",
            ["leave out --share and --cluster, and write --lora_aggregation average"],
        ),
        Refusal(
            rebuilds and (bool(plan.sharing.ranks) or plan.local.public_share > 0),
            f"{name} has one model of one shape and one set of rows",
            ["leave out --client_ranks and --public_share"],
        ),
    ]


def conditions(plan: Plan) -> list[Refusal]:
    """Return the rules of slow, over-selected and missing clients."""
    algorithm = plan.algorithm
    name, waits = name_of(algorithm), algorithm.buffer is None
    return [
        Refusal(
            plan.slow_clients and not algorithm.partial_work and waits,
            f"{name} needs every client to make all its steps, but client_speed lets some make fewer",
            ["leave out --client_speed", ALGORITHM.with_description("an algorithm that takes partial work")],
        ),
        Refusal(
            algorithm.uses_moments and not plan.local.optimizer.plain,
            f"{name} works with AdamW's moments in full, which {plan.local.optimizer.kind} does not have",
            ["write --optimizer adamw", ALGORITHM.with_description("another algorithm")],
        ),
        Refusal(
            algorithm.one_step and (plan.local.steps != 1 or plan.local.accumulation != 1),
            f"{name} exchanges the gradient of every step, so a round is one step",
            [
                "write --max_steps 1 and --gradient_accumulation_steps 1",
                ALGORITHM.with_description("an algorithm with local steps"),
            ],
        ),
        Refusal(
            algorithm.early is not None and (plan.sampled or plan.over_selected),
            f"{name} with a delay goes on at every client while its update travels, and here some clients miss rounds",
            ["write a --sample_clients of all clients, without over_selection", "leave out delay in --fed_args"],
        ),
        Refusal(
            plan.over_selected and not (waits and algorithm.shares),
            f"{name} does not wait for a cohort, so none of its clients are spare",
            ["leave out --over_selection"],
        ),
        Refusal(
            plan.everywhere and not waits,
            f"{name} waits for no cohort, so public_data cannot be part of every one",
            ["write --public_share", ALGORITHM.with_description("a synchronous algorithm")],
        ),
        Refusal(
            plan.quorum > 0 and not (waits and algorithm.shares),
            f"{name} waits for no cohort, so it has no quorum",
            ["leave out --min_clients"],
        ),
    ]


def placement(plan: Plan) -> list[Refusal]:
    """Return the rules of a model that is spread over processes, or offloaded."""
    algorithm, sharing, spread = plan.algorithm, plan.sharing, plan.parallel != "none"
    name, aggregation, unsplit = name_of(algorithm), type(sharing.lora).__name__, "write --parallel none"
    return [
        Refusal(
            spread and plan.local.kind != "gradients",
            f"{name} learns without gradients, and only gradients can be computed by several processes",
            [unsplit],
        ),
        Refusal(
            spread and not algorithm.plain_steps,
            f"{name} changes every local step by values that are not spread over processes",
            [unsplit, ALGORITHM.with_description("an algorithm with plain local steps")],
        ),
        Refusal(
            spread and algorithm.early is not None,
            f"{name} with a delay trains before a task has come, and several processes begin one together",
            [unsplit, "leave out delay in --fed_args"],
        ),
        Refusal(
            spread and plan.protection.sum_only,
            f"{type(plan.protection).__name__} seals an update in one process, and several have parts of the messages",
            [unsplit, "write --protection none"],
        ),
        Refusal(
            spread and (plan.own_models or bool(sharing.ranks)),
            "Clients' own models, parts and ranks are not spread over processes",
            [unsplit, "leave them out"],
        ),
        Refusal(
            spread and not sharing.lora.plain,
            f"{aggregation} is not spread over processes",
            [LORA, unsplit],
        ),
        Refusal(
            spread and not plan.objective.by_token,
            f"Several processes train one model on next tokens, and {type(plan.objective).__name__} does not",
            [unsplit],
        ),
        Refusal(
            plan.offloaded and bool(sharing.lora.shape or sharing.lora.frozen),
            f"{aggregation} needs the base model's layers in memory, and model_offload moves them out",
            [LORA, "leave out --model_offload"],
        ),
    ]
