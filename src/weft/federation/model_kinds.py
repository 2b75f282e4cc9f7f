"""What cannot be combined with models that are not one and whole: clusters, parts by depth, and clients' own."""

from __future__ import annotations

from weft.core.types import DELTA
from weft.federation.plan import Plan
from weft.federation.remedies import ALGORITHM, LORA, Refusal, name_of


def clusters(plan: Plan) -> list[Refusal]:
    """Return the rules of several models that clients choose from."""
    algorithm, lora = plan.algorithm, plan.sharing.lora
    several, single = algorithm.choice is not None, "leave out --cluster"
    kept = algorithm.stateful_clients or algorithm.turns is not None or not algorithm.shares
    kept = kept or algorithm.adds_up  # a client's part would be in the sum of one model, then in that of another
    kept = kept or algorithm.personal is not None or algorithm.one_step
    return [
        Refusal(
            several and (kept or algorithm.buffer is not None),
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
            several and (lora.single_updates or lora.shape in ("side", "twin") or bool(lora.kept)),
            f"{type(lora).__name__} keeps a product or a part of one model, and clusters are several",
            [LORA, single],
        ),
    ]


def depths(plan: Plan) -> list[Refusal]:
    """Return the rules of clients that have some of a model's layers."""
    algorithm, sharing, lora = plan.algorithm, plan.sharing, plan.sharing.lora
    fewer, whole = bool(sharing.layers), "leave out --client_layers"
    other = algorithm.streams != (DELTA,) or bool(algorithm.scalars) or algorithm.one_step or algorithm.pools_data
    other = other or not algorithm.shares or algorithm.stateful_clients or algorithm.local != "gradients"
    other = other or algorithm.buffer is not None or algorithm.turns is not None
    own = sharing.keeps or plan.personal_steps > 0 or algorithm.choice is not None
    shared = ["leave out --share, --personal_steps and --cluster"] if own and not other else []
    mean = type(plan.privacy if plan.privacy.bounded else plan.aggregator).__name__
    return [
        Refusal(
            fewer and (other or own or algorithm.personal is not None),
            f"With client_layers clients have parts of one model, and {name_of(algorithm)}, or what clients keep for "
            "themselves, needs the whole",
            [whole, *shared, ALGORITHM],
        ),
        Refusal(
            fewer and (lora.single_updates or bool(lora.shape)),
            f"{type(lora).__name__} combines the factors of whole models, and client_layers gives parts",
            [LORA, whole],
        ),
        Refusal(
            fewer and (plan.trainable == "prompt" or plan.parallel != "none" or plan.offloaded),
            "client_layers leaves out layers of a model that is whole in one process, with what is trained in them",
            [whole, "leave out prompts, --parallel and --model_offload"],
        ),
        Refusal(
            fewer and (plan.privacy.bounded or not plan.aggregator.additive),
            f"A mean over those who have a layer is not the one that {mean} is made for",
            [whole],
        ),
    ]


def personal(plan: Plan) -> list[Refusal]:
    """Return the rules of models of the clients' own."""
    algorithm, sharing = plan.algorithm, plan.sharing
    name = name_of(algorithm) if algorithm.choice is None else "--cluster"
    what = "share" if sharing.patterns else type(sharing.lora).__name__
    instead = "leave out --share" if sharing.patterns else LORA
    other = ALGORITHM.where("an algorithm with a shared model only")
    several = algorithm.personal is not None or algorithm.choice is not None
    does = "has no clients to make personal steps" if algorithm.pools_data else "makes personal models already"
    return [
        Refusal(
            sharing.keeps and not algorithm.shares,
            f"{what} says which parameters travel, but with {name} none do",
            [instead, ALGORITHM.where("a federated algorithm")],
        ),
        Refusal(
            sharing.keeps and several,
            f"{what} and {name} each give every client a model of its own",
            [instead, other if algorithm.choice is None else "leave out --cluster"],
        ),
        Refusal(
            plan.personal_steps > 0 and (several or algorithm.pools_data),
            f"{name} {does}",
            ["leave out --personal_steps"],
        ),
    ]
