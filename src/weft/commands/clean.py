"""`weft clean`: clean the rows of a file as `--clean` does before training, and write them with a report of counts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.arguments import Parser, add_config_flags
from weft.config import RunConfig, gather, settle
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.verbs import file_and_flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weft.data.cleaning.cleaner import Cleaner, Outcome, Sample
    from weft.data.rows import Account, PlacedRows, Row

OBJECTIVES = ("sft", "preference", "causal_lm")


def run(argv: list[str]) -> int:
    """Clean DATA; write what is left to FILE and the counts to FILE.report.json."""
    parser = Parser(
        prog="weft clean",
        usage="weft clean DATA --clean CLEANER ... --out FILE [--KEY VALUE ...]",
        description="Clean the rows of a file, a folder or a data set: conversations, preferences or plain text.",
        allow_abbrev=False,
    )
    parser.add_argument("data", metavar="DATA", help="a file, a folder or a name on the hub")
    parser.add_argument("--out", metavar="FILE", help="file of JSON lines for the rows that are left")
    parser.add_argument("--sketches", metavar="FILE", help="file for sketches of the rows, for other clients")
    parser.add_argument("--owner", metavar="NAME", help="whose rows these are: the client's name in the federation")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(file=None, config=None)
    add_config_flags(parser, "clean")
    arguments = parser.parse(argv)
    out = _target(arguments)
    config = _config(arguments)
    near = _sketching(arguments, config)

    from weft.data.cleaning.cleaner import Tools, clean
    from weft.data.rows import Account
    from weft.launch.parts import cleaners

    chosen = cleaners(config)
    account = Account()
    rows, samples, places = _read(config, account)
    # Only now, since a model takes longer to load than the rows to read.
    surprise = _surprise(config) if any(cleaner.uses_model for _, cleaner in chosen) else None
    outcome = clean(samples, chosen, Tools(surprise, client=arguments.owner or ""))
    report: JsonObject = {
        "data": config.dataset_name,
        "objective": config.objective,
        "rows": len(rows),
        "used": len(samples),
        "left": len(outcome.samples),
        "rewritten": len(outcome.changed),
        "cleaners": outcome.steps,
    }
    if not outcome.samples:
        name = list(outcome.steps)[-1]
        raise ConfigError(
            f"Cleaning leaves no row after the cleaner {name}: leave it out of --clean, or change it by --clean_args."
        )
    _write(out, [_rewritten(rows[places[number]], chosen) for number in sorted(outcome.samples)], report)
    if near:
        _write_sketches(arguments, dict(chosen)["near_duplicates"], list(outcome.samples.values()))
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    for line in account.lines():
        print(f"weft: {line}", file=sys.stderr)
    _print(outcome, report)
    print(out)
    return 0


def _target(arguments: Any) -> Path:
    if arguments.out is None:
        raise ConfigError("No file is named for the rows that are left: write --out FILE.jsonl.")
    out = Path(arguments.out).expanduser()
    source = Path(arguments.data).expanduser()
    if out.exists() and source.exists() and out.samefile(source):
        raise ConfigError(f"'{out}' is the file that is cleaned: give another --out.")
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"'{out}' cannot be written: give a file in a folder that is there.")
    return out


def _sketching(arguments: Any, config: RunConfig) -> bool:
    """Return whether sketches are to be written; ConfigError where something for them is missing."""
    compares = bool(config.clean_args.get("near_duplicates.against"))
    if (arguments.sketches or compares) and not arguments.owner:
        raise ConfigError("Sketches are compared by the names of clients: write --owner NAME, as in the federation.")
    if arguments.sketches is None:
        return False
    if "near_duplicates" not in config.clean or "near_duplicates.key" not in config.clean_args:
        raise ConfigError(
            "Sketches are those of the cleaner near_duplicates with a secret that the server has not: add "
            "near_duplicates to --clean, and --clean_args near_duplicates.key=FILE."
        )
    return True


def _write_sketches(arguments: Any, cleaner: Any, samples: list[Sample]) -> None:
    from weft.data.cleaning import sketches

    form = sketches.Form(cleaner.hashes, cleaner.shingle, sketches.mark_of(sketches.read_secret(cleaner.key)))
    file = Path(arguments.sketches).expanduser()
    try:
        sketches.write(file, arguments.owner, form, cleaner.sketched(samples))
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be written ({error.strerror}): give another --sketches.") from error
    print(
        f"weft: whoever has '{file}' and the secret can tell whether '{arguments.owner}' has a text, or one like it.",
        file=sys.stderr,
    )


def _config(arguments: Any) -> RunConfig:
    """Return the configuration; the kind of rows is told by their columns unless --objective names it."""
    file, flags = file_and_flags(arguments)
    keys = dict(flags) | {"dataset_name": arguments.data}
    config, _ = settle(*gather(file, keys), exempt=set(RunConfig.model_fields))
    if not config.clean:
        from weft import registry

        raise ConfigError(f"No cleaner is named: write --clean and some of {', '.join(registry.CLEANERS)}.")
    if "objective" not in flags:
        config, _ = settle(*gather(file, keys | {"objective": _objective(config)}), exempt=set(RunConfig.model_fields))
    if config.objective not in OBJECTIVES:
        raise ConfigError(
            f"objective is {config.objective}, whose rows are not cleaned: write {', '.join(OBJECTIVES)}."
        )
    return config


def _objective(config: RunConfig) -> str:
    """Tell from the columns of a source what its rows are for."""
    from weft.data.columns import TEXTS, normal
    from weft.data.load import kind_of

    if kind_of(Path(config.dataset_name or "")) == ".txt":
        return "causal_lm"
    columns = {normal(column) for row in _rows(config)[:100] for column in row}
    if columns & {config.chosen_column, "chosen", "chosen_response", "preferred"}:
        return "preference"
    return "causal_lm" if columns and columns <= {*TEXTS, "source", "id", "meta", "speaker"} else "sft"


def _rows(config: RunConfig) -> PlacedRows:
    from weft.data.load import read_rows, resolve_source
    from weft.data.sources import selection_of

    source = resolve_source(config.dataset_name or "", config.local_data_dir)
    return read_rows(source, selection_of(config), token=config.token or None)


def _read(config: RunConfig, account: Account) -> tuple[Sequence[Row], list[Sample], list[int]]:
    """Return the rows, what cleaners see of those that can be used, and the row of each of these."""
    from weft.data.cleaning.cleaner import Sample
    from weft.data.formats import to_examples
    from weft.data.preferences import to_preferences
    from weft.data.source_kinds import preference_sample, sample_of
    from weft.data.texts import text_sources

    source = config.dataset_name or ""
    if config.objective == "causal_lm":
        documents = [document for text in text_sources(source) for document in text.documents()]
        texts = [document.text for document in documents if document.text is not None]
        return [{"text": text} for text in texts], [Sample((), (text,)) for text in texts], list(range(len(texts)))
    rows, prefix = _rows(config), config.instruction_prefix
    account.omissions.merge(rows.omissions)
    samples: list[Sample]
    if config.objective == "preference":
        pairs = to_preferences(
            rows,
            source=source,
            unpaired=config.loss == "kto",
            chosen_column=config.chosen_column,
            rejected_column=config.rejected_column,
            instruction_column=config.instruction_column,
            prefix=prefix,
            account=account,
        )
        samples, places, omissions = [preference_sample(pair) for pair in pairs.examples], pairs.rows, pairs.omissions
    else:
        question, answer = config.instruction_column, config.response_column
        talks = to_examples(
            rows, source=source, instruction_column=question, response_column=answer, prefix=prefix, account=account
        )
        samples, places, omissions = [sample_of(talk.turns) for talk in talks.examples], talks.rows, talks.omissions
    account.omissions.merge(omissions)
    return rows, samples, places


def _surprise(config: RunConfig) -> Any:
    from weft.launch.cleaning import losses
    from weft.launch.client import ClientBuilder

    model = ClientBuilder(config).model
    return lambda samples: losses(model, samples, config)


def _rewritten(value: Any, chosen: Sequence[tuple[str, Cleaner]]) -> Any:
    """Return a row with every text in it rewritten, also in columns that are not read."""
    from weft.data.cleaning.cleaner import rewrite

    if isinstance(value, dict):
        return {key: _rewritten(cell, chosen) for key, cell in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rewritten(cell, chosen) for cell in value]
    if isinstance(value, str):
        for _, cleaner in chosen:
            value = rewrite(cleaner, value, Counter())
    return value


def _write(out: Path, rows: list[Any], report: JsonObject) -> None:
    from weft.core.files import write_atomic
    from weft.data.parts import COUNTS_SUFFIX

    try:
        write_atomic(out, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode())
        write_atomic(out.with_name(out.name + COUNTS_SUFFIX), (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"'{out}' cannot be written ({error.strerror}): give another --out.") from error


def _print(outcome: Outcome, report: JsonObject) -> None:
    from weft.commands.tables import print_table
    from weft.runs.cleaning import counts_text

    heads = ["cleaner", "left out", "rewritten", "counts"]
    rows = [
        [name, str(step["left_out"]), str(step["changed"]), counts_text(step)] for name, step in outcome.steps.items()
    ]
    title = f"{report['rows']} rows, {report['used']} that can be used, {report['left']} left"
    print_table(title, heads, rows, left=(0, 3))
