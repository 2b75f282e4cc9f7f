"""What a server's messages can bring to a site: the run's own tensors in their shapes, and nothing else."""

from __future__ import annotations

import pytest
import torch

from support.fake_sites import NAMES, FakeSites
from weft.core.lowrank import SIDE_A, SIDE_B
from weft.core.types import SEARCH, SIDE, Failure, Message, Probe, Task, Tensors, Update
from weft.core.wire import pack, unpack
from weft.sites.server import serve

SITE = "hospital_a"


def ask(sites: FakeSites, message: Message) -> object:
    return unpack(sites.site_clients[SITE].work(pack(message, "run")), run="run")


def last_task(sites: FakeSites) -> Task:
    """Return the newest task of an honest server to the site."""
    messages = [unpack(raw, run="run") for to, raw in sites.asked if to == SITE and raw and raw[:1] != b"{"]
    return next(message for message in reversed(messages) if isinstance(message, Task))


def assert_refused(sites: FakeSites, words: str, params: Tensors, extra: dict[str, Tensors] | None = None) -> None:
    """Check that a task and a probe with these tensors are refused with these words, and leave nothing behind."""
    honest = last_task(sites)
    kept = sites.site_clients[SITE].client_host.train_clients.memory.load(SITE, 10)
    for message in (
        Task(SITE, honest.round, honest.base_version, params, honest.extra if extra is None else extra),
        Probe(SITE, honest.round, params, honest.extra if extra is None else extra),
        Probe(SITE, honest.round, params, honest.extra if extra is None else extra, export=True),
    ):
        said = ask(sites, message)
        assert isinstance(said, Failure), message
        assert words in said.reason
    now = sites.site_clients[SITE].client_host.train_clients.memory.load(SITE, 10)
    assert kept.keys() == now.keys()
    assert isinstance(ask(sites, honest), Update)


def test_parameters_that_stay_at_a_site_cannot_be_set_or_asked_for(run, sites: FakeSites):
    """A task with a value for the B of a site whose B never leaves would get the trained B back."""
    serve(run | {"share": ["lora_A"], "num_rounds": 1, "eval_every": 0}, sites, list(NAMES), "1")
    honest = last_task(sites)
    model = sites.site_clients[SITE].client_host.model
    own = next(name for name in model.initial)
    assert "lora_B" in own
    assert_refused(
        sites,
        f"was sent '{own}' among the parameters",
        honest.params | {own: torch.zeros_like(model.initial[own])},
    )


def test_a_private_prompt_cannot_be_asked_for(run, sites: FakeSites):
    prompt = {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4, "private_tokens": 2}
    serve(run | prompt | {"num_rounds": 1, "eval_every": 0}, sites, list(NAMES), "1")
    ((name, value),) = sites.site_clients[SITE].client_host.model.initial.items()
    assert_refused(sites, f"was sent '{name}'", last_task(sites).params | {name: value})


def test_tensors_that_the_run_has_not_are_refused(run, sites: FakeSites):
    """By name and by shape, among the parameters and beside them; a name cannot write to the log."""
    serve(run | {"num_rounds": 2, "eval_every": 0}, sites, list(NAMES), "1")
    params = last_task(sites).params
    name, value = next(iter(params.items()))
    module = name.partition(".lora_")[0]
    assert_refused(sites, "was sent '\\x1b[2Jweight' among", params | {"\x1b[2Jweight": value})
    assert_refused(sites, f"was sent '{name}' among the parameters in the shape", params | {name: torch.zeros(3, 3)})
    for format in (torch.float64, torch.bfloat16, torch.int64, torch.bool):
        assert_refused(sites, f"was sent '{name}' among the parameters as {format}", params | {name: value.to(format)})
    assert_refused(sites, f"was sent no value of '{name}'", {key: v for key, v in params.items() if key != name})
    assert_refused(sites, "was sent the stream 'control'", params, {"control": params})
    side = {module + SIDE_A: torch.ones(1, 32), module + SIDE_B: torch.ones(32, 1)}
    assert_refused(sites, "was sent the stream 'adapter.side'", params, {SIDE: side})


def test_a_side_adapter_is_that_of_the_runs_modules(run, sites: FakeSites):
    """Where a run has one, it is checked too: an honest one passes in every round after the first."""
    serve(run | {"lora_aggregation": "stack", "num_rounds": 2, "eval_every": 1}, sites, list(NAMES), "1")
    honest = last_task(sites)
    assert honest.extra[SIDE]
    (a, down), (b, up) = list(honest.extra[SIDE].items())[:2]
    for words, side in (
        (f"was sent '{a}' in the side adapter", {a: down}),
        ("was sent 'lm_head.side_A' in the", {"lm_head.side_A": down, "lm_head.side_B": up}),
        (f"was sent '{a}' in the side adapter in the shape", {a: torch.zeros(999, down.shape[1]), b: up}),
        (f"was sent '{a}' in the side", {a: torch.zeros(99, down.shape[1]), b: torch.zeros(up.shape[0], 99)}),
    ):
        assert_refused(sites, words, honest.params, {SIDE: side})


STREAMS = {
    "scaffold": ({"fed_alg": "scaffold"}, "control"),
    "clusters": ({"cluster": 2}, "1|delta"),
    "seeds": ({"fed_alg": "fedkseed", "fed_args": {"seeds": 8}}, SEARCH),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_an_algorithm_have_the_shapes_that_it_sends(run, sites: FakeSites, name: str):
    """K directions cost K passes over the model: a server that names a million gets none."""
    changes, stream = STREAMS[name]
    serve(run | changes | {"num_rounds": 1, "eval_every": 0}, sites, list(NAMES), "1")
    honest = last_task(sites)
    key, value = next(iter(honest.extra[stream].items()))
    for words, values in (
        (f"was sent '{key}' among the {stream} in the shape", {key: torch.zeros(1_000, *value.shape)}),
        (f"was sent 'more' among the {stream}", {"more": value}),
    ):
        assert_refused(sites, words, honest.params, honest.extra | {stream: honest.extra[stream] | values})
