"""Keys of the run: its folder, seed and records."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.keys.effects import ALWAYS, NEVER, Condition, Effect, only


class RunKeys(BaseModel):
    """The run."""

    output_dir: str = Field("output", description="the run directory")
    seed: int = Field(2023, ge=0, description="everything random follows from it")
    save_model_freq: int = Field(50, ge=0, description="rounds between checkpoints that are kept; 0: only the newest")
    save_total_limit: int = Field(10, ge=1, description="how many of these are kept at most")
    checkpoint_seconds: float = Field(5.0, ge=0, description="at most this much work is lost to a kill, and one round")
    report_to: list[str] = Field(["none"], description="tensorboard, wandb, mlflow, trackio, none")
    accept_changed: bool = Field(
        False,
        description="go on with a run although its data, base or tokenizer is not what it was; for this start only",
    )
    runtime: Literal["inprocess", "ray", "nvflare"] = Field(
        "inprocess",
        description="what carries the messages: this process, Ray's actors, or NVIDIA FLARE to "
        "sites that have their own data (weft submit)",
    )
    ray_address: str | None = Field(None, description="of a Ray cluster to join (default: one is started here)")
    num_actors: int | None = Field(None, ge=1, description="clients that train at a time (default: as there is room)")
    client_resources: dict[str, float] = Field({}, description="what an actor needs, such as cpu=1 gpu=0.5")
    sites: list[str] | None = Field(
        None, description="with nvflare: the sites, in their order (default: all that are there, by name)"
    )
    silence_timeout: float = Field(
        600.0, gt=0, description="with nvflare: seconds without a word or progress after which a site's turn is over"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads (default: torch's)")

    # OpenFedLLM's flags that have no effect here, so that its scripts run as they stand
    logging_steps: int = Field(100, description="accepted; every round is logged")
    save_steps: int = Field(1000, description="accepted; see save_model_freq")
    push_to_hub: bool = Field(False, description="accepted only as False; use `weft export` and the hub's own tool")
    hub_model_id: str | None = Field(None, description="accepted; see push_to_hub")


RAY = only("runtime", "ray", warn_only=True)  # one run file goes with every runtime
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
    "accept_changed": ALWAYS,
    "seed": ALWAYS,
    "save_model_freq": ALWAYS,
    "save_total_limit": CHECKPOINTS,
    "checkpoint_seconds": ALWAYS,
    "report_to": ALWAYS,
    "runtime": ALWAYS,
    "ray_address": RAY,
    "num_actors": RAY,
    "client_resources": RAY,
    "sites": SITES,
    "silence_timeout": SITES,
    "threads": ALWAYS,
    "logging_steps": NEVER,
    "save_steps": NEVER,
    "push_to_hub": ALWAYS,
    "hub_model_id": NEVER,
}
"""When each key has an effect."""
