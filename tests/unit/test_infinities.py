"""Infinities and NaN: no key, entry of site.yaml or flag takes one with which nothing can be computed."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from weft import registry
from weft.arguments import parser_of
from weft.config import RunConfig, build
from weft.errors import ConfigError
from weft.keys.checks import UNBOUNDED
from weft.keys.leaving import LeaveWhen
from weft.sites.policy import AcceptRules, SiteLedger


def _floats(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if "float" in str(field.annotation)]


@pytest.mark.parametrize("number", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize("key", _floats(RunConfig))
def test_no_key_takes_an_infinity_but_those_for_which_it_means_something(key: str, number: float):
    """Every numeric key there is, so that a new one is asked too: num_malicious of inf once ended in a traceback."""
    kind = str(RunConfig.model_fields[key].annotation)
    value: object = [number] if "list[float]" in kind else {"cpu": number} if "dict" in kind else number
    if number == float("inf") and key in UNBOUNDED:
        build({"dataset_name": "d", key: value})
        return
    with pytest.raises(ConfigError):
        build({"dataset_name": "d", key: value})


NO_LIMIT = {"max_hours", "max_hours_per_day", "max_epsilon", "limits", "most_rise", "most_fall"}
"""Entries of site.yaml that are limits: infinite, they limit nothing."""


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model in (AcceptRules, SiteLedger, LeaveWhen) for name in _floats(model)]
)
@pytest.mark.parametrize("number", [float("inf"), float("nan"), -float("inf")])
def test_no_entry_of_a_site_takes_a_number_that_is_none(model: type[BaseModel], name: str, number: float):
    needs: dict[type[BaseModel], dict[str, object]] = {AcceptRules: {"models": ["m"]}, SiteLedger: {"file": "f"}}
    own = needs.get(model, {"canaries": "f", "forbidden": "f", "most_rise": 1.0})
    value: object = {"batch_size": number} if name == "limits" else number
    if number == float("inf") and name in NO_LIMIT:
        model.model_validate(own | {name: value})
        return
    with pytest.raises(ValidationError):
        model.model_validate(own | {name: value})


@pytest.mark.parametrize("verb", [*registry.COMMANDS])
def test_no_flag_of_a_command_takes_an_infinity(verb: str, capsys: pytest.CaptureFixture[str]):
    try:
        parser = parser_of(verb)
    except ConfigError:  # a verb of several
        return
    for action in parser._actions:
        if action.type is float:
            words = [action.option_strings[-1], *(["inf"] * (action.nargs if isinstance(action.nargs, int) else 1))]
            needed = [one.dest for one in parser._actions if not one.option_strings and one.nargs not in ("?", "*")]
            flags = [one for one in parser._actions if one.option_strings and one.required and one is not action]
            rest = [word for one in flags for word in (one.option_strings[-1], "1")]
            with pytest.raises(ConfigError, match="inf"):
                parser.parse([*("x" for _ in needed), *words, *rest])
