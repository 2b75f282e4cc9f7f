"""Parsing of a verb's arguments: a flag for every key of a run, errors in one sentence, help in groups."""

from __future__ import annotations

import argparse
import importlib
import math
import shutil
import textwrap
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, get_args

from weft import kinds, registry
from weft.errors import ConfigError
from weft.json_types import JsonObject

COMMON = frozenset(
    "model_name_or_path dtype device load_in_4bit use_peft peft_lora_r peft_lora_alpha lora_aggregation dataset_name "
    "clients template seq_length split_strategy split_alpha fed_alg fed_args num_rounds num_clients sample_clients "
    "client_weight max_steps batch_size gradient_accumulation_steps learning_rate lr_scheduler_type eval_fraction "
    "eval_every eval_dataset_name output_dir seed report_to".split()
)
"""Keys in the short help of every verb; `--help_all` prints all."""
VERB_KEYS = {
    "pretrain": "size tokenizer tokenizer_text federated_tokenizer vocab_size recipe",
    "dpo": "loss dpo_beta chosen_column rejected_column",
    "grpo": "reward reward_weights num_generations max_new_tokens temperature grpo_loss grpo_kl",
    "prompt": "prompt_method num_virtual_tokens private_tokens prompt_init_text prompt_candidates endpoint few_shot",
    "split": "split_column split_min_rows shards_per_client",
    "submit": "sites silence_timeout min_clients",
}
"""Further keys in the short help of one verb."""
ONLY_KEYS = {
    "clean": "model_name_or_path trust_remote_code token dtype device load_in_8bit load_in_4bit template "
    "prompt_template template_date seq_length dataset_split local_data_dir instruction_column response_column "
    "instruction_prefix clean clean_args objective loss chosen_column rejected_column threads",
}
"""All keys of a verb that makes no run; it has no flag for the others."""


CHOICES_ELSEWHERE = ("loss", "parallel", "grpo_loss", "recipe")
"""Keys whose choices are listed elsewhere in the help, or explained in their descriptions."""


_captures_parser: ContextVar[bool] = ContextVar("described", default=False)
"""Whether `Parser.parse` raises `ParserCapture` instead of parsing."""


class ParserCapture(BaseException):
    """Carries a verb's parser out of the verb, before it does anything."""

    def __init__(self, parser: Parser) -> None:
        super().__init__()
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigErrors, and suggests the nearest flag."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.hidden_keys: set[str] = set()
        """Keys that the short help leaves out."""
        self.switches: set[str] = set()
        """Boolean flags, which `--no_NAME` turns off."""

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError of one sentence."""
        raise ConfigError(
            f"{message[:1].upper()}{message[1:].rstrip('.')}: `{self.prog} --help` lists what can be written."
        )

    def format_help(self) -> str:
        """Return the help, without the hidden keys."""
        hidden = [(action, action.help) for action in self._actions if action.dest in self.hidden_keys]
        for action, _ in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, text in hidden:
                action.help = text

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse arguments; flags may have dashes for underscores, and `--no_use_peft` means `--use_peft false`."""
        from weft.keys.names import foreign

        if _captures_parser.get():
            raise ParserCapture(self)
        # parse_known_args instead of parse_args: the message for an unknown flag names the nearest one.
        namespace, unknown_words = self.parse_known_args([self._normalised(word) for word in argv])
        if unknown_words:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            word = unknown_words[0].partition("=")[0]
            guess = registry.nearest(word, flags)
            nearest = f" Did you mean '{guess}'?" if guess else f" `{self.prog} --help` lists what can be written."
            foreign_name = foreign(word[2:], flags=True) if self.hidden_keys and word.startswith("--") else None
            raise ConfigError(f"There is no flag or argument '{unknown_words[0]}'.{foreign_name or nearest}")
        for name, value in vars(namespace).items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ConfigError(f"--{name} is {number}, which is no number to work with: write a finite one.")
        return namespace

    def _normalised(self, word: str) -> str:
        word = _underscored(word)
        return f"--{word[5:]}=false" if word.startswith("--no_") and word[5:] in self.switches else word


class Once(argparse.Action):
    """Stores a flag's value, and refuses a second one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        """Store the value; raise ConfigError where there is one already."""
        if getattr(namespace, self.dest, None) is not None:
            raise ConfigError(f"{option} is given twice: leave one of them out.")
        setattr(namespace, self.dest, values)


class _Lines(argparse.RawDescriptionHelpFormatter):
    """Formats each flag under its first name, with its help in a column beside it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=_width())

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Names such as meta-llama/Llama-2-7b-hf must not be broken at their hyphens.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar or action.dest)
        flag = action.option_strings[-1 if action.dest == "help" else 0]
        value = "" if action.nargs == 0 or action.metavar is None else f" {action.metavar}"
        return flag + value


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.hidden_keys = {""}
        parser.print_help()
        parser.exit()


def parser_of(verb: str) -> Parser:
    """Return the parser of a verb. The verb is called, and interrupted when it parses its arguments."""
    module, _, function = registry.require(registry.COMMANDS, verb, "verb").partition(":")
    token = _captures_parser.set(True)
    try:
        getattr(importlib.import_module(module), function)([])
    except ParserCapture as capture:
        return capture.parser
    finally:
        _captures_parser.reset(token)
    raise TypeError(f"The verb '{verb}' parses nothing.")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def add_config_flags(parser: Parser, verb: str) -> None:
    """Add one flag for every key of a run that the verb takes, in groups; a key without a flag is absent."""
    from weft.config import ALIASES, RunConfig

    only = ONLY_KEYS.get(verb, "").split()
    parser.formatter_class = _Lines
    if only:
        parser.epilog = _cleaner_names()
    else:
        parser.add_argument("--help_all", action=_HelpAll, nargs=0, help="show every key of a run, and exit")
        parser.hidden_keys = set(RunConfig.model_fields) - COMMON - set(VERB_KEYS.get(verb, "").split())
        parser.epilog = _names()
    aliases = {key: [f"--{alias}" for alias, of in ALIASES.items() if of == key] for key in RunConfig.model_fields}
    # The bases of RunConfig are the groups of the help, the last base first.
    for keys in reversed(RunConfig.__mro__[1:-2]):
        annotations = getattr(keys, "__annotations__", {})
        group_keys = [key for key in annotations if key in RunConfig.model_fields and (not only or key in only)]
        if not group_keys:
            continue
        group = parser.add_argument_group((keys.__doc__ or "").strip().rstrip("."))
        for key in group_keys:
            _add_flag(parser, group, key, aliases[key])


def _add_flag(parser: Parser, group: argparse._ArgumentGroup, key: str, names: Sequence[str]) -> None:
    from weft.config import RunConfig

    field = RunConfig.model_fields[key]
    kind, text = str(field.annotation), field.description or ""
    number = field.annotation in (int, float) or str(field.annotation) in ("int | None", "float | None")
    options: JsonObject = {"metavar": "N" if number else "VALUE"}
    if field.annotation is bool or bool in get_args(field.annotation):
        parser.switches.add(key)
        options = {"nargs": "?", "const": "true", "metavar": "true|false"}
    elif "list" in kind or "dict" in kind:
        options = {"nargs": "*", "metavar": "VALUE ..."}
    elif choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
        text += f": {', '.join(choices)}" if len(choices) > 2 and key not in CHOICES_ELSEWHERE else ""
    default = "" if field.default in (None, False, [], {}) else f" [{_default_text(field.default)}]"
    text = (text + default).replace("%", "%%")
    group.add_argument(f"--{key}", *names, dest=key, default=argparse.SUPPRESS, action=Once, help=text, **options)


def _cleaner_names() -> str:
    names = ", ".join([*registry.CLEANERS, "FILE.py:NAME"])
    return textwrap.fill(f"cleaners: {names}", _width(), subsequent_indent="  ", break_on_hyphens=False)


def _names() -> str:
    """Return the part of the help that lists the names of parts."""
    from weft.config import RunConfig

    names_by_key = {key: list(kind.table) for key, kind in kinds.KINDS.items() if len(kind.table) > 1}
    names_by_key["fed_alg"].append("localN (client N alone)")
    for key in ("objective", "privacy", "codec_down"):  # the verbs say it; so does the unit; as for codec
        del names_by_key[key]
    names_by_key["attack"] = ["none", "sign_flip", "back_door", "...: docs/robustness.md"]
    tables: dict[str, Sequence[str]] = names_by_key | {
        "template": ["auto", *registry.TEMPLATES],
        "loss (weft dpo)": get_args(RunConfig.model_fields["loss"].annotation),
        "reward (weft grpo)": [*registry.REWARDS, "FILE.py:FUNCTION"],
    }
    width, wide = max(map(len, tables)) + 4, _width()
    lines = [
        textwrap.fill(", ".join(names), wide, initial_indent=f"  {key:<{width - 2}}", subsequent_indent=" " * width)
        for key, names in tables.items()
    ]
    note = "A part of your own is written FILE.py:NAME in place of a name; docs/adding-an-algorithm.md shows how."
    lines += ["", *textwrap.wrap(note, wide, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)]
    return "\n".join(["names:", *lines, "", "`--help_all` shows every key of a run."])


def _width() -> int:
    return max(60, min(110, shutil.get_terminal_size().columns - 2))


def _default_text(value: object) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
