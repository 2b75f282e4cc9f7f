"""Every kind of part is chosen by a key and looked up in a table; its own parameters are given by another key."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from support.flags import flags
from weft import kinds, registry
from weft.cli import main
from weft.commands.completion import NAMES
from weft.config import RunConfig, build
from weft.errors import ConfigError
from weft.launch import compose
from weft.launch.parts import split


@pytest.mark.parametrize("key", kinds.KINDS)
def test_each_kind_has_a_key_for_the_name_and_one_for_the_parameters(key: str):
    kind = kinds.KINDS[key]
    assert RunConfig.model_fields[key].default in kind.table
    assert RunConfig.model_fields[kind.args].default == {}
    assert NAMES[key] == tuple(kind.table)
    assert getattr(build({"dataset_name": "d", kind.args: ["a=1", "b=x"]}), kind.args) == {"a": "1", "b": "x"}


@pytest.mark.parametrize("key", kinds.KINDS)
def test_an_unknown_name_is_refused_with_the_nearest(key: str):
    name = next(iter(kinds.KINDS[key].table))
    with pytest.raises(ConfigError, match=f"named '{name}x'. Did you mean '{name}'"):
        build({"dataset_name": "d", key: name + "x"})


@pytest.mark.parametrize("key", kinds.KINDS)
def test_a_parameter_that_a_part_does_not_have_is_refused(key: str):
    kind = kinds.KINDS[key]
    name = RunConfig.model_fields[key].default
    config = build({"dataset_name": "d", "use_peft": True, kind.args: {"epsilonn": 1}})
    with pytest.raises(ConfigError, match=f"The {kind.word} {name} has no parameter 'epsilonn'"):
        compose.plan(config)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_a_number_of_a_part_that_is_not_finite_is_refused(value: str):
    """NaN is neither above nor below anything: a radius of NaN would cut no update, in silence."""
    config = build({"dataset_name": "d", "aggregator": "norm_clipping", "aggregator_args": {"radius": value}})
    with pytest.raises(ConfigError, match=f"The value '{value}' of 'radius' in aggregator_args is not finite"):
        compose.plan(config)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ({"client_speed": [1.0, float("nan")]}, "nan"),
        ({"client_speed": [float("inf")]}, "inf"),
        ({"fed_alg": "fedadam", "fedopt_tau": float("nan")}, "nan"),
        ({"over_selection": float("inf")}, "inf"),
        ({"data_statistics": True, "statistics_noise": float("inf")}, "inf"),
        ({"mixture": "excess", "mixture_reference": "a=1,b=1", "mixture_strength": float("inf")}, "inf"),
    ],
)
def test_a_key_with_which_nothing_can_be_computed_is_refused(keys: dict[str, object], value: str):
    """Bounds of pydantic hold for a number alone: in a list, or beside a word, NaN passed."""
    with pytest.raises(ConfigError, match=f"holds {value}, with which nothing can be computed"):
        build({"dataset_name": "d", **keys})


def test_the_keys_reach_the_plan(monkeypatch: pytest.MonkeyPatch):
    """One part of each kind that has only one name so far, made with a parameter in its type."""
    from weft.core.exchange import Codec, Privacy, Protection
    from weft.weighting.uniform import Uniform

    @dataclass(frozen=True)
    class Rounding(Codec):
        bits: int = 8

    @dataclass(frozen=True)
    class Loud(Privacy):
        noise: float = 0.0

    @dataclass(frozen=True)
    class Sealed(Protection):
        key: str = ""

    @dataclass(frozen=True)
    class Half(Uniform):
        part: float = 1.0

    import sys
    import types

    module = types.ModuleType("parts_of_the_test")
    module.__dict__.update(Rounding=Rounding, Loud=Loud, Sealed=Sealed, Half=Half)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for cls in (Rounding, Loud, Sealed, Half):
        cls.__annotations__ = {name: eval(hint) for name, hint in cls.__annotations__.items()}
    monkeypatch.setitem(registry.CODECS, "rounding", "parts_of_the_test:Rounding")
    monkeypatch.setitem(registry.PRIVACY, "loud", "parts_of_the_test:Loud")
    monkeypatch.setitem(registry.PROTECTIONS, "sealed", "parts_of_the_test:Sealed")
    monkeypatch.setitem(registry.WEIGHTINGS, "half", "parts_of_the_test:Half")
    keys = {"dataset_name": "d", "codec": "rounding", "codec_args": ["bits=4"], "privacy": "loud"}
    more = {"privacy_args": "noise=0.5", "protection": "sealed", "protection_args": {"key": "k"}}
    plan = compose.plan(build(keys | more | {"client_weight": "half", "client_weight_args": {"part": 0.5}}))
    assert (plan.codec, plan.privacy, plan.protection, plan.weighting) == (
        Rounding(4),
        Loud(0.5),
        Sealed("k"),
        Half(part=0.5),
    )
    with pytest.raises(ConfigError, match="value 'x' of 'bits' in codec_args cannot be"):
        compose.plan(build(keys | {"codec_args": {"bits": "x"}}))


def test_a_split_takes_parameters_of_its_own(monkeypatch: pytest.MonkeyPatch):
    from weft.data import splits

    def halves(rows: splits.SplitRows, how: splits.SplitSettings, *, first: float = 0.5) -> object:
        return first

    monkeypatch.setattr(splits, "halves", halves, raising=False)
    halves.__annotations__ = {"first": float}
    monkeypatch.setitem(registry.SPLITS, "halves", "weft.data.splits:halves")
    config = build({"dataset_name": "d", "split_strategy": "halves", "split_args": {"first": "0.25"}})
    assert split(config)(None, None) == 0.25  # type: ignore[arg-type, comparison-overlap]
    with pytest.raises(ConfigError, match=r"has no parameter 'firts'\. Did you mean 'first'"):
        compose.plan(build({"dataset_name": "d", "split_strategy": "halves", "split_args": {"firts": 1}}))


def test_the_plan_names_what_the_keys_chose(keys, capsys):
    words = flags({key: value for key, value in keys.items() if key != "use_peft"})
    assert main(["sft", *words, "--dry_run"]) == 0
    assert "mean by size, no privacy, no codec, no protection" in capsys.readouterr().out
    assert main(["sft", *words, "--privacy", "nonee"]) == 2
    assert "There is no privacy named 'nonee'. Did you mean 'none'?" in capsys.readouterr().err
