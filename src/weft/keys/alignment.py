"""Keys of alignment: training on preferences, and on rewards."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.keys.effects import GRADIENTS, LOCAL_MODEL, NOT_SITES, WHOLE_SHARED, Condition, Effect, flag, only, verbs


class AlignmentKeys(BaseModel):
    """Alignment."""

    loss: Literal["dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo"] = Field("dpo", description="loss of `weft dpo`")
    dpo_beta: float = Field(0.1, gt=0, description="beta of DPO and its variants")
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="expected share of wrong labels, for robust_dpo")
    simpo_gamma: float = Field(0.5, ge=0, description="target margin of SimPO")
    chosen_column: str | None = Field(None, description="column of the preferred answer")
    rejected_column: str | None = Field(None, description="column of the rejected answer")
    post_alignment: str | None = Field(
        None,
        description="requests with answers, such as refusals, that the server tunes the shared model on after the last "
        "round; written to aligned/",
    )
    post_alignment_steps: int = Field(50, ge=1, description="optimizer steps of post_alignment")

    reward: list[str] = Field(
        ["exact"], description="rewards of `weft grpo`: exact, numeric, regex, format, length, or FILE.py[:FUNCTION]"
    )
    reward_weights: list[float] | None = Field(None, description="weights of several rewards (default: 1 each)")
    reward_pattern: str | None = Field(
        None, description="regular expression for regex; if it has a group, the group must match the row's answer"
    )
    reward_format: str = Field(
        r"<think>.*?</think>\s*<answer>.*?</answer>", description="regular expression of a whole answer, for format"
    )
    reward_length: int = Field(
        200, ge=1, description="longest answer in characters with full reward, for length; at twice as many it is 0"
    )
    reward_seconds: float = Field(
        5.0, gt=0, description="time limit in seconds for the reward of one answer; beyond it the reward is 0"
    )
    num_generations: int = Field(8, ge=2, description="answers per prompt, whose rewards are compared")
    max_new_tokens: int = Field(256, ge=1, description="longest answer in tokens; longer ones are cut")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of answers")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus sampling: answers are sampled from the likeliest tokens of this total probability",
    )
    generation_engine: Literal["torch", "vllm"] = Field(
        "torch", description="what samples answers: torch, or vLLM with the weights of the moment"
    )
    vllm_memory: float = Field(0.3, gt=0, lt=1, description="share of a GPU's memory for vLLM while it samples")
    grpo_loss: Literal["grpo", "dapo", "dr_grpo"] = Field(
        "grpo",
        description="normalisation: mean over answers of means over tokens (grpo), mean over all tokens "
        "(dapo), or none (dr_grpo)",
    )
    grpo_clip: float = Field(0.2, gt=0, lt=1, description="clipping range of the probability ratio")
    grpo_kl: float = Field(0.04, ge=0, description="weight of the KL divergence from the starting model")
    grpo_iterations: int = Field(1, ge=1, description="optimizer steps on the same answers")


ONE_PROCESS = (
    Condition(
        lambda config: config.runtime == "inprocess" and config.parallel == "none" and config.prompt_method is None,
        "vLLM takes LoRA adapters and whole models of one process (runtime {c.runtime}, parallel {c.parallel}, "
        "prompt_method {c.prompt_method})",
    ),
)
PAIRS = verbs("preference")
AVERAGED = (
    Condition(
        lambda config: (
            config.parallel == "none" and config.lora_aggregation == "average" and config.prompt_method != "text"
        ),
        "the server tunes a model of one process that is made of averaged parameters alone (parallel {c.parallel}, "
        "lora_aggregation {c.lora_aggregation})",
        "leave out --parallel and --lora_aggregation",
    ),
)
ANSWERS = verbs("grpo")


def rewards(name: str) -> Effect:
    """Return the effect of a key of a reward."""
    return (
        Condition(
            lambda config: name in config.reward,
            f"the reward '{name}' is not among {{c.reward}}",
            f"add it: --reward {name}",
        ),
    )


WORKS: dict[str, Effect] = {
    "loss": PAIRS,
    "dpo_beta": PAIRS,
    "label_smoothing": PAIRS + only("loss", "robust_dpo"),
    "simpo_gamma": PAIRS + only("loss", "simpo"),
    "chosen_column": PAIRS,
    "rejected_column": PAIRS,
    "post_alignment": NOT_SITES + LOCAL_MODEL + GRADIENTS + verbs("sft", "preference") + WHOLE_SHARED + AVERAGED,
    "post_alignment_steps": flag("post_alignment", "FILE"),
    "reward": ANSWERS,
    "reward_weights": ANSWERS,
    "reward_pattern": ANSWERS + rewards("regex"),
    "reward_format": ANSWERS + rewards("format"),
    "reward_length": ANSWERS + rewards("length"),
    "reward_seconds": ANSWERS,
    "num_generations": ANSWERS,
    "max_new_tokens": ANSWERS,
    "temperature": ANSWERS,
    "top_p": ANSWERS,
    "generation_engine": ANSWERS + LOCAL_MODEL + ONE_PROCESS + NOT_SITES,
    "vllm_memory": ANSWERS + only("generation_engine", "vllm"),
    "grpo_loss": ANSWERS,
    "grpo_clip": ANSWERS,
    "grpo_kl": ANSWERS,
    "grpo_iterations": ANSWERS,
}
"""When each key has an effect."""
