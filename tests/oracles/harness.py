"""Writes harness.json: log-probabilities and greedy texts of lm-eval for the first rows of some tasks.

pip install lm-eval==0.4.13 && python tests/oracles/harness.py STORIES260K TASK_DATA
Prompts are kept as digests alone: the rows belong to their authors.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import pathlib
import sys
from typing import Any

ROWS, TOKENS = 12, 24
QUIET = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"))


def rows(data: pathlib.Path, name: str, **wanted: str) -> list[dict[str, Any]]:
    lines = gzip.decompress((data / f"{name}.jsonl.gz").read_bytes()).decode().split("\n")
    table = [json.loads(line) for line in lines if line]
    return [row for row in table if all(row[key] == value for key, value in wanted.items())]


def task(path: str, name: str, test: list[dict[str, Any]], dev: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    import lm_eval
    from datasets import Dataset, DatasetDict
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(pathlib.Path(lm_eval.__file__).parent / "tasks" / path, resolve_func=True)
    for key in ("dataset_path", "dataset_name", "tag", "include", "task_alias", "training_split", "validation_split"):
        config.pop(key, None)
    parts = {"test": Dataset.from_list(test[:ROWS])}
    if dev is None:
        config.pop("fewshot_split", None)
    else:
        parts[config["fewshot_split"]] = Dataset.from_list(dev)
    if "generation_kwargs" in config:
        config["generation_kwargs"] |= {"max_gen_toks": TOKENS}
    return config | {"task": name, "custom_dataset": lambda **_: DatasetDict(parts)}


def items(lm: Any, config: dict[str, Any], shots: int) -> list[dict[str, Any]]:
    import lm_eval

    config["num_fewshot"] = shots
    result = lm_eval.simple_evaluate(
        model=lm, tasks=[dict(config)], num_fewshot=shots, bootstrap_iters=0, log_samples=True, **QUIET
    )
    by_row = {sample["doc_id"]: sample for sample in result["samples"][config["task"]]}
    values = []
    for number in sorted(by_row):
        sample = by_row[number]
        prompt = hashlib.sha256(sample["arguments"][0][0].encode()).hexdigest()
        replies = [reply[0] for reply in sample["resps"]]
        key = "logps" if config["output_type"] == "multiple_choice" else "text"
        values.append({"prompt": prompt, key: [float(r[0]) for r in replies] if key == "logps" else replies[0]})
    return values


def main() -> None:
    import lm_eval
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, data = sys.argv[1], pathlib.Path(sys.argv[2])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    anatomy = [rows(data, "mmlu", subject="anatomy", split=part) for part in ("test", "dev")]
    pubmed = [
        {"CONTEXTS": [row["context"]], "QUESTION": row["question"], "final_decision": row["label"]}
        for row in rows(data, "pubmedqa", split="test")
    ]
    tasks = {
        "mmlu_anatomy": task("mmlu/default/mmlu_anatomy.yaml", "mmlu_anatomy", *anatomy),
        "pubmedqa": task("pubmedqa/pubmedqa.yaml", "pubmedqa", pubmed),
        "gsm8k": task("gsm8k/gsm8k.yaml", "gsm8k", rows(data, "gsm8k_test")),
        "math": task("hendrycks_math/hendrycks_math_algebra.yaml", "math", rows(data, "math_test")),
        "bbh": task("bbh/zeroshot/boolean_expressions.yaml", "bbh", rows(data, "bbh", task="boolean_expressions")),
    }
    found: dict[str, Any] = {"lm-eval": lm_eval.__version__, "torch": torch.__version__, "tokens": TOKENS}
    found["tasks"] = {f"{name} 0": items(lm, config, 0) for name, config in tasks.items()}
    found["tasks"]["mmlu_anatomy 2"] = items(lm, tasks["mmlu_anatomy"], 2)
    # Weft scores the text alone; lm-eval scores a first token that its tokenizer adds, too, unless it is told not to.
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, add_bos_token=False)
    texts = [row["question"] for row in rows(data, "gsm8k_test")[:ROWS]] + [pubmed[0]["CONTEXTS"][0] * 3]
    asked = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for text in texts]
    found["texts"] = [float(value) for value in plain.loglikelihood_rolling(asked)]
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
