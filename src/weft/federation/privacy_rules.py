"""Compatibility rules of bounded privacy: what may be computed from a cohort whose clients are protected."""

from __future__ import annotations

from weft.federation.plan import Plan
from weft.federation.remedies import ALGORITHM, Refusal, name_of, summed

OPEN = "leave out --privacy_unit"


def in_steps(plan: Plan) -> list[Refusal]:
    """Return the rules of privacy of rows: every local step bounds and hides single units."""
    algorithm, inside, private = plan.algorithm, plan.privacy.in_steps, type(plan.privacy).__name__
    name, learner = name_of(algorithm), type(plan.objective).__name__
    return [
        Refusal(
            inside and not plan.local.hides_units,
            f"{name} learns without gradients here, and {private} bounds the gradients of single rows",
            ["write --fed_alg fedavg", "write --privacy_unit client", "write --prompt_method soft"],
        ),
        Refusal(
            inside and not plan.objective.separable,
            f"{learner} has no loss of single rows, and {private} bounds what each adds",
            [
                plan.objective.separable_with or "use `weft sft`, `weft pretrain` or `weft dpo`",
                "write --privacy_unit client",
            ],
        ),
        Refusal(
            inside and algorithm.batch_loss,
            f"{name} adds a term to the loss of several rows together, and {private} bounds what each adds",
            [ALGORITHM.with_description("an algorithm without it"), "write --privacy_unit client"],
        ),
        Refusal(
            inside and (plan.parallel != "none" or plan.offloaded),
            f"{private} needs the gradients of single rows in one process, with all layers in memory",
            ["leave out --parallel and --model_offload", "write --privacy_unit client"],
        ),
        Refusal(
            inside and algorithm.early is not None,
            f"{name} with a delay trains before a task has come, and {private} draws its noise for one task",
            ["leave out delay in --fed_args", OPEN],
        ),
        Refusal(
            inside and algorithm.choice is not None,
            f"A client chooses one of several models by the loss of its rows, which {private} does not hide",
            ["leave out --cluster", OPEN],
        ),
        Refusal(
            inside and plan.weighting.single_updates,
            f"{type(plan.weighting).__name__} weighs clients by numbers of their rows, which {private} hides",
            ["write --client_weight size", OPEN],
        ),
        Refusal(
            inside and (plan.everywhere or plan.local.public_share > 0),
            f"{private} hides each row of a client, and public_data mixes in rows that need no hiding",
            ["leave out --public_data and --public_share", OPEN],
        ),
    ]


def protected(plan: Plan) -> list[Refusal]:
    """Return the rules of privacy of clients: all that the server does follows from one noisy sum."""
    algorithm, bounded, private = plan.algorithm, plan.privacy.bounded, type(plan.privacy).__name__
    name, other = name_of(algorithm), ALGORITHM.with_description("an algorithm that steps by the mean update")
    return [
        Refusal(
            bounded and not algorithm.shares,
            f"{name} sends no updates, so there is nothing for {private} to protect",
            [OPEN, other],
        ),
        Refusal(
            bounded and algorithm.choice is not None,
            f"Which of several models a client chose is a fact about the client that {private} does not cover",
            ["leave out --cluster", OPEN],
        ),
        Refusal(
            bounded and any(one is not None for one in (algorithm.buffer, algorithm.turns, algorithm.early)),
            f"{name} mixes updates of several rounds, and {private} accounts for one bounded sum in each",
            [OPEN, other],
        ),
        Refusal(
            bounded and not algorithm.sums_updates,
            f"{name} looks at single updates, and {private} protects their sum",
            [*summed(algorithm), OPEN, other],
        ),
        Refusal(
            bounded and bool(algorithm.scalars),
            f"{name} sends single numbers beside its update, which the noise of {private} would drown",
            [OPEN, other],
        ),
        Refusal(
            bounded and plan.over_selected,
            f"{private} divides by the size of the cohort, and with over_selection only the fastest count",
            ["leave out --over_selection", OPEN],
        ),
        Refusal(
            bounded and (plan.max_update_norm > 0 or plan.max_client_share < 1),
            f"max_update_norm and max_client_share compare clients with others, and {private} bounds each by itself",
            ["leave out --max_update_norm and --max_client_share"],
        ),
        Refusal(
            bounded and plan.privacy.noise_in_shares and plan.quorum == 0,
            "With noise_at client the noise is made of clients' shares, and nothing says of how many at least",
            ["add --min_clients N", "write --noise_at server"],
        ),
        Refusal(
            plan.protection.grouped and plan.protection.smallest_sum < plan.shares_of_noise,
            f"The noise is made of {plan.shares_of_noise} shares, and {type(plan.protection).__name__} opens sums of "
            f"groups of {plan.protection.smallest_sum}",
            [f"write --group_size {plan.shares_of_noise}", "leave out --group_size"],
        ),
    ]
