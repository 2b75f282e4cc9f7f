"""What may be combined: a plan is data, one function refuses it, and what a refusal recommends works."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import weft
from weft import registry
from weft.compression.blocks import Int8
from weft.compression.sparse import SparseLoCo
from weft.config import RunConfig, build
from weft.core.exchange import Aggregator, Codec, Privacy, Protection
from weft.core.parts import Algorithm
from weft.errors import ConfigError
from weft.federation import limits, model_kinds, remedies, rules
from weft.federation.compatibility import check, refusals
from weft.federation.plan import Plan
from weft.launch import compose

SOFT = {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4}
TEXT = {"use_peft": False, "prompt_method": "text", "prompt_candidates": ["x"]}
BLACK_BOX = SOFT | {"prompt_method": "black_box", "black_box_dim": 4, "population": 4}
LORA = {"use_peft": True}


def plan_of(**keys: Any) -> Plan:
    return compose.plan(build({"dataset_name": "any"} | keys))


def refusal_of(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(**keys)
    return str(caught.value)


def names_in(sentence: str, flag: str) -> list[str]:
    """Return the names that a sentence recommends for a flag."""
    found = re.search(rf"--{flag} ((?:\w+, )*(?!or )\w+(?: or \w+)?)", sentence)
    return re.split(r", | or ", found[1]) if found else []


def test_a_plan_of_parts_that_do_not_go_together_can_be_made_and_is_refused_by_the_check():
    good = vars(plan_of(**LORA))
    plan = Plan(**good | {"quorum": 2, "algorithm": registry.load(registry.ALGORITHMS, "local", "algorithm")()})
    with pytest.raises(ConfigError, match="leave out --min_clients"):
        check(plan)


def test_every_plan_has_the_same_rules():
    plans = [plan_of(**keys) for keys in ({}, LORA, SOFT, BLACK_BOX, {"fed_alg": "fedkseed", "use_peft": False})]
    assert len({len(refusals(plan)) for plan in plans}) == 1


def test_every_flag_in_a_rule_is_a_key():
    flags = set()
    for module in (rules, limits, model_kinds, remedies):
        flags |= set(re.findall(r"--(\w+)", Path(str(module.__file__)).read_text()))
    for one in vars(remedies).values():
        flags |= {one.flag} if isinstance(one, remedies.Another) else set()
    assert flags > {"cluster", "fed_alg", "codec"}
    assert flags <= set(RunConfig.model_fields)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fed_alg": "scaffold", "cluster": 2}, "fed_alg"),
    ({"fed_alg": "scaffold"} | BLACK_BOX, "fed_alg"),
    ({"fed_alg": "fedtext"} | SOFT, "fed_alg"),
    (TEXT, "fed_alg"),
    ({"fed_alg": "fedsgd"}, "fed_alg"),
    ({"fed_alg": "feddyn", "client_weight": "gain"}, "fed_alg"),
    ({"fed_alg": "feddyn", "client_weight": "gain"}, "client_weight"),
    ({"fed_alg": "fedadamw", "client_speed": [0.5]}, "fed_alg"),
    ({"fed_alg": "ditto", "parallel": "fsdp"}, "fed_alg"),
    ({"fed_alg": "fedadamw", "optimizer": "sgd"}, "fed_alg"),
    ({"fed_alg": "ditto", "share": ["q_proj"]}, "fed_alg"),
    ({"fed_alg": "local", "share": ["q_proj"]}, "fed_alg"),
    (LORA | {"fed_alg": "fedadam", "lora_aggregation": "stack"}, "fed_alg"),
    (LORA | {"fed_alg": "fedadam", "lora_aggregation": "stack"}, "lora_aggregation"),
    (LORA | {"fed_alg": "fedbuff", "lora_aggregation": "rolora"}, "lora_aggregation"),
    (LORA | {"lora_aggregation": "merge", "client_ranks": [4]}, "lora_aggregation"),
    (LORA | {"lora_aggregation": "dual", "cluster": 2}, "lora_aggregation"),
    (LORA | {"lora_aggregation": "ffa", "parallel": "fsdp"}, "lora_aggregation"),
    ({"lora_aggregation": "ffa", "use_peft": False}, "lora_aggregation"),
]


@pytest.mark.parametrize(("keys", "flag"), REFUSED, ids=str)
def test_every_part_that_a_refusal_names_works(keys: dict[str, Any], flag: str):
    names = names_in(refusal_of(**keys), flag)
    assert 1 <= len(names) <= remedies.MAX_NAMES
    assert keys.get(flag) not in names
    for name in names:
        plan_of(**keys | {flag: name})


def test_a_part_of_the_registry_is_recommended_without_an_edit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.WEIGHTINGS, "newest", "weft.weighting.size:Size")
    assert names_in(refusal_of(fed_alg="feddyn", client_weight="gain"), "client_weight") == [
        "size",
        "uniform",
        "newest",
    ]


def test_a_part_that_cannot_be_made_hides_no_refusal(monkeypatch: pytest.MonkeyPatch):
    for place, name in enumerate(("there.is:None", "weft.weighting.size:None", "weft.federation.plan:Plan")):
        monkeypatch.setitem(registry.WEIGHTINGS, f"broken{place}", name)
    sentence = refusal_of(fed_alg="feddyn", client_weight="gain")
    assert "adds up over rounds" in sentence
    assert names_in(sentence, "client_weight") == ["size", "uniform"]


def test_other_faults_of_a_plan_do_not_take_the_remedies_away():
    """A part is recommended that mends this fault, though another has to be mended too."""
    assert "fedavg" in names_in(
        refusal_of(fed_alg="scaffold", cluster=2, over_selection=0.5, parallel="fsdp"), "fed_alg"
    )


@dataclass(frozen=True)
class _Peeks(Algorithm):
    sums_updates: ClassVar[bool] = False


class _SumOnly(Protection):
    sum_only: ClassVar[bool] = True


class _Bounded(Privacy):
    bounded: ClassVar[bool] = True


class _Sparse(Codec):
    addable: ClassVar[bool] = False


SECRET: list[tuple[dict[str, Any], str]] = [
    ({"protection": _SumOnly(), "algorithm": _Peeks()}, "choose another algorithm (--fed_alg fedavg, "),
    ({"protection": _SumOnly(), "aggregator": Aggregator()}, "write --aggregator mean, or --protection none."),
    (
        {"protection": _SumOnly(), "codec": _Sparse()},
        "choose another codec (--codec none, random_k or shared_low_rank), or write --protection none.",
    ),
    ({"privacy": _Bounded(), "aggregator": Aggregator()}, "write --aggregator mean, or leave out --privacy_unit."),
    ({"privacy": _Bounded(), "codec": Int8()}, "write --codec none, or leave out --privacy_unit."),
    (
        {"protection": _SumOnly(), "codec": SparseLoCo()},
        "choose another codec (--codec none, random_k or shared_low_rank), or write --protection none.",
    ),
]


@pytest.mark.parametrize(("changes", "words"), SECRET, ids=lambda one: one if isinstance(one, str) else "")
def test_what_is_kept_from_the_server_names_what_keeps_it(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError) as caught:
        check(Plan(**vars(plan_of(**LORA)) | changes))
    assert words in str(caught.value)


def test_clusters_are_refused_what_their_algorithm_is():
    """They were accepted: the wrapper did not say what it is made for."""
    alone, several = refusal_of(fed_alg="fedbpt", **SOFT), refusal_of(fed_alg="fedbpt", cluster=2, **SOFT)
    words = (
        "FedBPT is made for prompts that are searched without gradients: write --prompt_method black_box, or choose "
    )
    assert alone.startswith(words)
    assert several.startswith(words)


@pytest.mark.parametrize("keys", [{"fed_alg": "fedtext"} | TEXT, {"fed_alg": "fedbpt"} | BLACK_BOX], ids=str)
def test_clusters_of_what_moves_by_no_delta_are_refused_with_another_remedy(keys: dict[str, Any]):
    """`--fed_alg fedtext --cluster 2` was answered with the advice to write --fed_alg fedtext."""
    sentence = refusal_of(cluster=2, **keys)
    assert "leave out --cluster" in sentence
    assert f"{keys['fed_alg']}" not in sentence


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Return the modules among `known` that a file imports anywhere, under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name in known)


@pytest.mark.parametrize("package", ["core", "algorithms", "federation"])
def test_no_module_imports_one_that_imports_it(package: str):
    folder = Path(str(weft.__file__)).parent / package
    known = {f"weft.{package}.{path.stem}": path for path in folder.glob("*.py") if path.stem != "__init__"}
    edges = {name: set(imports(path, known)) for name, path in known.items()}
    while free := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in free:
            del edges[name]
    assert edges == {}
