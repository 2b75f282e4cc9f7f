"""Weft's rounds against the usual design: a `trl` SFTTrainer made anew for every client and round.

Each arithmetic for itself: trl's default is autocast to bfloat16, also on CPUs that emulate it.

Both start from the same loaded model with the same LoRA, and make the same steps on as many rows of the same data:
2 clients, 10 steps of 16 rows, FedAvg. The trainer's rows are the client's next 160, as OpenFedLLM selects them.
"""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import machine, make_model, make_rows, median, report

STEPS, BATCH, CLIENTS, ROUNDS = 10, 16, 2, 2
TRL, OURS = "trl, in float32", "Weft, in float32"
TRL_16, OURS_16 = "trl, its defaults: bfloat16 by autocast", "Weft, in bfloat16"


def keys(folder: Path) -> dict[str, Any]:
    """Return the run that both do."""
    return {
        "model_name_or_path": str(make_model(folder / "model")),
        "dataset_name": str(make_rows(folder / "rows.jsonl", 4000, words=(4, 60))),
        "template": "vicuna",
        "use_peft": True,
        "peft_lora_r": 16,
        "peft_lora_target_modules": "all-linear",
        "num_clients": CLIENTS,
        "sample_clients": CLIENTS,
        "num_rounds": 1000,
        "max_steps": STEPS,
        "batch_size": BATCH,
        "seq_length": 512,
        "learning_rate": 1e-4,
        "eval_fraction": 0,
    }


class Usual:
    """A model, and a trainer anew for every client and round."""

    def __init__(self, config: Any, folder: Path, **changes: Any) -> None:
        import torch
        from datasets import Dataset
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from weft.data.load import read_rows
        from weft.models.adapters import lora_config

        self.config, self.folder, self.changes = config, folder, changes
        self.tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
        base = AutoModelForCausalLM.from_pretrained(config.model_name_or_path, dtype=torch.float32)
        self.model = get_peft_model(base, lora_config(config))
        before = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        before += "detailed, and polite answers to the user's questions. "
        rows = [
            {"prompt": f"{before}USER: {row['instruction']} ASSISTANT:", "completion": " " + row["output"]}
            for row in read_rows(config.dataset_name)
        ]
        share = len(rows) // CLIENTS
        self.clients = [Dataset.from_list(rows[i * share : (i + 1) * share]) for i in range(CLIENTS)]
        self.done = 0

    def round(self) -> None:
        """Train every client with a trainer of its own, and average."""
        import torch
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from trl import SFTConfig, SFTTrainer

        before = copy.deepcopy(get_peft_model_state_dict(self.model))
        updates = []
        for client in self.clients:
            set_peft_model_state_dict(self.model, before)
            first = self.done * STEPS * BATCH % (len(client) - STEPS * BATCH)
            settings: dict[str, Any] = {
                "output_dir": str(self.folder / "trl"),
                "per_device_train_batch_size": BATCH,
                "max_steps": STEPS,
                "learning_rate": self.config.learning_rate,
                "max_length": self.config.seq_length,
                "lr_scheduler_type": "constant",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": not torch.cuda.is_available(),
            }
            trainer = SFTTrainer(
                model=self.model,
                args=SFTConfig(**settings | self.changes),
                train_dataset=client.select(range(first, first + STEPS * BATCH)),
                processing_class=self.tokenizer,
            )
            trainer.train()
            updates.append(copy.deepcopy(get_peft_model_state_dict(self.model)))
        mean = {name: sum(update[name] for update in updates) / len(updates) for name in before}
        set_peft_model_state_dict(self.model, mean)
        self.done += 1


def weft_rounds(config: Any) -> Any:
    """Return the iterator of Weft's rounds, its model loaded."""
    from weft.federation.client_host import ClientHost
    from weft.federation.clients import InMemory
    from weft.federation.loop import Rounds, run_rounds
    from weft.federation.sampling import Selection
    from weft.launch import compose
    from weft.launch.population import populate
    from weft.models.load import load_resident
    from weft.models.tokenizer import load_tokenizer
    from weft.runtimes.inprocess import InProcess

    plan = compose.plan(config)
    tokenizer = load_tokenizer(config)
    population = populate(config, tokenizer, InMemory(), rows="conversations", pool=False)
    model = load_resident(config, tokenizer)
    plan = replace(plan, objective=plan.objective.for_model(model))
    runtime = InProcess(ClientHost(plan, model, None, population.trained, population.evaluated))  # type: ignore[arg-type]
    return run_rounds(
        plan,
        plan.algorithm.init(model.values()),
        runtime,
        Rounds(1000, Selection(0, CLIENTS), 0),
        clients=population.trained.names,
        eval_clients=[],
    )


def main() -> None:
    """Alternate both in one process and print the ratio of the medians."""
    warnings.filterwarnings("ignore")
    import datasets
    from transformers.utils import logging

    from weft import config as configuration
    from weft.models.precision import cpu_has_bfloat16

    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        values = keys(folder)
        config = configuration.build(values)
        arms = {
            TRL: Usual(config, folder, bf16=False).round,
            f"{TRL}, without gradient checkpointing": Usual(
                config, folder, bf16=False, gradient_checkpointing=False
            ).round,
        }
        single = weft_rounds(configuration.build(values | {"dtype": "float32"}))
        arms[OURS] = lambda: next(single)
        if cpu_has_bfloat16():  # elsewhere it is emulated, and trl's default takes twelve times as long as float32
            half = weft_rounds(config)
            arms[TRL_16] = Usual(config, folder).round
            arms[OURS_16] = lambda: next(half)
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(ROUNDS + 1):
            for name, run in arms.items():
                began = time.perf_counter()
                run()
                if number:
                    taken[name].append(time.perf_counter() - began)
                print(f"# round {number}, {name}: {time.perf_counter() - began:.1f} s", flush=True)
        print(f"# {machine()}; {CLIENTS} clients x {STEPS} steps x {BATCH} rows a round")
        takes = {name: median(times) for name, times in taken.items()}
        for name, seconds in takes.items():
            print(f"{name:<50} {seconds:7.3f} s a round   {seconds / takes[OURS]:5.2f} x Weft's time in float32")
        report("trl anew for each client and round / Weft, both in float32", takes[TRL] / takes[OURS], 1.7, most=False)
        value = takes[TRL_16] / takes[OURS_16] if cpu_has_bfloat16() else None
        name = "trl anew for each client and round / Weft, both in bfloat16"
        report(name, value, 2.5, most=False, needs="AVX512-BF16 or AMX")


if __name__ == "__main__":
    main()
