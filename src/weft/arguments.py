"""Parsing a verb's words: one flag for every key of the configuration, complaints in one sentence."""

from __future__ import annotations

import argparse
import importlib
from contextvars import ContextVar
from typing import Any, NoReturn

from weft import registry
from weft.errors import ConfigError

_described: ContextVar[bool] = ContextVar("described", default=False)
"""Whether parsers are to be looked at rather than used."""


class Described(BaseException):
    """A verb's parser, instead of what the verb does."""

    def __init__(self, parser: Parser) -> None:
        super().__init__()
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ConfigErrors, with the nearest flag named."""

    def error(self, message: str) -> NoReturn:
        """Refuse in one sentence."""
        raise ConfigError(
            f"{message[:1].upper()}{message[1:].rstrip('.')}: `{self.prog} --help` lists what can be written."
        )

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse; dashes in flags may be written for underscores."""
        if _described.get():
            raise Described(self)
        known, unknown = self.parse_known_args([_underscored(word) for word in argv])
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            guess = registry.nearest(unknown[0].partition("=")[0], flags)
            meant = f" Did you mean '{guess}'?" if guess else f" `{self.prog} --help` lists all."
            raise ConfigError(f"There is no flag or place for '{unknown[0]}'.{meant}")
        return known


def parser_of(verb: str) -> Parser:
    """Return the parser of a verb, which every verb makes before it does anything."""
    module, _, function = registry.require(registry.COMMANDS, verb, "verb").partition(":")
    before = _described.set(True)
    try:
        getattr(importlib.import_module(module), function)([])
    except Described as found:
        return found.parser
    finally:
        _described.reset(before)
    raise TypeError(f"The verb '{verb}' parses nothing.")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for every key of the configuration; what is not given is absent from the result."""
    from weft.config import ALIASES, RunConfig

    other = {key: [f"--{alias}" for alias, of in ALIASES.items() if of == key] for key in RunConfig.model_fields}
    for key, field in RunConfig.model_fields.items():
        kind = str(field.annotation)
        many: dict[str, Any] = {}
        if field.annotation is bool:
            many = {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif "list" in kind or "dict" in kind:
            many = {"nargs": "*", "metavar": key.upper()}
        default = "" if field.default in (None, False) else f" [{_shown(field.default)}]"
        text = ((field.description or "") + default).replace("%", "%%")
        parser.add_argument(f"--{key}", *other[key], dest=key, default=argparse.SUPPRESS, help=text, **many)


def _shown(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
