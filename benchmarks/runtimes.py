"""What the runtimes cost beside the bare engine under them: NVIDIA FLARE over mutual TLS, and Ray.

    python benchmarks/runtimes.py flare     a round of two sites, tiny and of 100 MB, beside calls that echo bytes
    python benchmarks/runtimes.py ray       the same for two actors, and what a second actor gains

What the runtime adds is a round there less a round of one of the clients in one process, as sites work at the same
time; what the bare engine needs is a call to every site that sends the bytes and gets them back. Ratios within one run;
medians.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import machine

HERE = Path(__file__).parent
SIZES = {"tiny": {"hidden_size": 32, "num_layers": 2}, "large": {"hidden_size": 576, "num_layers": 6}}
"""Of models that are trained in the whole: 0.3 MB and about 100 MB of parameters."""
BETWEEN = {"delay": {"hidden_size": 96, "num_layers": 6}}
"""One of about 3 MB, for delay.py."""
ROUNDS = {"tiny": 12, "large": 10}
REPEAT = {"tiny": 20, "large": 10}


class EchoServer:
    """A bare job: calls every site in turn with some bytes, often."""

    def __init__(self, sizes: dict[str, int], out: str) -> None:
        self.sizes, self.out = sizes, out

    def main(self) -> str:
        """Call, and write down how long it took."""
        from nvflare.collab import collab

        found: dict[str, list[float]] = {}
        for name, size in self.sizes.items():
            raw = os.urandom(size)
            for _ in range(REPEAT[name]):
                began = time.perf_counter()
                answers = list(collab.clients(timeout=120.0).echo(raw))
                assert all(len(answer) == size for _, answer in answers)
                found.setdefault(name, []).append(time.perf_counter() - began)
        Path(self.out).write_text(json.dumps(found), encoding="utf-8")
        return "done"


class EchoSite:
    """Gives back what it is sent."""

    def echo(self, raw: bytes) -> bytes:
        """Give it back."""
        return raw


def decorated() -> None:
    from nvflare.collab import collab

    EchoServer.main = collab.main(EchoServer.main)  # type: ignore[method-assign]
    EchoSite.echo = collab.publish(EchoSite.echo)  # type: ignore[method-assign]


if __name__ != "__main__":  # loaded by FLARE
    decorated()


def keys_of(folder: Path, size: str, clients: list[str]) -> dict[str, Any]:
    """Return a run of one step a round, all parameters, on rows of each client's own."""
    data = []
    for number, name in enumerate(clients):
        rows = [{"text": f"row {i} of {name}: " + "words and more words " * 4} for i in range(8 + number)]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data.append({"name": name, "data": str(path)})
    return {
        "objective": "causal_lm",
        "model_name_or_path": str(model_of(folder, size)),
        "clients": data,
        "sample_clients": len(clients),
        "num_rounds": ROUNDS.get(size, 1),
        "max_steps": 1,
        "batch_size": 2,
        "seq_length": 32,
        "eval_fraction": 0.0,
        "eval_every": 0,
        "checkpoint_seconds": 1e6,
        "save_model_freq": 0,
        "threads": 1,
        "dtype": "float32",
    }


def alone(run: dict[str, Any]) -> dict[str, Any]:
    """Return the run with the first of its clients only."""
    return run | {"clients": run["clients"][:1], "sample_clients": 1}


def model_of(folder: Path, size: str) -> Path:
    """Return the folder of a Llama of a size, made once."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    out = folder / f"model-{size}"
    if out.exists():
        return out
    shared = Path(os.environ.get("WEFT_DATA", HERE.parent.parent / "shared" / "data")).parent
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    shape = (SIZES | BETWEEN)[size]
    width = shape["hidden_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def seconds(run: Path) -> list[float]:
    """Return the seconds of a run's rounds, the first left out."""
    lines = (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines][1:]


def told(name: str, bytes: float, bare: list[float], here: list[float], there: list[float]) -> None:
    """Print a comparison; what the runtime adds is there - here."""
    added, echo = statistics.median(there) - statistics.median(here), statistics.median(bare)
    half = len(there) // 2
    growth = statistics.median(there[half:]) / statistics.median(there[:half])
    print(
        f"{name}: {bytes / 1e6:.1f} MB a client, bare echo {echo:.3f} s, a round adds {added:.3f} s "
        f"({added - echo:+.3f} s; ratio of rates {echo / added:.2f}); a round here {statistics.median(here):.3f} s, "
        f"there {statistics.median(there):.3f} s, second half / first half {growth:.2f}",
        flush=True,
    )


def flare(folder: Path) -> None:
    """Compare over mutual TLS on loopback, two sites."""
    import weft
    from weft.config import build
    from weft.sites.admin import admin_session
    from weft.sites.job import write_job
    from weft.sites.local_federation import LocalFederation
    from weft.sites.watcher import watch

    sites = ["a", "b"]
    runs = {size: keys_of(folder, size, sites) for size in SIZES}
    bytes = {size: sum(f.stat().st_size for f in model_of(folder, size).glob("*.safetensors")) for size in SIZES}
    policies = {}
    for site in sites:
        policies[site] = folder / f"{site}.yaml"
        models = [run["model_name_or_path"] for run in runs.values()]
        policy = {"data": f"{site}.jsonl", "threads": 1, "accept": {"models": models}}
        policies[site].write_text(yaml.safe_dump(policy), encoding="utf-8")
    os.environ["PYTHONPATH"] = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
    parties = LocalFederation(folder / "up", policies)
    for kit in ("server", *sites):
        path = parties.kits / kit / "local" / "resources.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["class_allow_list"] += ["runtimes.EchoServer", "runtimes.EchoSite"]
        path.write_text(json.dumps(settings), encoding="utf-8")
    try:
        parties.begin()
        left = {size: {k: v for k, v in run.items() if k != "clients"} for size, run in runs.items()}
        config = build(left["tiny"] | {"runtime": "nvflare", "sites": sites})
        job = write_job(config, "echo", folder)
        for part, own in (("server", {"sizes": bytes, "out": str(folder / "echo.json")}), ("client", {})):
            path = job / "app" / "config" / f"config_fed_{part}.json"
            words = json.loads(path.read_text(encoding="utf-8"))
            words["components"][0] |= {"path": f"runtimes.Echo{'Server' if own else 'Site'}", "args": own}
            path.write_text(json.dumps(words), encoding="utf-8")
        with admin_session(parties.admin) as session:
            number = session.session.submit_job(str(job))
            while not session.state(number).startswith("FINISHED"):
                time.sleep(0.5)
        bare = json.loads((folder / "echo.json").read_text(encoding="utf-8"))
        for size, run in runs.items():
            given = build(left[size] | {"runtime": "nvflare", "sites": sites})
            watch(parties.admin, given, size, lambda _: None)
            one = weft.train(alone(run) | {"output_dir": str(folder / f"here-{size}")}, quiet=True)
            there = seconds(parties.kits / "server" / "runs" / size)
            told(f"flare, {size}", bytes[size], bare[size], seconds(one.path), there)
    finally:
        parties.close()


def on_ray(folder: Path) -> None:
    """Compare with bare actors, and one actor with two."""
    import ray

    import weft
    from weft.config import build
    from weft.launch.ray_actor import join

    join(build({"dataset_name": "any"}), cpus=2)
    sites = ["a", "b"]

    @ray.remote(num_cpus=1)
    class Echo:
        def echo(self, raw: bytes) -> bytes:
            return raw

    for size in SIZES:
        run = keys_of(folder, size, sites)
        many = sum(f.stat().st_size for f in model_of(folder, size).glob("*.safetensors"))
        actors, raw, bare = [Echo.remote() for _ in sites], os.urandom(many), []
        for _ in range(REPEAT[size] + 1):
            began = time.perf_counter()
            sent = ray.put(raw)
            ray.get([actor.echo.remote(sent) for actor in actors])
            bare.append(time.perf_counter() - began)
        del actors
        there = weft.train(
            run | {"runtime": "ray", "num_actors": 2, "output_dir": str(folder / f"r-{size}")}, quiet=True
        )
        one = weft.train(alone(run) | {"output_dir": str(folder / f"h-{size}")}, quiet=True)
        told(f"ray, {size}", many, bare[1:], seconds(one.path), seconds(there.path))
    names = [f"c{i}" for i in range(8)]
    work = keys_of(folder, "large", names) | {"max_steps": 6, "num_rounds": 3, "use_peft": True}
    found = {}
    for count in (1, 2):
        ran = weft.train(
            work | {"runtime": "ray", "num_actors": count, "output_dir": str(folder / f"s{count}")}, quiet=True
        )
        found[count] = statistics.median(seconds(ran.path))
    print(
        f"ray, 8 clients: 1 actor {found[1]:.2f} s a round, 2 actors {found[2]:.2f} s: {found[1] / found[2]:.2f} times"
    )
    ray.shutdown()


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        {"flare": flare, "ray": on_ray}[sys.argv[1]](Path(temporary))
