"""Keys of the run: its directory, seed, records and runtime."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.keys.effects import ALWAYS, NEVER, NOT_SITES, Condition, Effect, only


class RunKeys(BaseModel):
    """The run."""

    output_dir: str = Field("output", description="directory of the run")
    seed: int = Field(2023, ge=0, description="seed of all random choices")
    save_model_freq: int = Field(50, ge=0, description="rounds between permanent checkpoints; 0: keep the newest only")
    save_total_limit: int = Field(10, ge=1, description="largest number of permanent checkpoints")
    keep_updates: bool = Field(
        False, description="keep every client's updates in the run's directory, for `weft forget --method update`"
    )
    checkpoint_seconds: float = Field(
        5.0,
        ge=0,
        description="longest time between checkpoints in seconds; a killed run loses at most this much work, the "
        "rounds that ended while a checkpoint was being written, and one round",
    )
    report_to: list[str] = Field(["none"], description="trackers: tensorboard, wandb, mlflow, trackio, none")
    report: bool = Field(True, description="write report.html at the end; `weft report RUN` does so later")
    accept_changed: bool = Field(
        False,
        description="resume a run although its data, base model or tokenizer has changed; for this start only",
    )
    runtime: Literal["inprocess", "ray", "nvflare"] = Field(
        "inprocess",
        description="where clients run: in this process, in Ray's actors, or at sites with their own data "
        "(NVIDIA FLARE, weft submit)",
    )
    ray_address: str | None = Field(None, description="address of a Ray cluster (default: one is started here)")
    num_actors: int | None = Field(
        None, ge=1, description="clients that train at a time, with ray (default: as many as fit)"
    )
    client_resources: dict[str, float] = Field({}, description="resources of an actor, with ray, such as cpu=1 gpu=0.5")
    sites: list[str] | None = Field(
        None, description="sites of the run in their order, with nvflare (default: all connected ones, by name)"
    )
    silence_timeout: float = Field(
        600.0, gt=0, description="seconds without contact or progress after which a site fails its turn, with nvflare"
    )
    turn_timeout: float = Field(
        86400.0, gt=0, description="seconds after which a site fails its turn whatever its progress, with nvflare"
    )
    rejoin_timeout: float = Field(
        300.0,
        ge=0,
        description="seconds that a resumed run waits for the sites that took part before, with nvflare; then it goes "
        "on with fewer",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads (default: torch's)")

    # OpenFedLLM's flags without an effect here, so that its scripts run unchanged
    logging_steps: int = Field(100, description="ignored, for OpenFedLLM's scripts; every round is logged")
    save_steps: int = Field(1000, description="ignored, for OpenFedLLM's scripts; see save_model_freq")
    push_to_hub: bool = Field(False, description="must be false; use `weft export` and the hub's own tool")
    hub_model_id: str | None = Field(None, description="ignored, for OpenFedLLM's scripts; see push_to_hub")


RAY = only("runtime", "ray", warn_only=True)  # one run file may serve several runtimes
SITES = only("runtime", "nvflare", warn_only=True)
CHECKPOINTS = (
    Condition(
        lambda config: config.save_model_freq > 0,
        "save_model_freq is 0, so only the newest checkpoint is kept",
        "add such as --save_model_freq 50",
    ),
)
WORKS: dict[str, Effect] = {
    "output_dir": ALWAYS,
    "report": ALWAYS,
    "accept_changed": ALWAYS,
    "seed": ALWAYS,
    "save_model_freq": ALWAYS,
    "save_total_limit": CHECKPOINTS,
    "keep_updates": NOT_SITES,
    "checkpoint_seconds": ALWAYS,
    "report_to": ALWAYS,
    "runtime": ALWAYS,
    "ray_address": RAY,
    "num_actors": RAY,
    "client_resources": RAY,
    "sites": SITES,
    "silence_timeout": SITES,
    "turn_timeout": SITES,
    "rejoin_timeout": SITES,
    "threads": ALWAYS,
    "logging_steps": NEVER,
    "save_steps": NEVER,
    "push_to_hub": ALWAYS,
    "hub_model_id": NEVER,
}
"""When each key has an effect."""
