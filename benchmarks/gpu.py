"""What training costs on a GPU: `python benchmarks/gpu.py [--deadline SECONDS] [--tiny]`, without downloads.

A Llama of 7 B width with 8 of 32 layers is made on the device. Every line is printed when it is known; at the deadline
the parts that are left are named and skipped. With --tiny, or on a CPU, the same parts run with tiny sizes.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import bare_steps
from gpu_parts import (
    TINY,
    WIDE,
    Size,
    counted_waits,
    empty,
    local_steps,
    peak,
    resident_of,
    rows_of,
    timed,
    wait,
)

RATES = (("bf16", torch.bfloat16, False, 10), ("tf32", torch.float32, True, 3), ("fp32", torch.float32, False, 3))
BASES = {"bf16": 16, "8-bit": 8, "4-bit": 4}


class Bench:
    """One device, its measured rates, and a deadline."""

    def __init__(self, device: torch.device, size: Size, deadline: float) -> None:
        self.device, self.size, self.end = device, size, time.monotonic() + deadline
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.rate = float("nan")
        """Measured floating-point operations a second of large bf16 matrix products."""

    def run(self, parts: Sequence[tuple[str, Callable[[], None]]]) -> None:
        """Run the parts in order; a part that fails is named, and the next one runs."""
        for name, part in parts:
            if time.monotonic() > self.end:
                print(f"-- {name}: not measured, the deadline has come", flush=True)
                continue
            print(f"== {name}", flush=True)
            begin = time.monotonic()
            try:
                part()
            except Exception:
                print("   failed:", traceback.format_exc().strip().splitlines()[-1], flush=True)
                traceback.print_exc()
            empty(self.device)
            print(f"   ({time.monotonic() - begin:.0f} s)", flush=True)

    def machine(self) -> None:
        """Print the card and its rates."""
        if self.device.type == "cuda":
            card = torch.cuda.get_device_properties(self.device)
            print(f"   {card.name}, {card.total_memory / 1e9:.0f} GB, torch {torch.__version__}")
        width = 8192 if self.device.type == "cuda" else 256
        for name, dtype, tf32, times in RATES:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            left = torch.randn(width, width, device=self.device).to(dtype)
            rate = 2 * width**3 / timed(partial(torch.matmul, left, left.T.contiguous()), self.device, times)
            if name == "bf16":
                self.rate = rate
            print(f"   {name}: {rate / 1e12:.1f} TFLOP/s")
        torch.backends.cuda.matmul.allow_tf32 = False
        block = torch.empty(256 << 20 if self.device.type == "cuda" else 1 << 20, dtype=torch.uint8, device=self.device)
        print(f"   copies: {2 * block.numel() / timed(block.clone, self.device, 10) / 1e12:.2f} TB/s", flush=True)

    def step(
        self, name: str, size: Size, *, bits: int = 16, mode: str = "auto", same: bool = True, **keys: Any
    ) -> float:
        """Print a step's time and memory; return its seconds.

        Args:
            name: of the line.
            size: of model and rows.
            bits: of the base.
            mode: how rows share lines: auto, mask, or padded (they do not).
            same: all rows have the same length; else a quarter of it up to all of it.
            keys: of the run.
        """
        from weft.core.local_rule import LocalRule
        from weft.objectives.sft import SFT
        from weft.training.job import Job

        compiles = keys.pop("compiles", False)
        model = resident_of(size, self.device, self.dtype, bits=bits, **keys)
        if compiles:
            for layer in model.base.model.layers:
                layer.compile()
        objective = SFT().for_model(model)
        if mode != "auto":
            from dataclasses import replace

            objective = replace(objective, pack=mode == "mask" and model.can_pack, offsets="")
        rows = rows_of(size, size.batch * 8, same=same)
        local, job, rule = local_steps(2, size), Job({}, model.values()), LocalRule()
        begin = time.perf_counter()
        local.work(model, objective, rows, rule, job)
        wait(self.device)
        if compiles:
            print(f"   compiling took {time.perf_counter() - begin:.0f} s")
        peak(self.device)
        begin = time.perf_counter()
        result = local_steps(6, size).work(model, objective, rows, rule, job)
        wait(self.device)
        seconds = (time.perf_counter() - begin) / 6
        tokens = result.metrics["tokens"] / 6
        waits = []
        for steps in (3, 1):
            with counted_waits(self.device) as places:
                local_steps(steps, size).work(model, objective, rows, rule, job)
            waits.append(places)
        weights = size.layers * (4 * size.hidden**2 + 3 * size.hidden * size.inner)
        if size.kv_heads != size.heads:
            weights -= size.layers * 2 * size.hidden**2 * (1 - size.kv_heads / size.heads)
        # The base has no weight gradients: two products for the way forward and two for that back.
        useful = 4 * (weights * tokens + size.hidden * size.vocabulary * tokens / 2)
        each = (len(waits[0]) - len(waits[1])) / 2
        print(
            f"   {name:<40} {seconds * 1e3:8.1f} ms  {tokens / seconds:8,.0f} tokens/s",
            f"{useful / seconds / self.rate:6.1%} of bf16  {peak(self.device):6.1f} GB",
            f"{each:g} waits a step, {len(waits[1])} a round",
            "one line" if model.offsets and mode == "auto" else "",
            sep="  ",
            flush=True,
        )
        del model
        empty(self.device)
        return seconds

    def table(self) -> None:
        """Print the step table."""
        for length, batch in (
            (self.size.length, self.size.batch),
            (self.size.length * 8, max(1, self.size.batch // 8)),
        ):
            size = Size(*list(vars(self.size).values())[:6], batch, length)
            for name, bits in BASES.items():
                if bits != 16 and self.device.type != "cuda":
                    continue
                for checkpointing in (False, True):
                    if time.monotonic() < self.end:
                        self.step(
                            f"{name}, {batch} x {length}{', checkpointing' if checkpointing else ''}",
                            size,
                            bits=bits,
                            gradient_checkpointing=checkpointing,
                        )

    def choices(self) -> None:
        """Print what each choice costs, one at a time."""
        size = self.size
        off = {"gradient_checkpointing": False}
        self.step("plain", size, **off)
        self.step("no kernels", size, kernels="none", **off)
        self.step("no dropout", size, peft_lora_dropout=0.0, **off)
        if self.device.type == "cuda":
            self.step("8-bit, no outliers", size, bits=8, int8_threshold=0.0, load_in_8bit=True, **off)
        self.step("compiled layers", size, compiles=True, **off)
        self.step("compiled layers, no kernels", size, compiles=True, kernels="none", **off)
        longer = Size(*list(vars(size).values())[:6], size.batch, size.length * 4)
        for name, shape in ((f"{size.length}", size), (f"{size.length * 4}", longer)):
            for mode in ("auto", "mask", "padded"):
                self.step(f"rows of a quarter up to {name}, {mode}", shape, mode=mode, same=False)
        grouped = Size(*list(vars(size).values())[:3], max(1, size.heads // 4), *list(vars(size).values())[4:])
        self.step("grouped heads (4 to 1)", grouped, **off)
        from weft.objectives import chunks

        wide = Size(*list(vars(size).values())[:5], size.vocabulary * 4, size.batch, size.length)
        self.step("vocabulary x 4, loss in chunks", wide, **off)
        most, chunks.MOST = chunks.MOST, 1 << 60
        self.step("vocabulary x 4, loss at once", wide, **off)
        chunks.MOST = most

    def round(self) -> None:
        """Print a round's time against its bare steps, and the share of it in which the device idles."""
        from weft.core.local_rule import LocalRule
        from weft.objectives.sft import SFT
        from weft.training.job import Job

        model = resident_of(self.size, self.device, self.dtype, gradient_checkpointing=False)
        objective, steps = SFT().for_model(model), 10
        rows = rows_of(self.size, self.size.batch * steps, same=True)
        local, job = local_steps(steps, self.size), Job({}, model.values())
        windows = list(local._windows(objective, rows, steps, job))

        def whole() -> None:
            local.work(model, objective, rows, LocalRule(), job)

        ratios, bare = [], partial(bare_steps, model, objective, windows)
        bare()
        whole()
        for _ in range(3):
            plain = timed(bare, self.device, 1, warm=0)
            ratios.append(timed(whole, self.device, 1, warm=0) / plain)
        print(f"   round / bare steps: {statistics.median(ratios):.3f} (aim: at most 1.05)  {ratios}")
        if self.device.type == "cuda":
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
                begin = time.perf_counter()
                whole()
                wait(self.device)
                taken = time.perf_counter() - begin
            events = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
            events.sort(key=lambda event: -event.self_device_time_total)
            busy = sum(event.self_device_time_total for event in events) / 1e6
            print(f"   device busy {busy:.2f} of {taken:.2f} s, idle share {max(0.0, 1 - busy / taken):.1%}")
            for event in events[:14]:
                print(f"      {event.self_device_time_total / 1e6 / busy:6.1%}  {event.count:6d}  {event.key[:90]}")

    def generation(self) -> None:
        """Print the time of Weft's generation against that of transformers."""
        from weft.models.generate import Sampling, generate
        from weft.models.probes import rounding

        model = resident_of(self.size, self.device, self.dtype)
        tokens, lines = (128, 32) if self.device.type == "cuda" else (8, 4)
        prompts = [ids[: self.size.length // 4] for ids, _ in rows_of(self.size, lines, same=True)]
        # Every way is run once before it is timed: kernels are compiled for its shapes.
        ours = timed(lambda: generate(model, prompts, Sampling(tokens, temperature=0.0)), self.device, 1, warm=1)
        greedy = Sampling(tokens, temperature=0.0)
        static = timed(lambda: generate(model, prompts, greedy, static=True), self.device, 1, warm=1)  # and compiled
        ids = torch.tensor([prompt.tolist() for prompt in prompts], device=self.device)
        mask = torch.ones_like(ids)

        def theirs() -> None:
            with torch.no_grad():
                model.model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, use_cache=True
                )

        model.model.eval()
        other = timed(theirs, self.device, 1, warm=1)
        count = tokens * lines
        print(
            f"   Weft {count / ours:,.0f} tokens/s, transformers {count / other:,.0f}: {other / ours:.2f} times; "
            f"cache {model.can_cache}, rounding {rounding(model):.3f}; static {count / static:,.0f} tokens/s "
            f"({'used' if model.decoding else 'refused'})"
        )

    def correctness(self) -> None:
        """Compare rows on one line with rows alone, two runs, and losses with those of float32."""
        from weft.core.local_rule import LocalRule
        from weft.models.layout import lay_out
        from weft.objectives.sft import SFT
        from weft.training.job import Job

        for heads in (self.size.heads, self.size.heads // 4):
            size = Size(*list(vars(self.size).values())[:3], heads, *list(vars(self.size).values())[4:])
            model = resident_of(size, self.device, self.dtype, gradient_checkpointing=False)
            rows, results = rows_of(size, 6), {}
            with torch.no_grad():  # LoRA's second factor begins at 0, where most gradients vanish
                for master in model.masters.values():
                    master.add_(torch.randn_like(master) * 0.02)
            model.sync()
            model.model.eval()
            for kind in ("alone", "line", "float32"):
                if kind == "line" and not model.offsets:
                    continue
                offsets = kind == "line"
                if kind == "float32":
                    model.base.set_attn_implementation("sdpa")
                    model.model.float()
                batch = lay_out(rows, pack=offsets, offsets="always" if offsets else "").to(self.device)
                logits = model.logits(batch).float()
                F.cross_entropy(logits, batch.targets).backward()
                model.collect_grads()
                grads = torch.cat([master.grad.flatten() for master in model.masters.values()])
                results[kind] = (logits.detach(), grads)
                for master in model.masters.values():
                    master.grad = None
            for kind in results.keys() - {"float32"}:
                gaps = [
                    float((a - b).norm() / b.norm()) for a, b in zip(results[kind], results["float32"], strict=True)
                ]
                print(
                    f"   {heads} key heads, {kind}: logits differ from float32 by {gaps[0]:.1e} (relative L2), ", end=""
                )
                print(f"gradients by {gaps[1]:.1e}")
            del model
            empty(self.device)
        losses: dict[str, list[float]] = {}
        for name, dtype in (("first", self.dtype), ("again", self.dtype), ("float32", torch.float32)):
            small = Size(
                *list(vars(self.size).values())[:4], 2, self.size.vocabulary, self.size.batch, self.size.length
            )
            model = resident_of(small, self.device, dtype, gradient_checkpointing=False, peft_lora_dropout=0.0)
            objective, job = SFT().for_model(model), Job({}, model.values())
            rows, params, values = rows_of(small, small.batch * 20), model.values(), []
            for round in range(20):
                result = local_steps(1, small).work(model, objective, rows, LocalRule(), Job({}, params, round=round))
                params = model.values()
                values.append(result.metrics["loss_sum"])
            losses[name] = values
            del model, job
            empty(self.device)
        print(f"   two runs are equal bit for bit: {losses['first'] == losses['again']}")
        gaps = [abs(a - b) / abs(b) for a, b in zip(losses["first"], losses["float32"], strict=True)]
        print(f"   20 losses against float32: largest relative difference {max(gaps):.1e}, of the last {gaps[-1]:.1e}")

    def whole(self) -> None:
        """Run OpenFedLLM's own step, 32 layers in 8 bits, within 24 GB."""
        from weft.core.local_rule import LocalRule
        from weft.objectives.sft import SFT
        from weft.training.job import Job

        layers, bits = (32, 8) if self.device.type == "cuda" else (4, 16)
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(24e9 / total, self.device)
        try:
            model = resident_of(self.size, self.device, self.dtype, bits=bits, layers=layers)
            objective = SFT().for_model(model)
            rows = rows_of(self.size, self.size.batch * 4, same=True)
            peak(self.device)
            job = Job({}, model.values())
            local_steps(1, self.size).work(model, objective, rows, LocalRule(), job)
            wait(self.device)
            begin = time.perf_counter()
            local_steps(3, self.size).work(model, objective, rows, LocalRule(), job)
            wait(self.device)
            seconds = (time.perf_counter() - begin) / 3
            tokens = self.size.batch * self.size.length
            print(f"   {seconds:.2f} s a step, {tokens / seconds:,.0f} tokens/s, {peak(self.device):.1f} GB of 24")
        finally:
            if self.device.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0, self.device)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, default=480, help="seconds after which no part begins")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, also on a GPU")
    parser.add_argument("--parts", default="abcdef", help="letters of the parts to run")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    size = WIDE if device.type == "cuda" and not arguments.tiny else TINY
    bench = Bench(device, size, arguments.deadline)
    parts = [
        ("(a) machine", bench.machine),
        ("(f) OpenFedLLM's step: 32 layers in 8 bits, 24 GB", bench.whole),
        ("(b) steps", bench.table),
        ("(b) choices, one at a time", bench.choices),
        ("(c) a round by parts", bench.round),
        ("(d) generation", bench.generation),
        ("(e) correctness", bench.correctness),
    ]
    bench.run([(name, part) for name, part in parts if name[1] in arguments.parts])


if __name__ == "__main__":
    main()
