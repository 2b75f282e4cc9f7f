"""Drawing answers for `weft grpo` beside transformers' own `generate`: the same model, prompts and answers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from common import machine, make_model, median, report

PROMPTS, COPIES, TOKENS, TIMES = 8, 8, 64, 5


def main() -> None:
    """Alternate the two in one process and print the ratio of the medians."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from weft.models.generate import Sampling, generate
    from weft.models.resident import Resident

    with tempfile.TemporaryDirectory() as temporary:
        folder = make_model(Path(temporary) / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    resident = Resident(model, tokenizer, torch.device("cpu"), torch.float32)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 4000, int(n)).astype(np.int32) for n in rng.integers(40, 80, PROMPTS)]
    width = max(len(prompt) for prompt in prompts)
    ids, mask = (torch.zeros(PROMPTS, width, dtype=torch.long) for _ in range(2))
    for line, prompt in enumerate(prompts):
        ids[line, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[line, width - len(prompt) :] = 1
    theirs, ours = [], []
    for _ in range(TIMES):
        began = time.perf_counter()
        model.generate(
            input_ids=ids.repeat_interleave(COPIES, 0),
            attention_mask=mask.repeat_interleave(COPIES, 0),
            do_sample=True,
            max_new_tokens=TOKENS,
            pad_token_id=2,
        )
        theirs.append(time.perf_counter() - began)
        began = time.perf_counter()
        drawn = generate(resident, prompts, Sampling(TOKENS), copies=COPIES, seed=1)
        tokens = sum(len(answer.ids) for group in drawn for answer in group)
        ours.append((time.perf_counter() - began) * PROMPTS * COPIES * TOKENS / tokens)  # some of ours end sooner
    print(f"# {machine()}")
    print(f"transformers {median(theirs):.2f} s, ours {median(ours):.2f} s")
    report("drawing 8 x 8 answers of 64 tokens / transformers", median(ours) / median(theirs), 1.0, most=True)


if __name__ == "__main__":
    main()
