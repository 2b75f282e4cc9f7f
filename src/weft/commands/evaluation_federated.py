"""`weft evaluate MODEL_OR_RUN --federated`: clients score a model on held-out rows of theirs; nothing is trained."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weft.arguments import Once, Parser, add_config_flags
from weft.config import RunConfig, gather, settle
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.verbs import file_and_flags, print_notices

if TYPE_CHECKING:
    from weft.core.declarations import Metric

FLAG = "--federated"
ROWS = frozenset(
    """
    dataset_name dataset_sample dataset_split eval_dataset_split eval_dataset_name held_out_overlap local_data_dir
    clients instruction_column instruction_prefix response_column chosen_column rejected_column
    split_strategy split_args split_seed split_column split_alpha split_min_rows shards_per_client clients_of_rest
    num_clients leave_out eval_fraction eval_rows eval_batch_size device threads token_cache accept_changed output_dir
    """.split()
)
"""Keys of an evaluation of a run: whose rows, and how many of them."""
MODEL = ROWS | frozenset(
    """
    objective objective_args loss dpo_beta label_smoothing simpo_gamma reward reward_weights reward_pattern
    reward_format reward_length reward_seconds num_generations max_new_tokens temperature top_p
    template prompt_template template_date seq_length truncation_side choices few_shot seed
    allow_missing dtype load_in_8bit load_in_4bit int8_threshold kernels model_offload trust_remote_code token
    report_to contamination task_data include_path
    protection protection_args min_contributors group_size encrypt
    """.split()
)
"""Keys of an evaluation of a model: how rows are rendered, measured and sealed, and how the model is loaded, too."""


def parser() -> Parser:
    """Return the parser: a run file and the keys of a run, of which those of an evaluation are accepted."""
    result = Parser(
        prog="weft evaluate",
        usage="weft evaluate MODEL_OR_RUN --federated [--config RUN.yaml] [--KEY VALUE ...]",
        description="Have clients score a model on held-out rows of theirs; nothing is trained.",
        allow_abbrev=False,
    )
    result.add_argument("model", nargs="?", metavar="MODEL_OR_RUN", help="a run, a hub name, a model or adapter folder")
    result.add_argument("--config", metavar="FILE", action=Once, help="of a model: a run file that says whose rows")
    result.add_argument("--round", type=int, metavar="N", help="of a run: after which round [the newest]")
    result.add_argument("--overwrite", action="store_true", help="delete the results of another evaluation there first")
    result.add_argument("--json", action="store_true", help="print the results as JSON")
    result.add_argument("--quiet", action="store_true", help="print no progress")
    add_config_flags(result, "evaluate")
    result.hidden_keys = set(RunConfig.model_fields) - MODEL
    return result


def run(argv: list[str]) -> int:
    """Evaluate a model or a run at its clients, print the scores, and write them."""
    arguments = parser().parse([word for word in argv if word != FLAG])
    arguments.file = None
    if arguments.model is None:
        raise ConfigError("No model or run is named: write `weft evaluate MODEL_OR_RUN --federated ...`.")
    values, flags = file_and_flags(arguments)
    from weft.launch.subject import is_run

    record, place = (_of_run if is_run(arguments.model) else _of_model)(arguments, values, flags)
    if arguments.json:
        print(json.dumps(record, ensure_ascii=False))
        return 0
    _print(record)
    print(place)
    return 0


def _accepted(flags: JsonObject, keys: frozenset[str], what: str) -> None:
    """Raise ConfigError for a flag that an evaluation does not take."""
    for key in flags:
        if key not in keys:
            raise ConfigError(f"--{key} has no effect on the evaluation of {what}, which trains nothing: leave it out.")


def _of_run(arguments: argparse.Namespace, values: JsonObject, flags: JsonObject) -> tuple[JsonObject, Path]:
    """Evaluate the shared and the own models of a run; return the scores, and the file that holds them."""
    if values:
        raise ConfigError(f"'{arguments.model}' is a run, which has its own keys: leave --config out.")
    _accepted(flags, ROWS, "a run")
    from weft.launch.run import Run

    changed = {key: value for key, value in flags.items() if key not in ("accept_changed", "output_dir")}
    accept = str(flags.get("accept_changed", "false")).lower() == "true"
    opened = Run(arguments.model, round=arguments.round, accept_changed=accept)
    folder = Path(flags["output_dir"]) if flags.get("output_dir") else opened.path / "evaluation" / "federated"
    file = folder / ("end.json" if opened.at_end else f"round_{opened.round}.json")
    settings = {"run": str(opened.path), "changed": changed}
    _check_place(file, settings, overwrite=arguments.overwrite)
    from weft.core.files import write_atomic
    from weft.launch.federated import scores_of_run
    from weft.runs.metrics import plain

    record = plain(scores_of_run(opened, changed, print_notices))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (json.dumps(record | {"settings": settings}, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"The scores cannot be written to '{file}' ({error.strerror}): give another --output_dir."
        ) from error
    return record, file


def _check_place(file: Path, settings: JsonObject, *, overwrite: bool) -> None:
    """Raise ConfigError where the scores of another evaluation would be lost."""
    if overwrite or not file.exists():
        return
    with suppress(OSError, ValueError, AttributeError):
        if json.loads(file.read_text(encoding="utf-8")).get("settings") == settings:
            return
    raise ConfigError(
        f"'{file}' holds the scores of other rows: give another --output_dir, or replace them by --overwrite."
    )


def _of_model(arguments: argparse.Namespace, values: JsonObject, flags: JsonObject) -> tuple[JsonObject, Path]:
    """Evaluate a model by a run of no rounds; return the scores, and the folder of that run."""
    if arguments.round is not None:
        raise ConfigError(f"'{arguments.model}' is no run's directory: leave --round out, or name a run.")
    _accepted(flags, MODEL, "a model")
    kept = {key: value for key, value in values.items() if key in MODEL - {"output_dir"}}
    if {"clients", "dataset_name"} & flags.keys():
        from weft.launch.federated import SOURCES

        kept = {key: value for key, value in kept.items() if key not in SOURCES}
    fixed: JsonObject = {"model_name_or_path": arguments.model, "use_peft": True, "num_rounds": 0}
    from weft.launch.subject import folder_of

    flags.setdefault("output_dir", str(folder_of(arguments.model) / "federated"))
    config, notice = settle(*gather(kept, flags | fixed), exempt={*kept, *fixed})
    from weft.runs.layout import RunDir

    if RunDir(config.output_dir).holds_run and not arguments.overwrite:
        raise ConfigError(
            f"'{config.output_dir}' holds the scores of an evaluation: replace them by --overwrite, or give another "
            "--output_dir."
        )
    from weft.launch.libraries import uncollected
    from weft.runs.metrics import read

    with uncollected() as imported:
        from weft.launch.train import train

        done = train(
            config,
            overwrite=arguments.overwrite,
            quiet=arguments.quiet or arguments.json,
            notes=[notice] if notice else [],
            imported=imported,
        )
    (record,) = (line for line in read(done.directory.metrics_file) if line["event"] == "eval")
    return {"shared": record}, done.path


def _print(record: JsonObject) -> None:
    """Print a table of the scores over all rows and over clients, for each kind of model."""
    from weft.core.declarations import scores

    titles = {"shared": "The shared model, at its clients", "own": "Each client's own model, on its own rows"}
    for kind, part in record.items():
        _table(titles[kind], part, scores())
        if apart := part.get("left_out"):
            _table("The shared model, at clients that took no part", apart, scores())


def _table(title: str, part: JsonObject, metrics: tuple[Metric, ...]) -> None:
    from weft.commands.tables import print_table

    heads = ["", "all rows", "mean of clients", "worst", "client", "spread", "Jain's index"]
    rows = []
    for metric in metrics:
        if part.get(metric.name) is None:
            continue
        one = part.get("groups", {}).get(metric.name, {})
        total, (mean, worst, spread) = (
            metric.in_comparison(part[metric.name]),
            (metric.in_comparison(one[name]) if name in one else "" for name in ("mean", "worst", "spread")),
        )
        jain = "" if one.get("jain") is None else f"{one['jain']:.4f}"
        rows.append([metric.label, total, mean, worst, one.get("worst_client", ""), spread, jain])
    clients = len(part["clients"] or part.get("members", ()))
    left = (0, 4)
    if "groups" not in part:  # of one client nothing is unequal
        heads, rows, left = heads[:2], [row[:2] for row in rows], (0, 0)
    print_table(f"{title}: {part['rows']} rows of {clients} client{'s' * (clients != 1)}", heads, rows, left=left)
