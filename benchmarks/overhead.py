"""What a round costs beside the bare PyTorch steps that it contains, on the same batches."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import bare_steps, machine, make_model, make_rows, median, report

STEPS = 10
ROUNDS, LEAST, ENOUGH = 5, 3, 150
"""Rounds that are timed, and how many at least, where they and their bare steps take more than so many seconds."""

SFT = {
    "template": "vicuna",
    "use_peft": True,
    "peft_lora_r": 16,
    "peft_lora_target_modules": "all-linear",
    "seq_length": 256,
}
DPO = SFT | {"objective": "preference", "batch_size": 8}
PRETRAIN = {"objective": "causal_lm", "fed_alg": "diloco", "dataset_sample": None, "seq_length": 256}


def main(verb: str = "sft", dtype: str = "auto") -> None:
    """Alternate bare steps and whole rounds in one process, and print the median of the ratios of neighbours.

    Args:
        verb: sft (LoRA, FedAvg), dpo (the same, on pairs), or pretrain (all parameters, DiLoCo with kept moments).
        dtype: of the arithmetic.
    """

    from weft import config as configuration
    from weft.federation.client_host import ClientHost
    from weft.federation.clients import InMemory
    from weft.federation.loop import Rounds, run_rounds
    from weft.federation.sampling import Selection
    from weft.launch import compose
    from weft.launch.client_memory import DiskMemory
    from weft.launch.population import populate
    from weft.launch.reference import refer
    from weft.models.load import load_resident
    from weft.models.tokenizer import load_tokenizer
    from weft.runs.layout import RunDir
    from weft.runtimes.inprocess import InProcess
    from weft.training.job import Job

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = make_rows(folder / "rows.jsonl", 2000, words=(110, 140))
        if verb == "pretrain":
            texts = [json.loads(line)["output"] * 2 for line in rows.read_text(encoding="utf-8").splitlines()]
            rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        if verb == "dpo":
            made = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
            pairs = [
                {"prompt": row["instruction"], "chosen": row["output"], "rejected": other["output"]}
                for row, other in zip(made, made[1:] + made[:1], strict=True)
            ]
            rows.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
        config = configuration.build(
            {
                "model_name_or_path": str(make_model(folder / "model")),
                "dataset_name": str(rows),
                "token_cache": str(folder / "tokens"),
                "num_clients": 1,
                "sample_clients": 1,
                "num_rounds": 1000,
                "max_steps": STEPS,
                "batch_size": 16,
                "learning_rate": 1e-4,
                "eval_fraction": 0,
                "dtype": dtype,
            }
            | {"sft": SFT, "dpo": DPO, "pretrain": PRETRAIN}[verb]
        )
        plan = compose.plan(config)
        tokenizer = load_tokenizer(config)
        kind = plan.objective.rows
        (folder / "run").mkdir()
        memory = InMemory() if kind == "conversations" else DiskMemory(RunDir(folder / "run"))
        population = populate(config, tokenizer, memory, rows=kind, pool=False)
        model = load_resident(config, tokenizer)
        plan = replace(plan, objective=plan.objective.for_model(model))
        if plan.objective.needs_reference:
            refer(population, model, RunDir(folder / "run").reference_file, 16, print)
        runtime = InProcess(ClientHost(plan, model, None, population.trained, population.evaluated))  # type: ignore[arg-type]
        state = plan.algorithm.init(model.values())
        names = population.trained.names
        rounds = run_rounds(plan, state, runtime, Rounds(1000, Selection(0, 1), 0), clients=names, eval_clients=[])
        rows_of_client = population.trained[0].train

        def windows_of(round: int) -> list[list[Any]]:
            """Return the batches of a round, laid out."""
            return list(plan.local._windows(plan.objective, rows_of_client, STEPS, Job({}, {}, round=round)))

        bare_steps(model, plan.objective, windows_of(0))
        next(rounds)
        plain: list[float] = []
        whole: list[float] = []
        tokens = 0
        for number in range(1, ROUNDS + 1):
            if number > LEAST and sum(plain) + sum(whole) > ENOUGH:
                break
            windows = windows_of(number)
            tokens += sum(window[0].tokens for window in windows)
            began = time.perf_counter()
            bare_steps(model, plan.objective, windows)
            plain.append(time.perf_counter() - began)
            began = time.perf_counter()
            next(rounds)
            whole.append(time.perf_counter() - began)
        print(f"# {machine()}, {model.dtype}")
        print(f"bare steps {median(plain):.3f} s, a round {median(whole):.3f} s, {tokens / sum(whole):,.0f} tokens/s")
        report(
            f"a round / its bare steps (7.4 M, {verb}, {config.batch_size} x 256, {model.dtype})",
            median([round / steps for round, steps in zip(whole, plain, strict=True)]),
            1.05,
            most=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
