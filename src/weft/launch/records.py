"""What is written down of a run: a line for each round and evaluation, and sums over all of them."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from weft.algorithms.clustered import CHOICE
from weft.config import RunConfig
from weft.core.declarations import TEXTS_REFUSED, TRAIN_LOSS, Metric, scores
from weft.core.fairness import fairness
from weft.core.metrics import summarise
from weft.core.tensors import num_bytes
from weft.core.types import Metrics, ServerState
from weft.federation.loop import RoundDone
from weft.federation.plan import Plan
from weft.federation.scores import Scores
from weft.json_types import JsonObject
from weft.launch.leaving import measured
from weft.launch.malicious import malicious_of, recognised
from weft.launch.mixtures import sampled
from weft.launch.population import Population
from weft.launch.results import has_shared, shared_of
from weft.launch.sample_answers import before_and_after
from weft.models.resident import Resident
from weft.rewards.answers import REWARD
from weft.rewards.score import FAULTS


@dataclass
class Tally:
    """Sums over the rounds so far; part of every checkpoint."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    train_loss: float | None = None
    product_errors: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """How many rounds have one, their sum and the largest."""
    failures: dict[str, int] = field(default_factory=dict)
    bad_updates: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    """The round in which a client left the run."""
    late_updates: int = 0
    reward_faults: dict[str, int] = field(default_factory=dict)
    evaluation: JsonObject | None = None
    tasks: JsonObject | None = None
    """The newest scores of evaluation tasks."""
    first_tasks: JsonObject | None = None
    """Those before the first round."""
    answers: JsonObject | None = None
    """Some answers to evaluation tasks, those of the newest scores."""
    first_answers: JsonObject | None = None
    flags: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Over all rounds: clients that were malicious, clients that were flagged, and those that were both."""
    best: JsonObject | None = None
    """As `weft.launch.best.BestRule.after` returns it."""

    def add(self, result: RoundDone, record: JsonObject) -> None:
        """Count a finished round."""
        self.seconds += result.seconds
        self.tokens += record["tokens"]
        self.steps += int(result.record.sums.get("steps", 0))
        self.bytes_up += record["bytes_up"]
        self.bytes_down += record["bytes_down"]
        if record["train_loss"] is not None:
            self.train_loss = record["train_loss"]
        if (error := record.get("product_error")) is not None:
            count, total, most = self.product_errors
            self.product_errors = [count + 1, total + error, max(most, error)]
        for fault, count in record.get("reward_faults", {}).items():
            self.reward_faults[fault] = self.reward_faults.get(fault, 0) + count
        for client in record.get("bad", []):
            self.bad_updates[client] = self.bad_updates.get(client, 0) + 1
        self.late_updates += record.get("late", 0)
        bad, flagged = set(record.get("malicious", [])), set(record.get("flagged", []))
        for place, some in enumerate((bad, flagged, bad & flagged)):
            self.flags[place] += len(some)
        for client in record.get("left", []):
            self.left[client] = record["round"]
        for client in record["failures"]:
            self.failures[client] = self.failures.get(client, 0) + 1

    def add_tasks(self, record: JsonObject, answers: JsonObject) -> None:
        """Take the scores of evaluation tasks, and some answers to them."""
        self.tasks, self.answers = record, answers
        if record["round"] == 0:
            self.first_tasks, self.first_answers = record, answers


def round_record(
    result: RoundDone, metrics: Sequence[Metric], malicious: Collection[str] = (), domains: Sequence[str] = ()
) -> JsonObject:
    """Return the line of metrics.jsonl for a round, counted from 1.

    Args:
        result: the round.
        metrics: what the run's objective declares beside the loss.
        malicious: clients that a simulated attack has lie.
        domains: of the run's mixture, by number.
    """
    record, sums, totals = result.record, result.record.sums, result.record.totals
    clients = max(1, len(record.clients))
    line: JsonObject = {
        "event": "repeated" if record.repeated else "round",
        "round": record.round + 1,
        "clients": list(record.clients),
        "train_loss": totals.value(TRAIN_LOSS),
        "tokens": int(sums.get("tokens", 0)),
        "examples": int(sums.get("rows", 0)),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "learning_rate": sums.get("learning_rate", 0.0) / clients,
        "failures": record.failures,
    }
    line |= {metric.name: value for metric in metrics if (value := totals.value(metric)) is not None}
    if REWARD in metrics and sums.get("answers"):
        line["reward_faults"] = {fault: int(count) for fault in FAULTS if (count := sums.get(f"reward_{fault}", 0.0))}
    if sums.get("texts_scored") and (refused := totals.value(TEXTS_REFUSED)) is not None:
        line["texts_scored"], line["texts_refused"] = int(sums["texts_scored"]), int(refused)
    if shares := sampled(domains, sums):
        line["mixture"] = shares
    if record.bad:
        line["bad"] = sorted(record.bad)
    optional = {
        "late": record.late or None,
        "over_selected": list(record.over_selected) or None,
        "product_error": record.product_error,
        "clock": result.clock,
        "flagged": list(record.flagged) or None,
        "left": sorted(record.left) or None,
    }
    line |= {name: value for name, value in optional.items() if value is not None}
    return line | (recognised(malicious, record.clients, record.flagged) if malicious else {})


def evaluation_record(
    round: int, scores: Scores, metrics: Sequence[Metric], left_out: Collection[str] = ()
) -> JsonObject:
    """Return the line of metrics.jsonl for an evaluation: over all rows, for each client, and how unlike clients are.

    Args:
        round: after which it was, counted from 1.
        scores: the counts and sums of each client, or, where they came sealed, of all together: `clients` is empty
            then, and `members` names who is in the sum.
        metrics: what the run's evaluator declares.
        left_out: clients that take no part in the training; their scores stand apart, under `left_out`.
    """
    apart = scores.within(left_out)
    record = {"event": "eval", "round": round} | _scores(scores.without(left_out), metrics)
    return record | ({"left_out": _scores(apart, metrics)} if apart.anybody else {})


def _scores(scores: Scores, metrics: Sequence[Metric]) -> JsonObject:
    clients = {client: summarise(metrics, [part]) | _cluster(part) for client, part in scores.clients.items()}
    record: JsonObject = {**summarise(metrics, scores.clients.values(), scores.sums)}
    groups, members = fairness(metrics, clients), sorted(name for one in scores.sums for name in one.members)
    record |= {"groups": groups} if groups else {}
    return record | {"clients": clients} | ({"members": members} if members else {})


def tasks_record(round: int, scores: JsonObject) -> JsonObject:
    """Return the line of metrics.jsonl for the evaluation tasks: scores by TASK/METRIC; round 0 is before the first."""
    return {"event": "tasks", "round": round, **scores}


def _cluster(metrics: Metrics) -> dict[str, int]:
    """Return which of several models a client chose, where there are several."""
    choices = [int(name.partition("/")[2]) for name in metrics if name.startswith(f"{CHOICE}/")]
    return {"cluster": choices[0]} if choices else {}


def summary_of(
    config: RunConfig, plan: Plan, model: Resident, population: Population, tally: Tally, state: ServerState
) -> JsonObject:
    """Return the numbers of a run that has come to its end, as summary.json has them."""
    evaluation, errors = tally.evaluation or {}, tally.product_errors
    summary: JsonObject = {
        "rounds": state.round,
        "attempts": state.round + state.attempts,
        "seconds": tally.seconds,
        "tokens": tally.tokens,
        "bytes_up": tally.bytes_up,
        "bytes_down": tally.bytes_down,
        # Data-parallel training sends the gradients of each step up and their mean down.
        "data_parallel_bytes": 2 * tally.steps * num_bytes(model.masters),
        "flop_utilisation": utilisation(plan.objective.rows, model, config.adapts, tally),
        "peak_memory_bytes": peak_memory(model.device),
        "train_loss": tally.train_loss,
        "product_error": errors[1] / errors[0] if errors[0] else None,
        "product_error_max": errors[2] if errors[0] else None,
        "eval": {
            metric.name: evaluation.get(metric.name)
            for metric in scores()
            if metric.always or metric.name in evaluation
        },
        "clients": evaluation.get("clients", {}),
        "models": {},
        "skew": population.split.get("skew", {}),
        "failures": tally.failures,
        "bad_updates": tally.bad_updates,
        "late_updates": tally.late_updates,
        "reward_faults": tally.reward_faults,
        "rows": population.counts,
        "choices": population.choices,
    }
    summary |= {"cleaning": population.split["cleaning"]} if "cleaning" in population.split else {}
    summary |= {name: evaluation[name] for name in ("groups", "left_out") if name in evaluation}
    if "members" in evaluation:
        summary |= {"members": evaluation["members"], "held_out_rows": evaluation["rows"]}
    summary |= {name: population.split[name] for name in ("contamination", "statistics") if name in population.split}
    if config.leave_when or tally.left:
        tested = measured(config, model, shared_of(config, plan, model, state)) if has_shared(plan) else {}
        summary |= {"left": tally.left, "leave_when": tested}
    if plan.attack.changes_updates or plan.attack.poisons or plan.attack.changes_model:
        bad, flagged, both = tally.flags
        summary["attack"] = {
            "name": config.attack,
            "malicious": list(malicious_of(config, population.names)),
            "precision": both / flagged if flagged else None,
            "recall": both / bad if bad else None,
        }
    if tally.tasks is not None:
        summary["tasks"] = {"first": tally.first_tasks, "last": tally.tasks}
        if tally.answers:
            summary["answers"] = before_and_after(tally.first_answers, tally.answers, tally.tasks["round"])
    return summary


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a matrix product on this machine, the best of some.

    Measured once a process. On a CPU the product is small and no other one begins after a tenth of a second: where
    bfloat16 is emulated, five products of 1024 x 1024 take ten seconds.
    """
    size = 512 if device.type == "cpu" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, spent = float("inf"), 0.0
    for _ in range(5):
        start_time = time.perf_counter()
        # The first product also pays for loading the kernel, so the best of several is taken.
        product = left @ right
        if device.type == "cuda":
            # Kernels are queued: without this only the time to queue them would be measured.
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start_time
        best, spent = min(best, seconds), spent + seconds
        if spent > 0.1:
            break
    del product
    return 2 * size**3 / best


def utilisation(rows: str, model: Resident, adapts: bool, tally: Tally) -> float | None:
    """Return the share of the machine's matrix rate that training on plain text came to; None for other rows.

    A weight costs 2 operations a token forward and 4 backward, 2 where it is frozen; one of an input embedding that
    is not the output's too costs none.
    """
    if rows != "text" or not tally.seconds:
        return None
    whole = model.model
    weights = sum(parameter.numel() for parameter in whole.parameters())
    inputs, outputs = whole.get_input_embeddings().weight, whole.get_output_embeddings().weight
    if inputs is not outputs:
        weights -= inputs.numel()
    rate: float = (4 if adapts else 6) * weights * tally.tokens / tally.seconds
    return rate / matrix_rate(model.device, model.dtype)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: on the GPU if it trains there, else in all."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # ru_maxrss is in bytes on macOS and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
