"""What a step under differential privacy costs beside a plain one, on the same rows: `python benchmarks/private.py`."""

from __future__ import annotations

import time

import numpy as np
import torch
from common import machine, median, report

STEPS, TURNS, LENGTHS = 4, 7, (96, 40, 60, 24, 80, 96, 30, 50)
"""Tokens of the rows of a batch: they differ, so that plain steps gain from packing, which private ones cannot use."""


def main() -> None:
    """Alternate both kinds of steps, LoRA and all parameters, and print the medians of the ratios of CPU seconds."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from weft.core.parts import LocalRule
    from weft.models.resident import Resident
    from weft.objectives.sft import SFT
    from weft.training.job import Job
    from weft.training.loop import GradientSteps
    from weft.training.private import PrivateSteps
    from weft.training.schedules import Schedule

    torch.set_num_threads(1)
    print(f"# {machine()}")
    rng = np.random.default_rng(0)
    rows = [(rng.integers(3, 4096, size).astype(np.int32), np.arange(size) >= size // 2) for size in LENGTHS]
    shape = {"schedule": Schedule("constant", 1e-3, 0.0, 4), "seed": 1, "steps": STEPS, "batch_size": len(rows)}
    private = PrivateSteps(**shape, max_grad_norm=0.0, noise_of=lambda units: 1.0)
    for trained, bound in (("LoRA", 2.2), ("all parameters", 4.0)):
        torch.manual_seed(0)
        width = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8, "num_key_value_heads": 4}
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=4096, num_hidden_layers=4, **width))
        if trained == "LoRA":
            targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
            model = get_peft_model(model, LoraConfig(r=16, lora_dropout=0.0, target_modules=targets))
        resident = Resident(model, None, torch.device("cpu"), torch.float32)
        packed, start = SFT().for_model(resident), resident.values()

        def seconds(steps: GradientSteps, objective: SFT) -> float:
            before = time.process_time()
            steps.work(resident, objective, rows, LocalRule(), Job({}, start))  # noqa: B023
            return time.process_time() - before

        seconds(private, packed), seconds(GradientSteps(**shape), packed)
        pairs = [(seconds(private, packed), seconds(GradientSteps(**shape), packed)) for _ in range(TURNS)]
        ratio = median([ours / plain for ours, plain in pairs])
        report(f"a step with differential privacy / a plain step, {trained}", ratio, bound, most=True)


if __name__ == "__main__":
    main()
