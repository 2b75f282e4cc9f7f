"""`weft completion bash|zsh|fish`: print a script with which the shell completes verbs, flags and values of flags.

The script contains all the words, so that completion starts no process. They come from the verbs' own parsers, from
the types of the keys, and from the tables of named parts.
"""

from __future__ import annotations

import argparse
import re
import typing
from dataclasses import dataclass

from weft import kinds, registry
from weft.arguments import Parser, parser_of
from weft.config import RunConfig

NAMES: dict[str, tuple[str, ...]] = {
    **{key: tuple(kind.table) for key, kind in kinds.KINDS.items()},
    "template": ("auto", *registry.TEMPLATES),
    "reward": registry.REWARDS,
    "clean": tuple(registry.CLEANERS),
    "report_to": ("none", "all", "tensorboard", "wandb", "mlflow", "trackio"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "peft_lora_target_modules": ("auto", "all-linear"),
}
"""Keys whose values are names, and those names."""


@dataclass(frozen=True)
class Flag:
    """A flag of a verb; its value is one of `words`, or anything, such as a file, if there are none.

    A flag that takes no value has `takes_value` false.
    """

    name: str
    takes_value: bool
    words: tuple[str, ...]
    about: str


@dataclass(frozen=True)
class Verb:
    """A verb, the words that may follow it, and its flags."""

    name: str
    about: str
    words: tuple[str, ...]
    flags: tuple[Flag, ...]


def run(argv: list[str]) -> int:
    """Print the script."""
    parser = Parser(
        prog="weft completion",
        description=(
            'Print what lets a shell complete these words. bash: eval "$(weft completion bash)" in ~/.bashrc. zsh: the '
            "same with zsh in ~/.zshrc, after compinit. fish: weft completion fish | source in its config.fish"
        ),
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell that is to complete")
    shell = parser.parse(argv).shell
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](verbs()), end="")
    return 0


def verbs() -> list[Verb]:
    """Return all verbs of `weft` with their flags."""
    result = []
    for name in registry.COMMANDS:
        parser = parser_of(name)
        places = [action for action in parser._actions if not action.option_strings]
        words = tuple(str(word) for action in places[:1] for word in action.choices or ())
        if name in ("submit", "up"):
            from weft.commands.submit import VERBS

            words = VERBS
        about = (parser.description or "").partition(". ")[0].partition(":")[0].rstrip(".")
        flags = [_flag(flag, action) for action in parser._actions for flag in action.option_strings]
        result.append(Verb(name, about, words, tuple(flag for flag in flags if flag.name.startswith("--"))))
    return result


def _flag(name: str, action: argparse.Action) -> Flag:
    words = tuple(str(word) for word in action.choices or ()) or _values(action.dest)
    return Flag(name, action.nargs != 0, words, (action.help or "").replace("%%", "%").split(" [")[0])


def _values(key: str) -> tuple[str, ...]:
    """Return the values that a key may have, if they are a closed set."""
    if key in NAMES or key not in RunConfig.model_fields:
        return NAMES.get(key, ())
    kind = RunConfig.model_fields[key].annotation
    if kind is bool:
        return ("true", "false")
    inner = [kind, *typing.get_args(kind)]
    return tuple(
        str(word) for part in inner if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)
    )


def _by_words(verbs: list[Verb]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Return sets of words, and for each the shell patterns of `VERB FLAG` that they may follow.

    A flag that takes the same words in every verb has one pattern for all verbs.
    """
    every: dict[str, set[tuple[str, ...]]] = {}
    for verb in verbs:
        for flag in verb.flags:
            every.setdefault(flag.name, set()).add(flag.words)
    grouped: dict[tuple[str, ...], list[str]] = {}
    for verb in verbs:
        for flag in verb.flags:
            pattern = f'*" {flag.name}"' if len(every[flag.name]) == 1 else f'"{verb.name} {flag.name}"'
            if flag.words and pattern not in grouped.setdefault(flag.words, []):
                grouped[flag.words].append(pattern)
    return list(grouped.items())


def bash(verbs: list[Verb]) -> str:
    """Return the script for bash."""
    lines = [
        "# weft completion for bash",
        "_weft() {",
        '    local now=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]} words=""',
        "    if ((COMP_CWORD == 1)); then",
        f'        words="{" ".join(verb.name for verb in verbs)} --help --version"',
        "    else",
        '        case "$verb $before" in',
        *(f'            {"|".join(patterns)}) words="{" ".join(words)}" ;;' for words, patterns in _by_words(verbs)),
        "        esac",
        "        if [[ -z $words && $now == -* ]]; then",
        '            case "$verb" in',
        *(f'                {verb.name}) words="{" ".join(flag.name for flag in verb.flags)}" ;;' for verb in verbs),
        "            esac",
        "        elif [[ -z $words && $COMP_CWORD -eq 2 ]]; then",
        '            case "$verb" in',
        *(f'                {verb.name}) words="{" ".join(verb.words)}" ;;' for verb in verbs if verb.words),
        "            esac",
        "        fi",
        "    fi",
        '    COMPREPLY=($(compgen -W "$words" -- "$now"))',
        "}",
        "complete -o default -F _weft weft",
    ]
    return "\n".join(lines) + "\n"


def zsh(verbs: list[Verb]) -> str:
    """Return the script for zsh."""
    lines = [
        "#compdef weft",
        "_weft() {",
        "    local verb=$words[2] before=$words[CURRENT-1]",
        "    if ((CURRENT == 2)); then",
        "        local -a verbs=(",
        *(f"            {_quoted(verb.name + ':' + verb.about)}" for verb in verbs),
        "        )",
        "        _describe verb verbs",
        "        return",
        "    fi",
        '    case "$verb $before" in',
        *(
            f"        ({'|'.join(patterns)}) compadd -- {' '.join(words)}; return ;;"
            for words, patterns in _by_words(verbs)
        ),
        "    esac",
        "    if [[ $PREFIX == -* ]]; then",
        '        case "$verb" in',
        *(f"            ({verb.name}) compadd -- {' '.join(flag.name for flag in verb.flags)} ;;" for verb in verbs),
        "        esac",
        "        return",
        "    fi",
        "    if ((CURRENT == 3)); then",
        '        case "$verb" in',
        *(f"            ({verb.name}) compadd -- {' '.join(verb.words)} ;;" for verb in verbs if verb.words),
        "        esac",
        "    fi",
        "    _files",
        "}",
        'if [[ ${funcstack[1]} == _weft ]]; then _weft "$@"; else compdef _weft weft; fi',
    ]
    return "\n".join(lines) + "\n"


def fish(verbs: list[Verb]) -> str:
    """Return the script for fish."""
    lines = ["# weft completion for fish"]
    first = "complete -c weft -n __fish_use_subcommand"
    lines += [f"{first} -f -a {verb.name} -d {_quoted(verb.about)}" for verb in verbs]
    having: dict[Flag, list[str]] = {}
    for verb in verbs:
        if verb.words:
            when = f"'__fish_seen_subcommand_from {verb.name}; and test (count (commandline -opc)) -eq 2'"
            lines.append(f"complete -c weft -n {when} -a {_quoted(' '.join(verb.words))}")
        for flag in verb.flags:
            having.setdefault(flag, []).append(verb.name)
    for flag, names in having.items():
        when = f"'__fish_seen_subcommand_from {' '.join(names)}'"
        what = f" -x -a {_quoted(' '.join(flag.words))}" if flag.words else " -r" if flag.takes_value else ""
        lines.append(f"complete -c weft -n {when} -l {flag.name[2:]}{what} -d {_quoted(flag.about)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a text as one quoted word for any shell; quotes and backslashes in it are dropped."""
    return "'" + re.sub(r"['\\\\]", "", text) + "'"
