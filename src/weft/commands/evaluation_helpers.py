"""What tasks take beside a model: a sandbox for the programs that it writes, and a judge of its answers."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from weft.commands.evaluation_endpoint import known_before
from weft.errors import ConfigError
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from weft.tasks.declaration import EvalTask
    from weft.tasks.judge import Judge
    from weft.tasks.opponent import Answers
    from weft.tasks.requests import Item, Record, Reply
    from weft.tasks.runner import Say
    from weft.tasks.sandbox import Isolation

    Finish = Callable[[EvalTask, Sequence[Item], Sequence[Reply]], list[Record]]

JUDGEMENTS = "judgements.jsonl"
"""In the folder of an evaluation: what was paid for."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sandbox and of the judge."""
    parser.add_argument(
        "--code_sandbox", metavar="COMMAND", help="runs a program from standard input, such as a container [bubblewrap]"
    )
    parser.add_argument(
        "--allow_code_execution", choices=["unsafe"], help="run programs of the model without a sandbox, if need be"
    )
    parser.add_argument("--judge_endpoint", metavar="URL", help="an OpenAI-compatible API that rates answers")
    parser.add_argument("--judge_model", metavar="NAME", help="the judge's name at its endpoint")
    parser.add_argument(
        "--judge_key", default="OPENAI_API_KEY", metavar="VARIABLE", help="variable with its key [OPENAI_API_KEY]"
    )
    parser.add_argument(
        "--against", metavar="FOLDER", help="have the judge compare with the answers of this evaluation, in both orders"
    )
    parser.add_argument("--judge_templates", metavar="FILE", help="FastChat's judge prompts instead of Weft's")
    parser.add_argument(
        "--judge_price", nargs=2, type=float, metavar=("IN", "OUT"), help="of a million tokens, to add up the cost"
    )


@dataclass(frozen=True)
class Helpers:
    """What the tasks of one evaluation take."""

    arguments: argparse.Namespace
    isolation: Isolation | None = None
    opponent: Answers | None = None
    """Another model's answers, with which a judge compares."""

    def finish(self, task: EvalTask, folder: Path) -> Finish | None:
        """Return what makes records of a task's replies; None: its scorer does so alone."""
        if task.scorer.needs == "code":
            assert self.isolation is not None
            return _program_records(self.isolation)
        if task.scorer.needs == "judge":
            others = None if self.opponent is None else self.opponent[task.name]
            return _rated_records(_judge(self.arguments, folder / JUDGEMENTS), others)
        return None


def at_hand(tasks: list[EvalTask], folders: list[Path], *, alone: bool) -> list[EvalTask]:
    """Return the tasks whose data is at hand, and say what the others need.

    Raises:
        ConfigError: none is.
    """
    from weft.tasks.rows import missing

    lacks = {task.name: why for task in tasks if (why := missing(task, folders)) is not None}
    if len(lacks) == len(tasks):
        name, why = next(iter(lacks.items()))
        rest = "" if alone else f" The others of the {len(tasks)} lack theirs too: `weft tasks` lists them."
        raise ConfigError(f"The data of the task '{name}' is not at hand: {why}.{rest}")
    for name, why in lacks.items():
        print(f"weft: the task '{name}' is left out, because its data is not at hand: {why}.", file=sys.stderr)
    return [task for task in tasks if task.name not in lacks]


def runnable(tasks: list[EvalTask], arguments: argparse.Namespace) -> tuple[list[EvalTask], Helpers]:
    """Return the tasks that can be scored here, and what they take; the others are named, and why.

    Raises:
        ConfigError: none can be scored, or a flag of the judge lacks another one.
    """
    if (arguments.judge_endpoint is None) != (arguments.judge_model is None):
        lacking = "--judge_model NAME" if arguments.judge_model is None else "--judge_endpoint URL"
        raise ConfigError(f"A judge has an endpoint and a name there: add {lacking}.")
    if arguments.judge_price is not None and min(arguments.judge_price) < 0:
        raise ConfigError(
            f"--judge_price is {min(arguments.judge_price):g}: write what a million tokens cost, 0 or more."
        )
    whys: dict[str, str] = {}
    isolation = None
    if any(task.scorer.needs == "code" for task in tasks):
        from weft.tasks.isolation import detect

        try:
            isolation = detect(arguments.code_sandbox, arguments.allow_code_execution == "unsafe")
            print(f"weft: {isolation.words()}", file=sys.stderr)
        except ConfigError as error:
            whys["code"] = str(error)
    if arguments.judge_endpoint is None:
        whys["judge"] = "A judge rates the answers: add --judge_endpoint URL and --judge_model NAME."
    out = [task for task in tasks if task.scorer.needs in whys]
    if len(out) == len(tasks):
        raise ConfigError(whys[out[0].scorer.needs])
    for need, why in whys.items():
        names = ", ".join(task.name for task in out if task.scorer.needs == need)
        if names:
            print(f"weft: these tasks are left out: {names}. {why}", file=sys.stderr)
    return [task for task in tasks if task not in out], Helpers(arguments, isolation)


def with_opponent(
    helpers: Helpers, arguments: argparse.Namespace, asked: Sequence[tuple[EvalTask, Sequence[Item]]]
) -> tuple[Helpers, JsonObject]:
    """Return the helpers with the answers that --against names, and the setting that says so.

    Raises:
        ConfigError: no task is judged, or that evaluation has no answers to the same items.
    """
    if arguments.against is None:
        return helpers, {}
    judged = [(task, items) for task, items in asked if task.scorer.needs == "judge"]
    if not judged:
        raise ConfigError("--against is of tasks that a judge rates, such as mt_bench, and none is put: leave it out.")
    from weft.tasks.opponent import read_answers

    answers, identity = read_answers(Path(arguments.against), judged)
    return replace(helpers, opponent=answers), {"against": identity}


def _judge(arguments: argparse.Namespace, file: Path) -> Judge:
    """Return the judge that the flags name; nothing is sent."""
    from weft.models.endpoint import Endpoint
    from weft.tasks.judge import Judge
    from weft.tasks.judge_templates import built_in, read_templates

    flags = ("--judge_endpoint", "--judge_model")
    endpoint = Endpoint(
        arguments.judge_endpoint,
        arguments.judge_model,
        key=arguments.judge_key,
        retries=8,
        parallel=8,
        flags=flags,
    )
    templates = read_templates(Path(arguments.judge_templates)) if arguments.judge_templates else built_in()
    prices = tuple(arguments.judge_price) if arguments.judge_price else None
    return Judge(endpoint, file, "server", templates=templates, prices=prices)


def _program_records(isolation: Isolation) -> Finish:
    """Return what runs the programs of replies and makes records of how they ended."""
    from weft.tasks.programs import Program
    from weft.tasks.runner import record_of

    def finish(task: EvalTask, items: Sequence[Item], replies: Sequence[Reply]) -> list[Record]:
        scorer = task.scorer
        assert isinstance(scorer, Program)
        ends = scorer.judged(items, replies, isolation)
        return [
            record_of(task, item, reply, dict(scorer.scores_of(own)), ended=[outcome.reason for outcome in own])
            for item, reply, own in zip(items, replies, ends, strict=True)
        ]

    return finish


def _rated_records(judge: Judge, others: Mapping[int, tuple[str, ...]] | None) -> Finish:
    """Return what has replies rated, and compared with another model's where there are `others`; says what it cost."""
    from weft.tasks.conversations import Rated
    from weft.tasks.runner import record_of

    def finish(task: EvalTask, items: Sequence[Item], replies: Sequence[Reply]) -> list[Record]:
        scorer = task.scorer
        assert isinstance(scorer, Rated)
        scores = scorer.judged(items, replies, judge)
        if others is not None:
            won = scorer.compared(items, replies, others, judge)
            same = sum(
                scorer.conversation(*one).answers == others[one[0].number] for one in zip(items, replies, strict=True)
            )
            if same:
                print(
                    f"weft: {same} of {len(items)} answers equal those that they are compared with, and tie.",
                    file=sys.stderr,
                )
            scores = [one | more for one, more in zip(scores, won, strict=True)]
        cost = judge.cost()
        spent = f", {cost.price:.2f} in the currency of --judge_price" if cost.price is not None else ""
        print(
            f"weft: the judge was sent {cost.requests} requests ({cost.repeats} repeated), {cost.prompt_tokens} tokens "
            f"of prompts and {cost.completion_tokens} of replies{spent}{known_before(cost.known, 'judgements')}.",
            file=sys.stderr,
        )
        return [
            record_of(task, item, reply, own, judge=judge.endpoint.model)
            for item, reply, own in zip(items, replies, scores, strict=True)
        ]

    return finish


def progress() -> Say:
    """Return what prints progress: over one line of a terminal, else a line every ten seconds."""
    begin = last = time.monotonic()

    def say(name: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{name}: {done} of {total}, {now - begin:.0f} s", end=end, file=sys.stderr, flush=True)
        elif done == total or now - last > 10:
            print(f"{name}: {done} of {total}, {now - begin:.0f} s", file=sys.stderr, flush=True)
            last = now

    return say
