"""A site policy in plain sentences: what the site accepts, and what it does not limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from weft.sites.policy import COUNTS, AcceptRules
from weft.sites.run_limits import MOST


def policy_in_words(accept: AcceptRules) -> Iterator[tuple[bool, str]]:
    """Yield for each rule of a policy whether it limits anything, and a sentence without a full stop."""
    for key in AcceptRules.model_fields:
        value = getattr(accept, key)
        words, unlimited = SENTENCES.get(key, (None, f"{key} is not limited"))
        yield (False, unlimited) if value is None else (True, f"{key} is {value}" if words is None else words(value))


def _models(value: dict[str, str | None]) -> str:
    if not value:
        return "no model is accepted: list names under accept: models"
    names = []
    for name, place in value.items():
        digest = place is not None and place.startswith("sha256:")
        where = f"with the hash {str(place)[7:23]}..." if digest else f"from '{place}'" if place else "of any weights"
        names.append(f"'{name}' {where}")
    return f"only these models are trained: {', '.join(names)}"


def _only(what: str) -> Callable[[list[str]], str]:
    return lambda value: f"only these {what} are accepted: {', '.join(value) or 'none'}"


def _report(value: list[str]) -> str:
    more = f", and what the metrics {', '.join(value)} need" if value else ""
    return f"the site reports how much work it did ({', '.join(COUNTS)}){more}, and no other metrics"


Words = Callable[[Any], str]
SENTENCES: dict[str, tuple[Words | None, str]] = {
    "models": (_models, ""),
    "objectives": (_only("objectives"), "every objective is accepted"),
    "trainable": (_only("kinds of training"), "LoRA, prompts and whole models may be trained"),
    "algorithms": (_only("algorithms"), "every algorithm is accepted"),
    "from_scratch": (
        lambda value: "models may be trained from scratch" if value else "no model is trained from scratch",
        "",
    ),
    "tokenizers": (
        lambda value: (
            f"besides the models' own, these tokenizers are accepted: {', '.join(value)}"
            if value
            else "only the models' own tokenizers are accepted"
        ),
        "",
    ),
    "domains": (
        lambda value: (
            f"a run may choose rows of these domains, by column or file: {', '.join(value)}"
            if value
            else "no run chooses rows by a column or by their files"
        ),
        "",
    ),
    "evaluations": (
        lambda value: "a run may evaluate a model without training" if value else "runs that only evaluate are refused",
        "",
    ),
    "statistics": (
        lambda value: (
            "a run may be told how long rows are, in which languages, and how often they have each label"
            if value
            else "nothing is told of the rows but how many they are"
        ),
        "",
    ),
    "statistics_noise": (
        lambda value: (
            f"noise of the scale {value:g} at least is added to each of these counts"
            if value
            else "these counts have noise only where a run asks for it"
        ),
        "",
    ),
    "max_rounds": (lambda value: f"a run may have {value} rounds at most", "the number of rounds is not limited"),
    "max_steps": (
        lambda value: f"a round may have {value} optimizer steps at most, and runs that count epochs are refused",
        "the work of a round is not limited: runs may count epochs",
    ),
    "max_hours": (
        lambda value: f"a run may take {value:g} hours of work at most, evaluations included",
        "the hours of work for a run are not limited",
    ),
    "max_hours_per_day": (
        lambda value: f"the site works {value:g} hours in a day at most, for all runs together",
        "the hours of work in a day are not limited",
    ),
    "limits": (
        lambda value: (
            "a run may ask for these numbers at most: "
            + ", ".join(f"{key} {limit:,g}" for key, limit in (MOST | value).items())
        ),
        "",
    ),
    "min_clients": (
        lambda value: f"a round must have {value} clients at least",
        "the site trains in rounds of any size, also alone",
    ),
    "protection": (_only("protections of updates"), "no protection of updates is required"),
    "partly_encrypted": (
        lambda value: (
            "a run may have some tensors encrypted only, and its server sees the others"
            if value
            else "encrypted runs encrypt all tensors"
        ),
        "",
    ),
    "privacy": (_only("units of differential privacy"), "no differential privacy is required"),
    "noise_at": (
        lambda _: "the server may not add the noise of the unit client: the sites add it under a protection",
        "the server may add the noise of the unit client",
    ),
    "max_delta": (lambda value: f"where there is a limit of epsilon, delta may be {value:g} at most", ""),
    "max_epsilon": (
        lambda value: f"the target_epsilon of a run may be {value:g} at most, and a run without one is refused",
        "no limit on epsilon is set, and runs need no differential privacy",
    ),
    "parts": (
        lambda value: (
            f"runs may name parts in these files: {', '.join(value)}" if value else "runs may name no parts in files"
        ),
        "",
    ),
    "report": (_report, "every metric of a run may be sent to the server"),
    "min_report_rows": (
        lambda value: f"nothing is reported that was measured on fewer than {value} rows",
        "metrics of any number of rows are reported",
    ),
    "min_train_rows": (
        lambda value: f"the training of a round must read {value} rows at least, unless noise of this site hides each",
        "the training of a round must read as many rows as a report, unless noise of this site hides each",
    ),
}
"""For each key of `accept` its value in words, and what holds if it is not set."""
