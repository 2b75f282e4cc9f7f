"""The flags of a model behind an endpoint for `weft evaluate`, and the tasks that it can be asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from weft.errors import ConfigError
from weft.keys.secrets import fault

if TYPE_CHECKING:
    from weft.launch.subject import Subject
    from weft.tasks.declaration import EvalTask
    from weft.tasks.endpoint_model import EndpointModel

DEFAULTS = {"model": None, "key": "OPENAI_API_KEY", "timeout": 60.0, "retries": 4, "parallel": 4}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an endpoint."""
    add = parser.add_argument
    add("--endpoint", metavar="URL", help="an OpenAI-compatible API with the model, in place of MODEL_OR_RUN")
    add("--endpoint_model", metavar="NAME", help="the model's name there [the only one that it has]")
    add("--endpoint_key", metavar="VARIABLE", help="variable with its key [OPENAI_API_KEY]")
    add("--endpoint_timeout", type=float, metavar="S", help="seconds to wait for an answer of the endpoint [60]")
    add("--endpoint_retries", type=int, metavar="N", help="retries of a failed request to the endpoint [4]")
    add("--endpoint_parallel", type=int, metavar="N", help="requests to the endpoint at a time [4]")


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags of endpoints that do not go together, or that hold a secret; fill in defaults.

    Raises:
        ConfigError: the message says what to write.
    """
    given = [name for name in DEFAULTS if getattr(arguments, f"endpoint_{name}") is not None]
    if arguments.endpoint is None and given:
        raise ConfigError(f"--endpoint_{given[0]} is of a model behind an API: add --endpoint URL, or leave it out.")
    if (arguments.endpoint is None) == (arguments.model is None):
        what = "Nothing is named" if arguments.model is None else f"Both '{arguments.model}' and --endpoint are named"
        raise ConfigError(f"{what}: write a run, a model, or --endpoint URL, and one of them alone.")
    names = ("endpoint", "endpoint_key", "judge_endpoint", "judge_key")
    if (why := fault({name: getattr(arguments, name) for name in names})) is not None:
        raise ConfigError(why)
    for name in ("endpoint", "judge_endpoint"):
        url = getattr(arguments, name)
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigError(f"--{name} is '{url}', which is no URL: write one such as http://127.0.0.1:8000/v1.")
    for name, value in DEFAULTS.items():
        if getattr(arguments, f"endpoint_{name}") is None:
            setattr(arguments, f"endpoint_{name}", value)
    for name, least in (("timeout", 0.001), ("retries", 0), ("parallel", 1)):
        if not getattr(arguments, f"endpoint_{name}") >= least:
            value = getattr(arguments, f"endpoint_{name}")
            raise ConfigError(f"--endpoint_{name} is {value}: write {'more' if name == 'timeout' else least} or more.")


def reachable(
    arguments: argparse.Namespace, tasks: list[EvalTask], kinds: Mapping[str, type]
) -> tuple[Subject, list[EvalTask]]:
    """Return the model behind the endpoint, and the tasks that it can be asked; the others are named, and why.

    Args:
        arguments: of the command line.
        tasks: that are wanted.
        kinds: of requests, by the task's name.

    Raises:
        ConfigError: it can be asked none.
        RunError: it cannot be reached.
    """
    from weft.launch.endpoint_subject import of_endpoint
    from weft.models.endpoint import Endpoint

    endpoint = Endpoint(
        arguments.endpoint,
        arguments.endpoint_model or "",
        key=arguments.endpoint_key,
        timeout=arguments.endpoint_timeout,
        retries=arguments.endpoint_retries,
        parallel=arguments.endpoint_parallel,
    )
    subject, lacks = of_endpoint(endpoint, set(kinds.values()), chat=arguments.apply_chat_template)
    sentences = []
    for why in dict.fromkeys(lacks.values()):
        names = [task.name for task in tasks if lacks.get(kinds[task.name]) == why]
        if names:
            sentences.append(f"The endpoint {endpoint.url} cannot be asked {', '.join(names)}: {why}.")
    able = [task for task in tasks if kinds[task.name] not in lacks]
    if not able:
        raise ConfigError(" ".join(sentences))
    for sentence in sentences:
        print(f"weft: left out: {sentence}", file=sys.stderr)
    return subject, able


def cost(model: EndpointModel) -> str:
    """Return a sentence on what was sent to the endpoint since it was reached."""
    tally, (prompt, completion) = model.endpoint.tally(), model.endpoint.tokens()
    requests, repeats = int(tally["endpoint_requests"]), int(tally["endpoint_retries"])
    return (
        f"weft: the endpoint was sent {requests} requests ({repeats} repeated), {prompt} tokens of prompts and "
        f"{completion} of replies{known_before(model.known, 'replies')}."
    )


def known_before(count: int, what: str) -> str:
    """Return the end of a sentence on cost: what an earlier command had paid for; "" if nothing."""
    return f"; {count} {what} of an earlier command were used again" if count else ""
