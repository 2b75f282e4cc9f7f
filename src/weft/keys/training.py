"""Keys of local training and of evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.keys.effects import (
    ALWAYS,
    GRADIENTS,
    HOLDS_OUT,
    NOT_WORDS,
    ONE_SOURCE,
    OWN_MODELS,
    SCHEDULE,
    Condition,
    Effect,
    only,
    verbs,
)


class TrainingKeys(BaseModel):
    """What a client does in a round, and how the result is measured."""

    max_steps: int = Field(10, ge=-1, description="optimizer steps a client and round; -1: num_train_epochs instead")
    num_train_epochs: int = Field(3, ge=1, description="passes over a client's rows a round, where max_steps is -1")
    batch_size: int = Field(16, ge=1, description="rows a micro-batch")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches an optimizer step")
    optimizer: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="of the local steps; with moments in 8 bits, also paged out to the CPU (bitsandbytes)"
    )
    learning_rate: float = Field(2e-5, ge=0, description="peak learning rate")
    lr_scheduler_type: Literal["cosine_by_round", "constant", "cosine", "linear", "wsd"] = Field(
        "cosine_by_round",
        description="over the whole run; cosine_by_round is OpenFedLLM's: constant within a round; wsd: constant, then "
        "linear to 0",
    )
    decay_ratio: float = Field(0.2, gt=0, le=1, description="share of all steps in which wsd falls")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up at the start of the run")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="the same as a share of all steps")
    min_learning_rate: float = Field(1e-6, ge=0, description="where cosine and linear end")
    weight_decay: float = Field(0.0, ge=0, description="weight decay, decoupled in AdamW")
    decay_matrices_only: bool = Field(False, description="no weight decay on norms and biases")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient clipping; 0: none")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta2")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")

    personal_steps: int = Field(
        0, ge=0, description="steps that every client makes on its own rows after the last round, for its own model"
    )

    eval_fraction: float = Field(0.05, ge=0, lt=1, description="rows that each client keeps out")
    eval_rows: int | None = Field(None, ge=1, description="of them, how many at most")
    eval_dataset_name: str | None = Field(None, description="held-out rows that lie apart; otherwise eval_fraction")
    eval_every: int = Field(10, ge=0, description="rounds between evaluations; 0: only at the end")
    eval_batch_size: int = Field(32, ge=1, description="rows a batch in evaluation")
    eval_everybody: bool | None = Field(
        None, description="at the end, measure each client's own model on everybody's rows too [where there are any]"
    )
    choices: list[str] | None = Field(
        None, description="the closed set of answers; found where it is small, [] for none"
    )


ADAM = GRADIENTS + only("optimizer", "adamw", "adamw_8bit", "paged_adamw_8bit")
EPOCHS = (
    Condition(
        lambda config: config.max_steps < 1,
        "max_steps is {c.max_steps} and says how much a client does in a round",
        "write --max_steps -1",
    ),
)
NO_STEPS = (
    Condition(
        lambda config: config.warmup_steps == 0,
        "warmup_steps is {c.warmup_steps}, which says the same",
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
