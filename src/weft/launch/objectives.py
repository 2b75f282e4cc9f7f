"""The objective of a run, and what is put around it."""

from __future__ import annotations

from weft.config import RunConfig
from weft.core.objective import Objective
from weft.keys.pretraining import tasks_of
from weft.launch.parts import part
from weft.objectives.causal_lm import CausalLM
from weft.objectives.pretraining import PretrainingTasks


def objective(config: RunConfig) -> Objective:
    """Return the objective of a run, under perturbations and with attack prompts where the run trains on these."""
    found: Objective = part("objective", config)
    if type(found) is CausalLM and list(shares := tasks_of(config.pretraining_task)) != ["causal"]:
        found = PretrainingTasks(found.pack, found.offsets, found.step, shares, config.fim_spm_share)
    if config.adversarial_training:
        from weft.objectives.adversarial import Adversarial

        found = Adversarial(found, config.adversarial_radius, config.adversarial_steps)
    if config.adversarial_prompts is not None:
        from weft.objectives.refusing import Refusing

        found = Refusing(found, config.adversarial_share)
    return found
