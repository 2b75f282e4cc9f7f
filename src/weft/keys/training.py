"""Keys of local training and of evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft import kinds
from weft.keys.effects import (
    ALWAYS,
    GRADIENTS,
    HOLDS_OUT,
    LOCAL_MODEL,
    NOT_SITES,
    NOT_SPREAD,
    NOT_WORDS,
    ONE_SOURCE,
    OWN_MODELS,
    SCHEDULE,
    Condition,
    Effect,
    flag,
    only,
    verbs,
)


class TrainingKeys(BaseModel):
    """Local training and evaluation."""

    max_steps: int = Field(
        10, ge=-1, description="optimizer steps of a client in a round; -1: num_train_epochs instead"
    )
    num_train_epochs: int = Field(3, ge=1, description="passes over a client's rows in a round, if max_steps is -1")
    batch_size: int = Field(16, ge=1, description="rows per micro-batch")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches per optimizer step")
    optimizer: Literal["adamw", "sgd", "muon", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw",
        description="optimizer of the local steps; muon: Muon for the matrices inside the model and AdamW for the "
        "rest, 8bit: quantised moments, paged: moved to the CPU when needed (bitsandbytes)",
    )
    keep_moments: bool = Field(
        False, description="baselines: the optimizer's moments go on from round to round; else each round begins anew"
    )
    learning_rate: float = Field(2e-5, ge=0, description="peak learning rate")
    lr_scheduler_type: Literal["cosine_by_round", "constant", "cosine", "linear", "wsd"] = Field(
        "cosine_by_round",
        description="schedule over the whole run; cosine_by_round (OpenFedLLM's) is constant within a round, "
        "wsd is constant with a final linear decay to 0",
    )
    decay_ratio: float = Field(0.2, gt=0, le=1, description="share of all steps in which wsd decays")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up at the start of the run")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="the same as a share of all steps")
    min_learning_rate: float = Field(1e-6, ge=0, description="final learning rate of cosine and linear schedules")
    weight_decay: float = Field(0.0, ge=0, description="weight decay, decoupled in AdamW")
    decay_matrices_only: bool = Field(False, description="no weight decay on norms and biases")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient clipping; 0: none")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="beta1 of AdamW")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="beta2 of AdamW")
    adam_epsilon: float = Field(1e-8, gt=0, description="epsilon of AdamW")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="momentum of Muon")

    adversarial_training: bool = Field(
        False, description="train on perturbed input embeddings (FreeLB), for answers that small changes do not turn"
    )
    adversarial_radius: float = Field(
        0.05, ge=0, le=1, description="norm of a perturbation, as a share of the norm of the embeddings; 0: none"
    )
    adversarial_steps: int = Field(
        2, ge=2, description="losses of a step that are averaged while the perturbation grows; each costs a pass"
    )

    adversarial_prompts: str | None = Field(
        None, description="attack prompts with answers, such as refusals, that are learnt beside every batch"
    )
    adversarial_share: float = Field(
        0.25, gt=0, le=1, description="attack prompts for each row of a batch, and the weight of their mean loss"
    )

    personal_steps: int = Field(
        0, ge=0, description="steps of every client on its own rows after the last round, for a personal model"
    )

    eval_fraction: float = Field(0.05, ge=0, lt=1, description="share of each client's rows that is held out")
    eval_rows: int | None = Field(
        None, ge=1, description="largest number of held-out rows of a client; the others are trained on"
    )
    eval_dataset_name: str | None = Field(
        None, description="held-out rows from a source of their own, instead of eval_fraction"
    )
    eval_every: int = Field(10, ge=0, description="rounds between evaluations; 0: only after the last")
    eval_batch_size: int = Field(32, ge=1, description="rows per batch in evaluation")
    eval_everybody: bool | None = Field(
        None,
        description="at the end, evaluate each personal model on all clients' held-out rows too (default: if "
        "there are few clients)",
    )
    choices: list[str] | None = Field(
        None,
        description="closed set of answers, which are ranked by likelihood (default: detected, if it is "
        "small; []: none)",
    )


ADAM = GRADIENTS + only("optimizer", "adamw", "muon", "adamw_8bit", "paged_adamw_8bit")
BASELINE = (
    Condition(
        lambda config: config.fed_alg == "central" or kinds.is_local(config.fed_alg),
        "it is about baselines, and fed_alg is {c.fed_alg}",
        "write --fed_alg central or --fed_alg local",
    ),
)
EPOCHS = (
    Condition(
        lambda config: config.max_steps < 1,
        "max_steps is {c.max_steps} and sets the steps of a client in a round",
        "write --max_steps -1",
    ),
)
NO_STEPS = (
    Condition(
        lambda config: config.warmup_steps == 0,
        "warmup_steps is {c.warmup_steps}, which sets the same",
        "leave out --warmup_steps",
    ),
)
DECAYS = (Condition(lambda config: config.weight_decay > 0, "weight_decay is 0", "add such as --weight_decay 0.1"),)
WORKS: dict[str, Effect] = {
    "max_steps": ALWAYS,
    "num_train_epochs": EPOCHS,
    "batch_size": ALWAYS,
    "gradient_accumulation_steps": ALWAYS,
    "optimizer": GRADIENTS,
    "keep_moments": GRADIENTS + BASELINE,
    "learning_rate": NOT_WORDS,
    "lr_scheduler_type": SCHEDULE,
    "decay_ratio": SCHEDULE + only("lr_scheduler_type", "wsd"),
    "warmup_steps": SCHEDULE,
    "warmup_ratio": SCHEDULE + NO_STEPS,
    "min_learning_rate": SCHEDULE + only("lr_scheduler_type", "cosine_by_round", "cosine", "linear"),
    "weight_decay": GRADIENTS,
    "decay_matrices_only": GRADIENTS + DECAYS,
    "max_grad_norm": GRADIENTS,
    "adam_beta1": ADAM,
    "adam_beta2": ADAM,
    "adam_epsilon": ADAM,
    "muon_momentum": GRADIENTS + only("optimizer", "muon"),
    "adversarial_training": GRADIENTS + LOCAL_MODEL + verbs("sft", "causal_lm", "preference"),
    "adversarial_prompts": NOT_SITES + GRADIENTS + LOCAL_MODEL + NOT_SPREAD + verbs("sft", "preference"),
    "adversarial_share": flag("adversarial_prompts", "FILE"),
    "adversarial_radius": flag("adversarial_training"),
    "adversarial_steps": flag("adversarial_training"),
    "personal_steps": ALWAYS,
    "eval_fraction": HOLDS_OUT,
    "eval_rows": HOLDS_OUT,
    "eval_dataset_name": ONE_SOURCE,
    "eval_every": ALWAYS,
    "eval_batch_size": ALWAYS,
    "eval_everybody": OWN_MODELS,
    "choices": verbs("sft"),
}
"""When each key has an effect."""
