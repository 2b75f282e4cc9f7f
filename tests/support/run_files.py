"""Directories of runs as pages read them: every file that a run writes, with numbers that need no training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from weft.runs.chain import ChainLog
from weft.runs.layout import RunDir
from weft.runs.metrics import MetricsLog

HOSTILE = "<script>alert('x')</script>&\ud800"
"""A client's name, as somebody who wants to break a page would choose it."""


def lay_run(
    path: Path,
    *,
    rounds: int = 20,
    clients: int = 3,
    finished: bool = True,
    level: float = 1.0,
    names: list[str] | None = None,
    **keys: Any,
) -> Path:
    """Write the directory of a run of two clients a round.

    Args:
        path: where to.
        rounds: that are done.
        clients: how many; the first has a hostile name, unless `names` says otherwise.
        finished: whether it has a summary.
        level: the loss that it comes down to.
        names: of the clients.
        keys: of the configuration.
    """
    names = names or [HOSTILE, *(f"client_{i}" for i in range(1, clients))]
    config = {
        "objective": "sft",
        "fed_alg": "fedavg",
        "model_name_or_path": "tiny/<b>llama",
        "dataset_name": "notes & questions",
        "num_clients": len(names),
        "num_rounds": rounds,
        "use_peft": True,
        "peft_lora_r": 8,
        "learning_rate": 1e-4,
        "seed": 1,
        "clients": None,
    } | keys
    with RunDir.create(path, config, resume=False, overwrite=False, volatile=frozenset()) as run:
        evaluation = _log(run, names, rounds, level)
        labels = ["yes", "no", "<i>perhaps"]
        split = {
            "strategy": "dirichlet",
            "labels": labels,
            "clients": {
                name: {
                    "rows": 30 + 10 * (place % 5),
                    "tokens": [12.0, 30.0, 80.0],
                    "labels": [10, 15, 5 + 10 * (place % 5)],
                }
                for place, name in enumerate(names)
            },
            "skew": {"size_gini": 0.21, "length_ks": 0.1, "length_ks_max": 0.3, "label_js": 0.05, "label_js_max": 0.2},
        }
        run.split_file.write_text(json.dumps(split))
        with ChainLog(run.chain_file) as chain:
            chain.append(
                {"event": "begin", "versions": {"torch": "2.13.0"}, "machine": {"device": "cpu", "threads": 1}}
            )
        if finished:
            summary = {
                "rounds": rounds,
                "seconds": 205.0,
                "tokens": 246_900,
                "bytes_up": 20_000_000,
                "bytes_down": 20_000_000,
                "peak_memory_bytes": 1_234_000_000,
                "train_loss": 1.447,
                "eval": {key: evaluation.get(key) for key in ("loss", "perplexity", "accuracy", "macro_f1")},
                "clients": evaluation.get("clients", {}),
                "failures": {},
                "answers": {
                    "round": rounds,
                    "tasks": {"colours": [{"prompt": "Sky?\nOne word:", "before": "<img src=x>", "after": "blue"}]},
                },
            }
            run.summary_file.write_text(json.dumps(summary))
    return path


def _log(run: RunDir, names: list[str], rounds: int, level: float) -> dict[str, Any]:
    """Write the rounds, an evaluation after every fifth; return the last evaluation."""
    evaluation: dict[str, Any] = {}
    with MetricsLog(run.metrics_file) as log, MetricsLog(run.timing_file) as timing:
        for round in range(1, rounds + 1):
            loss = level + 2 / round**0.5
            taking = [names[(round * 7 + place) % len(names)] for place in range(max(2, len(names) // 4))]
            failures = {taking[0]: "the loss is <NaN>"} if round % 7 == 0 else {}
            log.append(
                {
                    "event": "round",
                    "round": round,
                    "clients": [name for name in taking if name not in failures],
                    "train_loss": loss,
                    "tokens": 12345,
                    "examples": 160,
                    "bytes_up": 10**6,
                    "bytes_down": 10**6,
                    "learning_rate": 1e-4,
                    "failures": failures,
                    "product_error": 0.1 / round,
                    "epsilon": round**0.5,
                }
            )
            speed = 8000 + 300 * math.sin(round)
            timing.append({"round": round, "seconds": 1.5, "tokens_per_second": speed})
            if round % 5 == 0:
                by_client = {
                    name: {
                        "loss": loss + 0.1 + 0.05 * (place % 9),
                        "perplexity": math.exp(loss),
                        "accuracy": 1 - (1 + 0.1 * (place % 9)) / (1 + round / 3),
                        "macro_f1": None,
                        "rows": 10,
                    }
                    for place, name in enumerate(names)
                }
                mean = {
                    key: sum(one[key] for one in by_client.values()) / len(names)
                    for key in ("loss", "perplexity", "accuracy")
                }
                evaluation = {"event": "eval", "round": round, **mean, "macro_f1": None, "rows": 10 * len(names)}
                evaluation["clients"] = by_client
                log.append(evaluation)
    return evaluation
