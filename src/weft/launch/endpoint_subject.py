"""A model behind an endpoint as what is evaluated, and what the endpoint can be asked, found out by short requests."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from weft.errors import ClientFailed, ConfigError, RunError
from weft.launch.subject import Subject
from weft.models.completions import ScoredText
from weft.models.endpoint import Endpoint, RequestRefused
from weft.tasks.endpoint_model import EndpointModel
from weft.tasks.requests import Choices, Text, Writing

NOT_THIS = (400, 404, 405, 422)
"""Codes by which servers refuse a kind of request that they do not know."""
FORMS: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("max_tokens", {"temperature": 0}),
    ("max_completion_tokens", {"temperature": 0}),
    ("max_completion_tokens", {}),
)
"""Forms of a request in a chat: the names of the longest answer differ, and some models take no temperature."""
PROBE = "One two three four."
NO_LOGPS = (
    "it returns no log-probabilities of texts (completions with echo and logprobs); use a server that does, such as "
    "vLLM's"
)
IN_CHAT = "log-probabilities are those of a text, not of a chat; leave --apply_chat_template out"
NO_FIRST = "it returns no log-probability of the first token of a text"
Lacks = dict[type, str]
"""By the kind of request: why the endpoint cannot be asked it."""


def of_endpoint(endpoint: Endpoint, kinds: Collection[type], *, chat: bool) -> tuple[Subject, Lacks]:
    """Find out what an endpoint can be asked.

    Args:
        endpoint: of the model; one whose name is empty takes the only model that the server has.
        kinds: of requests: Choices, Writing, Text.
        chat: texts are asked for in its chat.

    Raises:
        ConfigError: the endpoint refuses every request, such as without a key, or has several models.
        RunError: it cannot be reached.
    """
    try:
        endpoint.model = endpoint.model or _only_model(endpoint)
        lacks: Lacks = {}
        if {Choices, Text}.intersection(kinds):
            lacks |= dict.fromkeys((Choices, Text), IN_CHAT) if chat else _scoring(endpoint)
        model = EndpointModel(endpoint, chat=chat)
        if Writing in kinds:
            lacks |= _writing(model)
    except ClientFailed as failure:
        why = str(failure).removeprefix("the endpoint")
        raise RunError(f"The endpoint {endpoint.url}{why}; start it, then run the same command again.") from None
    identity = {"endpoint": endpoint.url, "endpoint_model": endpoint.model}
    folder = Path("evaluations") / (re.sub(r"[^\w.-]+", "_", endpoint.model.strip("/.")) or "model")
    return Subject(model, f"{endpoint.model} at {endpoint.url}", identity, folder), lacks


def _only_model(endpoint: Endpoint) -> str:
    try:
        names = endpoint.names()
    except RequestRefused as refusal:
        if refusal.code not in NOT_THIS:
            raise
        raise ConfigError(f"The endpoint {endpoint.url} does not list its models: add --endpoint_model NAME.") from None
    if len(names) != 1:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ConfigError(f"The endpoint {endpoint.url} has the models {shown}: add --endpoint_model NAME.")
    return names[0]


def _scoring(endpoint: Endpoint) -> Lacks:
    """Score one short text, and see whether its first token counts."""
    try:
        ((_, first),) = endpoint.likelihoods([ScoredText(PROBE, ((0, 1),))])
        ((_, count),) = endpoint.likelihoods([ScoredText(PROBE, ((3, len(PROBE)),))])
    except ConfigError as error:
        if isinstance(error, RequestRefused) and error.code not in NOT_THIS:
            raise
        return dict.fromkeys((Choices, Text), NO_LOGPS)
    if not count:
        return dict.fromkeys((Choices, Text), NO_LOGPS)
    return {} if first else {Text: NO_FIRST}


def _writing(model: EndpointModel) -> Lacks:
    """Have a few tokens written, and set the form of request that the endpoint takes."""
    endpoint = model.endpoint
    for length, greedy in FORMS if model.chat else FORMS[:1]:
        try:
            if model.chat:
                endpoint.chat([{"role": "user", "content": PROBE}], {length: 16, **greedy})
            else:
                endpoint.complete(PROBE, {length: 16, **greedy})
        except RequestRefused as refusal:
            if refusal.code not in NOT_THIS:
                raise
            code = refusal.code
        else:
            model.length, model.greedy = length, greedy
            return {}
    path, other = ("chat/completions", "leave") if model.chat else ("completions", "add")
    return {
        Writing: f"it refuses {path} ({code}); check --endpoint_model ({endpoint.model}), or {other} "
        f"--apply_chat_template{' out' if model.chat else ''}"
    }
