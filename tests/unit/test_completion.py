"""Completion: each shell completes verbs, flags, and names of parts; its script is read by the shell itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from weft import registry
from weft.arguments import parser_of
from weft.cli import HELP, main
from weft.commands.completion import verbs
from weft.config import RunConfig

ASKED = {
    "weft pr": {"pretrain", "privacy", "prompt"},
    "weft sft --fed_alg fedad": {"fedadagrad", "fedadam", "fedadamw"},
    "weft pretrain --lora_aggregation s": {"stack", "svd"},
    "weft sft --use_peft ": {"true", "false"},
    "weft dpo --loss s": {"simpo"},
    "weft split --split_strategy d": {"dirichlet", "domain"},
    "weft sft --peft_lora_al": {"--peft_lora_alpha"},
    "weft chat run --te": {"--temperature"},
    "weft server st": {"start"},
    "weft completion f": {"fish"},
}
BASH = """source {script}
for line in "$@"; do
    read -r -a COMP_WORDS <<< "$line"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
    _weft
    echo "${{COMPREPLY[*]}}"
done
"""
ZSH = """compdef() {{ :; }}
_files() {{ :; }}
compadd() {{ shift; for word in "$@"; do [[ $word == $PREFIX* ]] && said+=($word); done; }}
_describe() {{ local one; for one in "${{(@P)2}}"; do compadd -- ${{one%%:*}}; done; }}
source {script}
for line in "$@"; do
    words=("${{(@s: :)line}}") CURRENT=${{#words}} PREFIX=${{words[-1]}} said=()
    _weft
    print -r -- $said
done
"""
FISH = """source {script}
for line in $argv
    echo (complete -C $line | string split -f 1 \\t)
end
"""


@pytest.mark.parametrize(("shell", "program"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)])
def test_every_shell_completes_verbs_keys_and_values(shell: str, program: str, tmp_path: Path, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    assert main(["completion", shell]) == 0
    script, asking = tmp_path / "script", tmp_path / "asking"
    script.write_text(capsys.readouterr().out)
    asking.write_text(program.format(script=script))
    run = [shell, *(["-f"] if shell == "zsh" else []), str(asking), *ASKED]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert done.stderr == ""
    said = [set(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(ASKED, said, strict=True)) == ASKED


def test_completion_knows_every_verb_and_every_key():
    found = {verb.name: verb for verb in verbs()}
    assert list(found) == list(registry.COMMANDS) == list(HELP)
    flags = {flag.name: flag for flag in found["sft"].flags}
    assert {f"--{key}" for key in RunConfig.model_fields} <= set(flags)
    assert flags["--fed_alg"].words == tuple(registry.ALGORITHMS)
    assert (flags["--resume"].takes_value, flags["--config"].takes_value, flags["--config"].words) == (False, True, ())


def test_completed_tracker_names_are_those_that_a_run_takes():
    """Trackers are named twice, as the command line imports nothing of them."""
    from weft.commands.completion import NAMES
    from weft.runs.trackers import TRACKERS

    assert set(NAMES["report_to"]) == {*TRACKERS, "all", "none"}
    assert set(NAMES) <= set(RunConfig.model_fields)


def test_asking_for_a_verbs_parser_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert all(parser_of(verb).prog.startswith("weft ") for verb in registry.COMMANDS)
    assert list(tmp_path.iterdir()) == []
