"""What the console is told of a round beside its numbers: lost updates, excluded clients, retries, reward faults."""

from __future__ import annotations

from collections.abc import Iterator

from weft.federation.loop import RoundDone, set_aside
from weft.json_types import JsonObject


def notes(
    result: RoundDone, record: JsonObject, retries: int, max_bad: int, *, hides: bool, trusted: str = ""
) -> Iterator[str]:
    """Yield sentences on a round that was not repeated.

    Args:
        result: of the round.
        record: its line of metrics.jsonl.
        retries: requests to an endpoint that were sent again.
        max_bad: bad updates after which a client is excluded.
        hides: whether a secret chose the cohort, so that nothing may say who was in it.
        trusted: the client that has the server's own rows; "": none has.
    """
    place, failures = f"round {record['round']}", result.record.failures
    if retries:
        yield f"{place}: {retries} requests to the endpoint were retried."
    if failures and hides:
        yield f"{place}: an update was dropped; whose is not said, since a secret chose who takes part."
    excluded = set_aside(result.state, max_bad)
    for client, reason in () if hides else failures.items():
        yield f"{place}: the update of '{client}' was dropped: {reason}."
        if client in result.record.left:
            yield f"'{client}' is asked no more."
        if client in excluded and client in result.record.bad:
            yield f"'{client}' sent {max_bad} bad updates and is excluded from further rounds."
    if result.record.late:
        yield f"{place}: {result.record.late} replies arrived late or more than once."
    if faults := record.get("reward_faults"):
        words = ", ".join(f"{count} {fault.replace('_', ' ')}" for fault, count in faults.items())
        yield f"{place}: rewards that failed count as 0 ({words})."
    others = [client for client in record["clients"] if client != trusted]
    if others and set(others) <= set(result.record.flagged):
        yield (
            f"{place}: the aggregator flags every client, so that no update counts: write another --aggregator where "
            "the updates of honest clients are like each other, or unlike the server's own."
        )
    if not record["clients"] and record["failures"]:
        yield f"{place}: no update could be used; the model is unchanged."
