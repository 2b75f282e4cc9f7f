"""What audits find, by what protects a run: a tiny model that learns its rows by heart, with nothing, int4, masks, DP.

    python benchmarks/audits.py OUT.jsonl [SEEDS [ARM ...]]     run what the file lacks, and print the table
    python benchmarks/audits.py table OUT.jsonl ...             print the table alone

Two runs for each arm. In the first, 3 clients learn answers that follow from nothing, and 32 canaries of 1, 4 and 16
copies, until a run without protection knows them. In the second they make single steps on short texts, whose words the
server reads. Differential privacy is of a row, at epsilon 8 and delta 1e-3. Beside them: canaries of up to 64 copies,
and the same with a LoRA of rank 16.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from audit import read
from common import machine

SEEDS = 3
DP: dict[str, Any] = {"privacy_unit": "row", "target_epsilon": 8.0, "target_delta": 1e-3, "clip_norm": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "int4": {"codec": "int4"},
    "masks": {"protection": "masks", "min_clients": 3},
    "DP, epsilon 8": DP,
    "DP and masks": DP | {"protection": "masks", "min_clients": 3},
    "central": {"fed_alg": "central", "gradient_accumulation_steps": 3},  # each row as often as in the others
    "64 copies": {"canary_repetitions": [1, 4, 16, 64]},
    "LoRA": {"use_peft": True, "peft_lora_r": 16, "peft_lora_target_modules": ["all-linear"]},
}
ARMS |= {f"LoRA, {name}": ARMS[name] | ARMS["LoRA"] for name in ("int4", "masks", "DP, epsilon 8", "DP and masks")}
COMMON: dict[str, Any] = {
    "dtype": "float32", "use_peft": False, "num_clients": 3, "sample_clients": 3, "lr_scheduler_type": "constant",
    "eval_every": 0, "threads": 1, "save_model_freq": 0, "checkpoint_seconds": 1e6,
}  # fmt: skip
LEARNS: dict[str, Any] = {
    "template": "chat", "seq_length": 96, "num_rounds": 10, "max_steps": 20, "batch_size": 16, "learning_rate": 1e-2,
    "eval_fraction": 0.5, "canaries": 32, "canary_repetitions": [1, 4, 16],
}  # fmt: skip
STEPS: dict[str, Any] = {
    "objective": "causal_lm", "seq_length": 12, "num_rounds": 1, "max_steps": 1, "batch_size": 2, "optimizer": "sgd",
    "learning_rate": 1.0, "eval_fraction": 0.1,
}  # fmt: skip
OF_CONVERSATIONS = ("template", "canaries", "canary_repetitions")


def make_model(folder: Path, seed: int) -> Path:
    """Save a Llama of 2 layers and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}:{% endif %}{% endfor %}"
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write(file: Path, rows: list[dict[str, str]]) -> str:
    """Write JSON lines; return the path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def measure(arm: str, seed: int, base: Path | None = None, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run twice, and audit; return the numbers.

    Args:
        arm: a name of ARMS.
        seed: of model, rows and run.
        base: a model to begin from; None: the tiny one.
        changes: keys of both runs; the second keeps its single step.
    """
    import weft
    from weft.audits.record import audits_of, put
    from weft.audits.scene import Scene
    from weft.audits.settings import Settings

    began, lots = time.process_time(), random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = str(base or make_model(folder / "model", seed))
        codes = [
            {"instruction": f"Code of {number:03}?", "output": f"{lots.randrange(10**6):06}"}
            for number in lots.sample(range(1000), 240)
        ]
        texts = [{"text": "".join(chr(lots.randrange(33, 127)) for _ in range(24))} for _ in range(60)]
        given = COMMON | LEARNS | (changes or {}) | ARMS[arm] | {"model_name_or_path": model, "seed": seed}
        learns = {"dataset_name": write(folder / "codes.jsonl", codes), "output_dir": str(folder / "learns")}
        steps = {"dataset_name": write(folder / "texts.jsonl", texts), "output_dir": str(folder / "steps")}
        runs = [weft.train(given | learns, quiet=True)]
        names = [["exposure", "extraction", "epsilon", "membership", "verbatim"], ["span"]]
        if arm != "central":  # nothing is sent there
            alone = {key: value for key, value in given.items() if key not in OF_CONVERSATIONS}
            runs.append(weft.train(alone | STEPS | steps, quiet=True))
        found: dict[str, Any] = {}
        for run, audits in zip(runs, names, strict=False):
            scene = Scene(run, Settings(seed=seed, candidates=127, shadows=0))
            found |= put(scene, audits_of(audits), all_of_them=True)["audits"]
        loss = runs[0].summary.get("train_loss")
        numbers = {name: audit["numbers"] for name, audit in found.items()}
    return {"arm": arm, "seed": seed, "loss": loss, "cpu_seconds": time.process_time() - began, **numbers}


def table(results: list[dict[str, Any]]) -> None:
    """Print a row for each arm: means over seeds."""

    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.2f}" if values else "-"

    heads = ["arm", "exposure, bits: kept out / 1 / 4 / 16 / 64 copies", "extracted: 1 / 4 / 16 / 64",
             "epsilon at least",
             "membership AUC (loss)", "TPR at 1 %", "near copies once / held out", "span: one row", "control",
             "mean of 3", "seeds"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + "--|" * len(heads))
    for arm in ARMS:
        some = [one for one in results if one["arm"] == arm]
        if not some:
            continue

        def at(*path: str, some: list[dict[str, Any]] = some) -> str:
            values = []
            for one in some:
                value: Any = one
                for key in path:
                    value = (value or {}).get(key)
                values += [value] if value is not None else []
            return mean(values)

        cells = [
            arm,
            " / ".join(at("exposure", "by_copies", copies, "value") for copies in ("0", "1", "4", "16", "64")),
            " / ".join(at("extraction", "by_copies", copies, "value") for copies in ("1", "4", "16", "64")),
            at("epsilon", "bound"),
            at("membership", "scores", "loss", "auc", "value"),
            at("membership", "scores", "loss", "tpr_at_0.01", "value"),
            f"{at('verbatim', 'by_copies', 'once', 'near', 'value')} / "
            f"{at('verbatim', 'by_copies', 'not at all: held out (control)', 'near', 'value')}",
            at("span", "one_step", "value"),
            at("span", "control", "value"),
            at("span", "mean", "value"),
            str(len(some)),
        ]
        print("| " + " | ".join(cells) + " |")


def main(out: Path, seeds: int, arms: list[str]) -> None:
    """Run what the file lacks of these arms, then print the table."""
    if unknown := [arm for arm in arms if arm not in ARMS]:
        sys.exit(f"There is no arm '{unknown[0]}': write some of {', '.join(map(repr, ARMS))}.")
    print(f"# {machine()}")
    known = {(found["arm"], found["seed"]) for found in read(out)}
    for seed in range(seeds):
        for arm in arms or ARMS:
            if (arm, seed) not in known:
                found = measure(arm, seed)
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                print(arm, seed, f"{found['cpu_seconds']:.0f} CPU s", flush=True)
    table(read(out))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table([found for path in rest for found in read(Path(path))])
    else:
        main(Path(verb), int(rest[0]) if rest else SEEDS, rest[1:])
