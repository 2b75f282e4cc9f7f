"""Compatibility rules of clusters, of clients with some of the layers, and of personal models."""

from __future__ import annotations

from weft.core.types import DELTA
from weft.federation.plan import Plan
from weft.federation.remedies import ALGORITHM, LORA, Refusal, name_of


def clusters(plan: Plan) -> list[Refusal]:
    """Return the rules of clusters: several models, of which each client chooses one."""
    algorithm, lora = plan.algorithm, plan.sharing.lora
    several, single = algorithm.choice is not None, "leave out --cluster"
    stays = algorithm.stateful_clients or algorithm.turns is not None or not algorithm.shares
    stays = stays or algorithm.adds_up  # a client's part would be in the sum of one model, then in that of another
    stays = stays or algorithm.personal is not None or algorithm.one_step
    return [
        Refusal(
            several and (stays or algorithm.buffer is not None),
            f"Clusters are several models that clients move between, and {name_of(algorithm)} keeps something of one "
            "model at its clients, or waits for no cohort",
            [single, ALGORITHM],
        ),
        Refusal(
            several and algorithm.shares and DELTA not in algorithm.streams,
            "Clusters are several models, each moved by what clients add to its parameters, and with "
            f"{name_of(algorithm)} clients send something else",
            [single, ALGORITHM],
        ),
        Refusal(
            several and (lora.single_updates or lora.shape in ("side", "twin") or bool(lora.personal_kinds)),
            f"{type(lora).__name__} keeps a product or a part of one model, and clusters are several",
            [LORA, single],
        ),
    ]


def depths(plan: Plan) -> list[Refusal]:
    """Return the rules of clients that have some of the model's layers."""
    algorithm, sharing, lora = plan.algorithm, plan.sharing, plan.sharing.lora
    fewer, all_layers = bool(sharing.layers), "leave out --client_layers"
    unfit = algorithm.streams != (DELTA,) or bool(algorithm.scalars) or algorithm.one_step or algorithm.pools_data
    unfit = unfit or not algorithm.shares or algorithm.stateful_clients or algorithm.local != "gradients"
    unfit = unfit or algorithm.buffer is not None or algorithm.turns is not None
    personal = sharing.keeps or plan.personal_steps > 0 or algorithm.choice is not None
    remedies = ["leave out --share, --personal_steps and --cluster"] if personal and not unfit else []
    mean = type(plan.privacy if plan.privacy.bounded else plan.aggregator).__name__
    return [
        Refusal(
            fewer and (unfit or personal or algorithm.personal is not None),
            f"With client_layers clients have parts of one model, and {name_of(algorithm)}, or what clients keep for "
            "themselves, needs the whole",
            [all_layers, *remedies, ALGORITHM],
        ),
        Refusal(
            fewer and (lora.single_updates or bool(lora.shape)),
            f"{type(lora).__name__} combines the factors of whole models, and client_layers gives parts",
            [LORA, all_layers],
        ),
        Refusal(
            fewer and (plan.trainable == "prompt" or plan.parallel != "none" or plan.offloaded),
            "client_layers leaves out layers of a model that is whole in one process, with what is trained in them",
            [all_layers, "leave out prompts, --parallel and --model_offload"],
        ),
        Refusal(
            fewer and (plan.privacy.bounded or not plan.aggregator.additive),
            f"A mean over those who have a layer is not the one that {mean} is made for",
            [all_layers],
        ),
    ]


def personal(plan: Plan) -> list[Refusal]:
    """Return the rules of personal models."""
    algorithm, sharing = plan.algorithm, plan.sharing
    name = name_of(algorithm) if algorithm.choice is None else "--cluster"
    sharer = "share" if sharing.patterns else type(sharing.lora).__name__
    instead = "leave out --share" if sharing.patterns else LORA
    shared_only = ALGORITHM.with_description("an algorithm with a shared model only")
    several = algorithm.personal is not None or algorithm.choice is not None
    reason = "has no clients to make personal steps" if algorithm.pools_data else "makes personal models already"
    return [
        Refusal(
            sharing.keeps and not algorithm.shares,
            f"{sharer} says which parameters travel, but with {name} none do",
            [instead, ALGORITHM.with_description("a federated algorithm")],
        ),
        Refusal(
            sharing.keeps and several,
            f"{sharer} and {name} each give every client a model of its own",
            [instead, shared_only if algorithm.choice is None else "leave out --cluster"],
        ),
        Refusal(
            plan.personal_steps > 0 and (several or algorithm.pools_data),
            f"{name} {reason}",
            ["leave out --personal_steps"],
        ),
    ]
