"""kill -9 of the process that runs the rounds, at random instants: does what it resumes to have the same bits?

    python benchmarks/kills.py [KILLS]           200 by default
    python benchmarks/kills.py sites [KILLS]     of sites' processes, 50 by default

Runs of 30 rounds (SCAFFOLD with LoRA, memories of clients, every round committed) are killed and resumed to their end,
half of the kills at a random time, half while a file is being written; each run's metrics and adapter are then compared
with an undisturbed run's. After every kill the rounds that had been committed must still be there. Processes are forked
from one that has imported everything, so that a life takes no time to begin.

With `sites`, two sites of a federation on this machine (SCAFFOLD over mutual TLS) lose the process that has their
model, at a random instant of every round; the run must end with the bits of one in a single process, and no turn
dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, make_model, make_rows

ROUNDS = 30


def keys_of(folder: Path, out: str) -> dict[str, Any]:
    """Return the run."""
    return {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "rows.jsonl"),
        "fed_alg": "scaffold",
        "use_peft": True,
        "num_clients": 4,
        "sample_clients": 3,
        "num_rounds": ROUNDS,
        "max_steps": 2,
        "batch_size": 2,
        "seq_length": 160,
        "template": "vicuna",
        "eval_every": 5,
        "checkpoint_seconds": 0,
        "save_model_freq": 5,
        "threads": 1,
        "dtype": "float32",
        "output_dir": str(folder / out),
    }


def begin(keys: dict[str, Any], resume: bool) -> int:
    """Run in a process of its own; return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        import weft

        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        weft.train(keys, resume=resume, quiet=True)
        code = 0
    finally:
        os._exit(code)


def committed(run: Path) -> int:
    """Return the newest round that a checkpoint holds whole."""
    found = [int(path.name.removeprefix("round_")) for path in (run / "checkpoints").glob("round_*") if path.is_dir()]
    return max((number for number in found if not (run / f".{number}").exists()), default=0)


def writing(run: Path) -> bool:
    """Say whether a file is being written."""
    return any(run.glob("**/.*.tmp")) or any((run / "checkpoints").glob(".*"))


def over(child: int) -> int | None:
    """Return a process's exit code, None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def live(keys: dict[str, Any], resume: bool, rng: random.Random) -> bool:
    """Let the run live for a while, and kill it; return whether it came to its end before."""
    run, child = Path(keys["output_dir"]), begin(keys, resume)
    in_write, until = rng.random() < 0.5, time.monotonic() + rng.uniform(0.1, 1.5)
    while True:
        code = over(child)
        if code is not None:
            if code:
                raise SystemExit(f"a life ended by itself ({code})")
            return True
        if time.monotonic() > until and (not in_write or writing(run)):
            break
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def result(run: Path) -> tuple[bytes, bytes]:
    """Return what must be the same."""
    return (run / "metrics.jsonl").read_bytes(), (run / "adapter" / "adapter_model.safetensors").read_bytes()


def kill_sites(kills: int) -> None:
    """Kill a site's process in every round, at a random instant, and compare with a run in one process."""
    import threading

    import weft
    from weft.config import build
    from weft.sites.local_federation import federation
    from weft.sites.watcher import watch

    rng, done, over = random.Random(0), [], threading.Event()
    with tempfile.TemporaryDirectory() as temporary:
        folder, names = Path(temporary), ("a", "b")
        make_model(folder / "model", hidden=64, layers=2, vocabulary=1024)
        keys = keys_of(folder, "whole") | {"num_rounds": 2 * kills, "sample_clients": 2, "max_steps": 40}
        del keys["dataset_name"], keys["num_clients"]
        policies = {}
        for number, name in enumerate(names):
            make_rows(folder / f"{name}.jsonl", 30 + number, words=(3, 6))
            policies[name] = folder / f"{name}.yaml"
            policy = {"data": f"{name}.jsonl", "threads": 1, "accept": {"models": [keys["model_name_or_path"]]}}
            policies[name].write_text(json.dumps(policy))
        given = {key: value for key, value in keys.items() if key != "output_dir"}
        run = build(given | {"runtime": "nvflare", "sites": list(names)})

        def kill(timing: Path, sites: Path) -> None:
            seen = -1
            while not over.is_set() and len(done) < kills:
                rounds = len(timing.read_bytes().splitlines()) if timing.exists() else 0
                if rounds == seen or rounds == 0:
                    time.sleep(0.01)
                    continue
                seen = rounds
                time.sleep(rng.uniform(0.0, 1.0))
                site = rng.choice(names)
                for number in processes("weft.sites.model_process", str(sites / site)):
                    os.kill(number, signal.SIGKILL)
                    done.append(site)

        with federation(folder / "up", policies) as parties:
            there = parties.kits / "server" / "runs" / "kills"
            killer = threading.Thread(target=kill, args=(there / "timing.jsonl", parties.kits))
            killer.start()
            last = watch(parties.admin, run, "kills", lambda _: None)
            over.set()
            killer.join()
            clients = [{"name": name, "data": str(folder / f"{name}.jsonl")} for name in names]
            weft.train(keys | {"clients": clients}, quiet=True)
            rounds = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
            dropped = sum(len(line["failures"]) for line in rounds if line["event"] == "round")
            same = result(there) == result(folder / "whole")
    print(f"{len(done)} kills of sites' processes, run {last['state']}: {dropped} turns dropped, bits equal: {same}")
    if dropped or not same:
        raise SystemExit(1)


def processes(*words: str) -> list[int]:
    """Return the processes whose command has all these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            said = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in said for word in words):
                found.append(int(path.parent.name))
    return found


def main(kills: int) -> None:
    """Kill until there were so many."""
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import weft.launch.train  # noqa: F401

    torch.set_num_threads(1)
    rng, lost, unequal, done, runs = random.Random(0), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "model", hidden=64, layers=2, vocabulary=1024)
        make_rows(folder / "rows.jsonl", 60, words=(3, 6))
        whole = keys_of(folder, "whole")
        child = begin(whole, False)
        os.waitpid(child, 0)
        wanted = result(folder / "whole")
        while done < kills:
            keys = keys_of(folder, f"run{runs}")
            run, resume, before = Path(keys["output_dir"]), False, 0
            while not live(keys, resume, rng):
                done += 1
                after = committed(run)
                lost += after < before
                before, resume = after, (run / "config.yaml").exists()
            runs += 1
            unequal += result(run) != wanted
            print(json.dumps({"kills": done, "runs": runs, "lost": lost, "unequal": unequal}), flush=True)
    print(f"{done} kills of {runs} runs: {lost} lost a committed round, {unequal} runs ended with other bits")
    if lost or unequal:
        raise SystemExit(1)


if __name__ == "__main__":
    print(machine())
    if sys.argv[1:2] == ["sites"]:
        kill_sites(int(sys.argv[2]) if len(sys.argv) > 2 else 50)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
