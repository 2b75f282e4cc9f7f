"""Compatibility rules of aggregators that are no mean, and of attacks that are simulated against them."""

from __future__ import annotations

from weft.core.exchange import Codec
from weft.core.types import DELTA
from weft.federation.own_aggregator import needed
from weft.federation.plan import Plan
from weft.federation.remedies import AGGREGATOR, ALGORITHM, LORA, WEIGHTING, Refusal, name_of
from weft.federation.rules import compares_norms


def robust(plan: Plan) -> list[Refusal]:
    """Return the rules of aggregators that look at single updates."""
    return [*_algorithms(plan), *_cohorts(plan)]


def _algorithms(plan: Plan) -> list[Refusal]:
    """Return the rules of the algorithm, and of what LoRA factors are made into."""
    algorithm, lora, rule = plan.algorithm, plan.sharing.lora, type(plan.aggregator).__name__
    name, no_mean = name_of(algorithm), not plan.aggregator.additive
    another = ALGORITHM.with_description("another algorithm")
    return [
        Refusal(
            no_mean and algorithm.adds_up,
            f"{name} adds up over rounds the mean of what clients send, and {rule} is no mean",
            [AGGREGATOR, another],
        ),
        Refusal(
            no_mean and algorithm.buffer is not None,
            f"{rule} compares updates that begin from the same parameters, and {name} mixes those of several versions",
            [AGGREGATOR, ALGORITHM.with_description("a synchronous algorithm")],
        ),
        Refusal(
            no_mean and algorithm.choice is not None,
            f"{rule} stands a number of attackers in the whole cohort, and in a cluster they may be the majority",
            [AGGREGATOR, "leave out --cluster"],
        ),
        Refusal(
            no_mean and algorithm.shares and not compares_norms(algorithm),
            f"{name} sends candidates with their scores, which {rule} cannot compare as vectors",
            [AGGREGATOR, another],
        ),
        Refusal(
            no_mean and lora.single_updates,
            f"{type(lora).__name__} takes the mean of all clients' products, past {rule}",
            [LORA, AGGREGATOR],
        ),
        Refusal(
            no_mean and bool(plan.sharing.ranks),
            f"Clients of smaller ranks send zeros where they have no component, and {rule} would count them as votes",
            ["leave out --client_ranks", AGGREGATOR],
        ),
        *_lengths(plan),
    ]


def _lengths(plan: Plan) -> list[Refusal]:
    """Return the rules of a length that is given: with several streams, each scaled to its spread, norms are no norms
    of updates."""
    aggregator, several = plan.aggregator, plan.algorithm.shares and len(plan.algorithm.like({})) > 1
    given = {"radius": getattr(aggregator, "radius", 0), "noise": getattr(aggregator, "noise", 0)}
    return [
        Refusal(
            several and bool(value),
            f"{type(aggregator).__name__} takes {parameter} for that of an update, and {name_of(plan.algorithm)} sends "
            "several streams, which are scaled to be compared",
            [f"write {parameter}=0 in --aggregator_args", AGGREGATOR, ALGORITHM.with_description("another algorithm")],
        )
        for parameter, value in given.items()
    ]


def _cohorts(plan: Plan) -> list[Refusal]:
    """Return the rules of the cohort, of weights, and of the server's own rows."""
    aggregator, rule = plan.aggregator, type(plan.aggregator).__name__
    updates, each = plan.updates_of(plan.cohort), plan.clients_of_update
    needs = needed(aggregator, updates) if plan.cohort else 0
    once, least = aggregator.counts_clients, needs * each - int(plan.everywhere)
    fewer = "write a smaller number of attackers in --aggregator_args"
    keep: int = getattr(aggregator, "keep", 0)
    most: int = getattr(aggregator, "most_kept", int)(updates)
    return [
        Refusal(
            needs > updates and plan.algorithm.shares,
            f"{rule} needs {needs} updates in a round to stand the attackers that it is asked to, and a round has "
            f"{updates}",
            [f"write --sample_clients {least}, of --num_clients {least} or more", fewer, AGGREGATOR],
        ),
        Refusal(
            bool(plan.cohort) and needs <= updates and keep > most,
            f"{rule} is to keep {keep} updates, and those of a round without the attackers are {most}",
            [f"write keep={most}, or leave keep out, in --aggregator_args", AGGREGATOR],
        ),
        Refusal(
            aggregator.wants_root and not plan.everywhere,
            f"{rule} compares updates with rows of the server's own, and there are none",
            ["add --public_data FILE (without --public_share)", AGGREGATOR],
        ),
        Refusal(
            plan.protection.grouped and (aggregator.wants_root or aggregator.follows_clients),
            f"{rule} has to know whose update is whose, and {type(plan.protection).__name__} shows sums of groups that "
            "are dealt anew in every round",
            [AGGREGATOR, "write --protection none"],
        ),
        Refusal(
            aggregator.wants_root and plan.over_selected,
            f"{rule} compares with the update of the server's own rows, which may come too late where the first ones "
            "are used",
            ["leave out --over_selection", AGGREGATOR],
        ),
        Refusal(
            aggregator.wants_loss and (plan.algorithm.one_step or DELTA not in plan.algorithm.streams),
            f"{rule} adds updates to the parameters to try them, and with {name_of(plan.algorithm)} clients send "
            "something else",
            [AGGREGATOR, ALGORITHM.with_description("another algorithm")],
        ),
        Refusal(
            once and plan.weighting.single_updates,
            f"{rule} counts every client once, and {type(plan.weighting).__name__} changes a client's weight",
            [WEIGHTING, AGGREGATOR],
        ),
        Refusal(
            once and plan.max_client_share < 1,
            f"{rule} counts every client once, so that max_client_share limits nothing",
            ["leave out --max_client_share", AGGREGATOR],
        ),
    ]


def attacks(plan: Plan) -> list[Refusal]:
    """Return the rules of attacks: what a simulation of them needs to see."""
    attack, algorithm, honest = plan.attack, plan.algorithm, "write --attack none"
    name, rule = type(attack).__name__, type(plan.aggregator).__name__
    changes = attack.sends
    encodes = type(plan.codec).encode is not Codec.encode
    hidden = type(plan.protection).__name__ if plan.protection.sum_only else type(plan.codec).__name__
    unlike = bool(plan.sharing.ranks or plan.sharing.layers) or plan.parallel != "none"
    return [
        Refusal(
            changes and (plan.protection.sum_only or encodes),
            f"{name} is made of the updates of other clients, and {hidden} changes them before they are sent",
            ["leave out --protection and --codec", honest],
        ),
        Refusal(
            changes and not (algorithm.shares and compares_norms(algorithm) and not algorithm.pools_data),
            f"{name} is an attack on updates, and with {name_of(algorithm)} clients send none",
            [honest, ALGORITHM.with_description("a federated algorithm")],
        ),
        Refusal(
            changes and unlike,
            f"{name} is made of updates of one shape, and here clients send parts of different ones",
            ["leave out --client_ranks, --client_layers and --parallel", honest],
        ),
        Refusal(
            bool(getattr(attack, "search", False)) and plan.aggregator.wants_loss,
            f"{name} searches its strength by trying the rule, and {rule} asks for the loss at every trial",
            ["leave out search in --attack_args", AGGREGATOR],
        ),
        Refusal(
            bool(attack.poisons) and plan.objective.rows not in attack.poisons,
            f"{name} changes {' and '.join(attack.poisons)}, and {type(plan.objective).__name__} learns from "
            f"{plan.objective.rows}",
            [honest],
        ),
    ]


def dishonest_servers(plan: Plan) -> list[Refusal]:
    """Return the rules of attacks in which the server changes the model that it sends."""
    attack, algorithm, honest = plan.attack, plan.algorithm, "write --attack none"
    name, codec = type(attack).__name__, plan.codec
    encodes = type(codec).encode is not Codec.encode
    encodes_tasks = type(plan.codec_down).encode_task is not Codec.encode_task
    hidden = type(plan.protection if plan.protection.sum_only else codec if encodes else plan.codec_down).__name__
    unlike = bool(plan.sharing.ranks or plan.sharing.layers) or plan.parallel != "none"
    return [
        Refusal(
            attack.changes_model
            and (
                algorithm.streams != (DELTA,)
                or algorithm.one_step
                or algorithm.pools_data
                or not algorithm.shares
                or algorithm.buffer is not None
                or algorithm.choice is not None
                or plan.local.kind != "gradients"
            ),
            f"{name} trains the one model that a server sends, and with {name_of(algorithm)} it sends none or several",
            [honest, ALGORITHM.with_description("another algorithm")],
        ),
        Refusal(
            attack.changes_model and (plan.protection.sum_only or encodes or encodes_tasks),
            f"{name} changes the parameters in messages, and {hidden} changes their form",
            ["leave out --protection, --codec and --codec_down", honest],
        ),
        Refusal(
            attack.changes_model and (unlike or plan.sharing.lora.single_updates),
            f"{name} adds to the factors that every client sends, and here clients send others",
            ["leave out --lora_aggregation, --client_ranks, --client_layers and --parallel", honest],
        ),
        Refusal(
            attack.changes_model and (plan.privacy.bounded or plan.privacy.in_steps),
            f"{name} trains without noise, and {type(plan.privacy).__name__} bounds what is added to the model",
            ["leave out --privacy_unit", honest],
        ),
    ]
