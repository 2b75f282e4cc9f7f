"""`weft demo`: three hospitals that share no row, alone, together, and pooled. Offline, in under three minutes.

Each of five pipelines pre-trains a 0.5 M parameter Llama on notes, then fine-tunes it with LoRA on questions, with the
same steps, batches and learning rates, and then takes the same exam. A hospital alone trains on its own notes and
questions only; the federation exchanges parameters; the pooled model trains on all rows in one place.

Training in one place is one round, with AdamW from the first step to the last. The federation averages after every
fourth step (no hospital has another's facts, so the mean keeps a third of what one learns in a round), and its AdamW
continues from averaged moments: DiLoCo with an outer learning rate of 1 and no momentum.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from weft.arguments import Parser
from weft.demo.hospitals import SPECIALITIES, choices, make_hospitals, public_glossary, write
from weft.demo.next_steps import next_steps
from weft.demo.picture import FEDERATION, POOLED, AnswerResult, ModelResult, Result
from weft.demo.traffic import traffic_line
from weft.errors import ConfigError
from weft.json_types import JsonObject

PRETRAIN = {"num_rounds": 50, "max_steps": 4, "learning_rate": 4e-3}
FINETUNE = {"num_rounds": 35, "max_steps": 4, "learning_rate": 5e-3}
COMMON: JsonObject = {
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "batch_size": 16,
    "seq_length": 128,
    "eval_every": 0,
    "save_model_freq": 0,
    "dataset_sample": None,
}
TOGETHER: JsonObject = {
    "fed_alg": "diloco",
    "sample_clients": 3,
    "fed_args": {"outer_lr": 1.0, "momentum": 0.0, "inner_state": "average"},
}


@dataclass(frozen=True)
class Demo:
    """The settings of a demo: folder, seed, dtype, and the rounds and steps per round of its federation."""

    folder: Path
    seed: int
    pretrain: dict[str, float] = field(default_factory=lambda: dict(PRETRAIN))
    finetune: dict[str, float] = field(default_factory=lambda: dict(FINETUNE))
    dtype: str = "auto"

    def prepare(self) -> None:
        """Write the hospitals' data and the untrained base model."""
        from weft.demo.base import make_base

        write(self.folder / "data", self.seed)
        make_base(self.folder / "base", public_glossary(self.seed), self.seed)

    def pipeline(self, name: str, way: JsonObject) -> ModelResult:
        """Pre-train, fine-tune and examine one model.

        Args:
            name: name of the model.
            way: keys of a run that choose the algorithm.
        """
        import weft

        folder = self.folder / name.replace(" ", "_")
        shared = COMMON | way | {"seed": self.seed, "dtype": self.dtype}
        base = weft.train(
            {
                **shared,
                **_rounds(self.pretrain, way),
                "objective": "causal_lm",
                "model_name_or_path": str(self.folder / "base"),
                "clients": self._clients("notes", exam=False),
                "eval_fraction": 0,
                "output_dir": str(folder / "pretrained"),
            },
            quiet=True,
        )
        tuned = weft.train(
            {
                **shared,
                **_rounds(self.finetune, way),
                "model_name_or_path": str(base.path),
                "clients": self._clients("questions", exam=True),
                "template": "chat",
                "choices": choices(),
                "use_peft": True,
                "peft_lora_r": 16,
                "peft_lora_alpha": 32,
                "peft_lora_dropout": 0.0,
                "peft_lora_target_modules": "all-linear",
                "output_dir": str(folder / "finetuned"),
            },
            quiet=True,
        )
        parts = [base.summary, tuned.summary]
        return ModelResult(
            name=name,
            accuracy=tuned.summary["eval"]["accuracy"],
            per_hospital={client: scores["accuracy"] for client, scores in tuned.summary["clients"].items()},
            bytes=sum(part["bytes_up"] + part["bytes_down"] for part in parts),
            seconds=sum(part["seconds"] for part in parts),
        )

    def answers(self, names: list[str]) -> list[AnswerResult]:
        """Ask every model one exam question of each hospital, and return their answers."""
        import weft
        from weft.commands.chat import generate

        exam = [hospital.exam[0] for hospital in make_hospitals(self.seed)]
        rows = [AnswerResult(question=row["instruction"], expected=row["output"], answers={}) for row in exam]
        for name in names:
            run = weft.open_run(self.folder / name.replace(" ", "_") / "finetuned")
            for row in rows:
                row["answers"][name] = generate(run, run.model, [("user", row["question"])], tokens=8)
        return rows

    def _clients(self, kind: str, *, exam: bool) -> list[dict[str, str]]:
        data = self.folder / "data"
        return [
            {"name": f"hospital {name}", "data": str(data / kind / f"{name}.jsonl")}
            | ({"eval": str(data / "exam" / f"{name}.jsonl")} if exam else {})
            for name in SPECIALITIES
        ]


def _rounds(plan: dict[str, float], way: JsonObject) -> JsonObject:
    """Return the federation's rounds and steps; for other ways one round with the same number of steps."""
    if way == TOGETHER:
        return plan
    return plan | {"num_rounds": 1, "max_steps": plan["num_rounds"] * plan["max_steps"]}


def ways() -> dict[str, JsonObject]:
    """Return the names of the five models, and the keys that choose the algorithm of each."""
    alone = {f"hospital {name} alone": {"fed_alg": f"local{number}"} for number, name in enumerate(SPECIALITIES)}
    return alone | {FEDERATION: TOGETHER, POOLED: {"fed_alg": "central"}}


def run(argv: list[str]) -> int:
    """Run the demo; print its tables, write its picture, and suggest the next commands."""
    parser = Parser(
        prog="weft demo", description="Three hospitals, alone, together and pooled; offline.", allow_abbrev=False
    )
    parser.add_argument("--output_dir", default="demo-run", help="where to [demo-run]")
    parser.add_argument("--seed", type=int, default=0, help="of data, model and training [0]")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the arithmetic [auto]"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete a demo that is there already")
    arguments = parser.parse(argv)
    folder = Path(arguments.output_dir)
    _clear(folder, arguments.overwrite)
    demo = Demo(folder, arguments.seed, dtype=arguments.dtype)
    try:
        show(demo, train_all(demo))
    except KeyboardInterrupt:
        again = shlex.join(["weft", "demo", "--output_dir", str(folder), "--overwrite"])
        print(f"weft: interrupted; the finished parts are in '{folder}', and `{again}` starts over.", file=sys.stderr)
        return 130
    return 0


def _clear(folder: Path, overwrite: bool) -> None:
    """Remove an earlier demo if `overwrite`; ConfigError for a folder that holds anything else."""
    import shutil

    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / ".weft-demo").exists():
        raise ConfigError(f"'{folder}' exists and holds no demo: name another folder with --output_dir.")
    if not overwrite:
        raise ConfigError(f"'{folder}' holds a demo: add --overwrite to replace it, or name another --output_dir.")
    shutil.rmtree(folder)


def train_all(demo: Demo) -> Result:
    """Train and examine all five models, and print the progress."""
    from rich.console import Console

    console = Console()
    demo.folder.mkdir(parents=True, exist_ok=True)
    (demo.folder / ".weft-demo").touch()
    steps = [f"{kind['num_rounds'] * kind['max_steps']:.0f}" for kind in (demo.pretrain, demo.finetune)]
    console.print(
        "Three hospitals have notes and questions about their own specialities: "
        + "; ".join(f"{name}: {what}" for name, what in SPECIALITIES.items())
        + f".\nEach model below makes {steps[0]} pre-training steps on notes and {steps[1]} LoRA steps on questions, "
        "then answers everybody's questions, asked in words it has not seen.\n",
        highlight=False,
    )
    demo.prepare()
    models = []
    for name, way in ways().items():
        with console.status(f"training: {name}"):
            models.append(demo.pipeline(name, way))
        console.print(f"  {name}: {models[-1]['seconds']:.0f} s", highlight=False)
    return Result(chance=1 / len(choices()), models=models, answers=demo.answers(list(ways())))


def show(demo: Demo, result: Result) -> None:
    """Print the tables and what to do next, and write the picture and the numbers."""
    from rich.console import Console

    from weft.demo.picture import answers_table, draw, table

    console = Console()
    console.print()
    console.print(table(result))
    console.print(f"Guessing answers {100 * result['chance']:.0f} %.", highlight=False)
    console.print(answers_table(result))
    picture = demo.folder / "demo.png"
    draw(picture, result)
    (demo.folder / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print(f"The picture: {picture}\n\nNext:", highlight=False)
    for purpose, command in next_steps(demo.folder, demo.seed):
        # Not by rich, which breaks lines: a command in two lines cannot be copied.
        print(f"  # {purpose}\n  {command}")
    sent = next(model["bytes"] for model in result["models"] if model["name"] == FEDERATION)
    print(f"\n{traffic_line(demo.folder, sent)}")
