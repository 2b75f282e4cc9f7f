"""Compatibility rules of codecs: what loses information cannot go with what needs every number as it was."""

from __future__ import annotations

from weft.core.exchange import Codec
from weft.core.types import DELTA
from weft.federation.plan import Plan
from weft.federation.remedies import ALGORITHM, CODEC, CODEC_DOWN, LORA, Refusal, name_of

FEDERATED = ALGORITHM.with_description("a federated algorithm")


def codecs(plan: Plan) -> list[Refusal]:
    """Return the rules of both codecs."""
    return [*_up(plan), *_down(plan), *_both(plan)]


def _up(plan: Plan) -> list[Refusal]:
    """Return the rules of the codec of updates."""
    algorithm, codec, lossy = plan.algorithm, type(plan.codec).__name__, plan.codec.lossy
    name, plain = name_of(algorithm), "write --codec none"
    changes = type(plan.codec).encode is not Codec.encode
    return [
        Refusal(
            lossy and not algorithm.shares,
            f"{name} sends no updates, so there is nothing for {codec} to encode",
            [plain, FEDERATED],
        ),
        Refusal(
            lossy and algorithm.shares and (algorithm.local != "gradients" or DELTA not in algorithm.streams),
            f"{codec} encodes what clients add to parameters, and with {name} they send numbers that have to arrive as "
            "they are",
            [plain, ALGORITHM],
        ),
        Refusal(
            lossy and algorithm.adds_up,
            f"{name} adds up over rounds what clients send, and what {codec} keeps back would be missing in its sums",
            [plain, ALGORITHM],
        ),
        Refusal(
            changes and plan.privacy.bounded,
            f"{type(plan.privacy).__name__} bounds the norm of every update, and what is decoded from {codec} can be "
            "larger",
            [plain, "leave out --privacy_unit"],
        ),
    ]


def _down(plan: Plan) -> list[Refusal]:
    """Return the rules of the codec of tasks."""
    algorithm, codec, lossy = plan.algorithm, type(plan.codec_down).__name__, plan.codec_down.lossy
    name, plain = name_of(algorithm), "write --codec_down none"
    nothing = not algorithm.shares or algorithm.rebuild is not None
    return [
        Refusal(
            lossy and nothing,
            f"With {name} no parameters travel to clients, so there are none for {codec} to encode",
            [plain, FEDERATED],
        ),
        Refusal(
            lossy and not nothing and algorithm.local != "gradients",
            f"{codec} encodes parameters, and with {name} clients are sent what has to arrive as it is",
            [plain, ALGORITHM],
        ),
        Refusal(
            lossy and algorithm.buffer is not None,
            f"{codec} sends the difference from the version that a client holds, and with {name} clients begin at "
            "several versions in a round",
            [plain, ALGORITHM.with_description("a synchronous algorithm")],
        ),
        Refusal(
            lossy and algorithm.turns is not None,
            f"{codec} sends the difference of all parameters, and of {name} other parts travel in every round",
            [plain, "leave out fragments in --fed_args"],
        ),
    ]


def _both(plan: Plan) -> list[Refusal]:
    """Return the rules of either codec."""
    lora, refusals = plan.sharing.lora, []
    for key, codec, another in (("codec", plan.codec, CODEC), ("codec_down", plan.codec_down, CODEC_DOWN)):
        lossy, encoder, plain = codec.lossy, type(codec).__name__, f"write --{key} none"
        refusals += [
            Refusal(
                lossy and plan.algorithm.choice is not None,
                f"{encoder} keeps what it did not send of one model, and clusters are several",
                [plain, "leave out --cluster"],
            ),
            Refusal(
                lossy and not lora.keeps_basis,
                f"{type(lora).__name__} changes the basis of the factors in every round, and {encoder} adds in a round "
                "what it did not send in those before",
                [plain, LORA],
            ),
            Refusal(
                lossy and plan.parallel != "none",
                f"{encoder} encodes a client's whole parameters, and here several processes hold parts of them",
                [another, "write --parallel none"],
            ),
        ]
    return refusals
