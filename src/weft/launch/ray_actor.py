"""The runtime of a run: in this process, or Ray actors that each load the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weft import kinds
from weft.config import RunConfig, build
from weft.core.exchange import Runtime
from weft.core.secret import Common, Secret
from weft.core.types import Message, Streams
from weft.errors import ConfigError, MissingExtra
from weft.federation.client_host import ClientHost, silent
from weft.federation.clients import ClientData, InMemory
from weft.json_types import JsonObject
from weft.launch.client import ClientBuilder
from weft.launch.kept_updates import keeping
from weft.launch.population import Population
from weft.runs.progress import Progress
from weft.runtimes.actors import Actors, answer_at_actor
from weft.runtimes.inprocess import InProcess


class RayActor:
    """An actor: it holds the model, and answers for any client."""

    def __init__(self, keys: JsonObject, population: Population | None) -> None:
        """Load what the run needs; without a population the data is read here."""
        builder = ClientBuilder(build(keys))
        if population is None:
            builder.read(InMemory())
        else:
            builder.take(population)
        self.client_host, _ = builder.host()

    def answer(
        self,
        raw: Any,
        params: Any,
        memory: Streams,
        step_fraction: float,
        secret: Secret | None,
        common: Common | None,
        goes_on: bool = False,
    ) -> tuple[Any, tuple[int, Streams] | None]:
        """Answer a message."""
        return answer_at_actor(self.client_host, raw, params, memory, step_fraction, secret, common, goes_on)


@contextmanager
def runtime_of(
    config: RunConfig,
    client_host: ClientHost,
    population: Population,
    progress: Progress,
    announce: Callable[[Message, ClientData], None] | None = None,
) -> Iterator[Runtime]:
    """Begin the runtime of a run, and end it; raises as `actors`."""
    folder = Path(config.output_dir) if config.keep_updates else None
    if config.runtime == "inprocess":
        yield keeping(InProcess(client_host, announce or silent), folder)
        return
    with actors(config, client_host, population, progress) as runtime:
        yield keeping(runtime, folder)


@contextmanager
def actors(config: RunConfig, client_host: ClientHost, population: Population, progress: Progress) -> Iterator[Runtime]:
    """Run on Ray: join the cluster that is named, or start one on this machine.

    Raises:
        ConfigError: no such cluster, or it has not what an actor needs.
        MissingExtra: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "The runtime ray") from None
    started_here = not ray.is_initialized()
    if started_here:
        join(config)
    try:
        per_actor = _resources_per_actor(config)
        cluster = ray.cluster_resources()
        capacity = min(int(cluster.get(name.upper(), 0) / amount) for name, amount in per_actor.items() if amount > 0)
        count = config.num_actors or capacity
        if count < 1 or count > capacity:
            raise ConfigError(
                f"A cluster of {_resources_text(cluster, per_actor)} has room for {capacity} actors of "
                f"{_resources_text(per_actor)}, but {count} are requested: write another --num_actors, or "
                "smaller --client_resources."
            )
        # Rows of plain text lie in files that every machine reads; others go with the actor.
        population_ref = None if client_host.plan.objective.rows == "text" else ray.put(_portable(population))
        # An actor that restarts in the middle of a run must not read files that were edited meanwhile.
        keys = kinds.with_digests(config.model_dump(mode="json"))
        actor_class = ray.remote(RayActor).options(num_cpus=per_actor.get("cpu", 0), num_gpus=per_actor.get("gpu", 0))
        yield Actors(client_host, lambda: actor_class.remote(keys, population_ref), count, progress.note)
    finally:
        if started_here:
            ray.shutdown()


def join(config: RunConfig, cpus: int | None = None) -> None:
    """Join the cluster that is named, or start one on this machine, of so many cores; ConfigError if there is none."""
    import ray

    names = ("HF_HUB_OFFLINE", "WEFT_CACHE", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    env = {name: os.environ[name] for name in names if name in os.environ}
    options: dict[str, Any] = {"log_to_driver": False, "runtime_env": {"env_vars": env}, "logging_level": "ERROR"}
    if config.ray_address is None:
        # Nothing outside this machine is listened to.
        ray.init(num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **options)
        return
    try:
        ray.init(address=config.ray_address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"There is no Ray cluster at '{config.ray_address}' ({str(error).splitlines()[0]}): start one by `ray "
            "start --head`, or leave out --ray_address."
        ) from None


def _resources_per_actor(config: RunConfig) -> dict[str, float]:
    """Return what an actor needs: a GPU where there are such, else the CPU threads that the run computes with."""
    if config.client_resources:
        return dict(config.client_resources)
    if torch.cuda.is_available() and config.device in ("auto", "cuda"):
        return {"cpu": 1.0, "gpu": 1.0}
    return {"cpu": float(config.threads or 1)}


def _resources_text(amounts: dict[str, float], of: dict[str, float] | None = None) -> str:
    by_name = {name.lower(): value for name, value in amounts.items()}
    return ", ".join(f"{by_name.get(name, 0):g} {name}" for name in (of or amounts))


def _portable(population: Population) -> Population:
    """Return the population without where its clients' memories are."""
    no_memory = InMemory()
    return replace(
        population,
        trained=replace(population.trained, memory=no_memory),
        evaluated=replace(population.evaluated, memory=no_memory),
    )
