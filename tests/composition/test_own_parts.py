"""Parts in a user's own file: one of each kind takes part without a change of the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import weft
from support.flags import flags
from support.own_parts import BESIDE, NAMES, PARTS, once
from weft import kinds, plugins
from weft.cli import main
from weft.config import RunConfig, build
from weft.errors import ConfigError, DataError
from weft.launch import provenance


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "elsewhere" / "mine.py"
    made.parent.mkdir()
    made.write_text(PARTS)
    return made


def test_every_kind_of_part_is_tried():
    assert list(NAMES) == list(kinds.PARTS)


@pytest.mark.parametrize("key", NAMES)
def test_a_part_in_a_file_of_ones_own_takes_part(key: str, keys, file: Path, monkeypatch: pytest.MonkeyPatch):
    """No file of the package is touched: the key names the file, and another gives the part's own parameter."""
    monkeypatch.chdir(file.parent)
    args = kinds.PARTS[key].args
    keep = "mine.py:MyCleaner.keep" if key == "clean" else "keep"  # of several cleaners, each has its own
    own = {args: {keep: "0.25"}} if args and key != "privacy" else {}
    run = weft.train(once(keys) | BESIDE.get(key, {}) | {key: f"mine.py:{NAMES[key]}"} | own, quiet=True)
    expected = f"{key} 0.5" if key == "privacy" else f"{key} 0.25"
    assert set((file.parent / "seen").read_text().splitlines()) == {expected}
    saved = run.directory.read_config()[key]
    assert saved in (f"{file}:{NAMES[key]}", [f"{file}:{NAMES[key]}"])
    assert run.finished
    assert not list(file.parent.glob("__pycache__"))


def test_the_command_line_takes_a_part_of_ones_own_and_the_plan_shows_its_content(keys, file: Path, capsys):
    words = flags({key: value for key, value in once(keys).items() if key != "use_peft"})
    words += ["--fed_alg", f"{file}:MyAlgorithm", "--fed_args", "keep=0.25", "--quiet"]
    assert main(["sft", *words, "--dry_run"]) == 0
    digest = plugins.digest_of(file.read_bytes())
    assert f"mine.py:MyAlgorithm (SHA-256 {digest[:16]}...) (keep 0.25), mean by size" in capsys.readouterr().out
    assert main(["sft", *words]) == 0
    card = (Path(str(keys["output_dir"])) / "model" / "README.md").read_text()
    assert f"| algorithm | mine.py:MyAlgorithm (SHA-256 {digest}) |" in card
    assert str(file.parent) not in card


WRONG = {
    "no file": ("{folder}/nowhere.py:Mine", "nowhere.py', which is to hold Mine, cannot be read"),
    "no name": ("{file}", "names a file, and not the class in it that is the algorithm: write"),
    "no such class": ("{file}:MyAlgorith", "holds no 'MyAlgorith'. Did you mean 'MyAlgorithm'?"),
    "a class of another kind": ("{file}:MyCodec", "is no algorithm: write a class derived from weft.core.parts.Alg"),
    "a function": ("{file}:my_split", "is no algorithm: write a class derived from weft.core.parts.Algorithm"),
    "an error of syntax": ("{folder}/syntax.py:Mine", "syntax.py' is not valid Python (line 2: "),
    "an exception": ("{folder}/raises.py:Mine", "raises.py' cannot be loaded (ZeroDivisionError: division by zero)"),
    "an exit": ("{folder}/exits.py:Mine", "exits.py' cannot be loaded (SystemExit: 3)"),
    "bytes": ("{folder}/bytes.py:Mine", "bytes.py' is not valid Python"),
    "a parameter": ("{folder}/needs.py:Mine", "needs a value for 'rate': write --fed_args rate=VALUE"),
    "a type": ("{folder}/types.py:Mine", "parameters of the algorithm"),
    "no dots": ("mine:MyAlgorithm", "There is no algorithm named 'mine:MyAlgorithm'."),
    "another content": ("{file}:MyAlgorithm@sha256:" + "0" * 64, "and 0000000000000000... is asked for"),
}
HEAD = "from dataclasses import dataclass\nfrom weft.core.parts import Algorithm\n\n\n@dataclass(frozen=True)\n"
BROKEN = {
    "syntax.py": "x = 1\ndef f(:\n",
    "raises.py": "class Mine: pass\n1 / 0\n",
    "exits.py": "raise SystemExit(3)\n",
    "needs.py": HEAD + "class Mine(Algorithm):\n    rate: float\n",
    "types.py": "from __future__ import annotations\n" + HEAD + "class Mine(Algorithm):\n    rate: Nothing = 1\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_a_part_is_refused_in_one_sentence(name: str, keys, file: Path, tmp_path: Path, capsys):
    """Before the model is looked for, and with nothing left behind."""
    for broken, text in BROKEN.items():
        (file.parent / broken).write_text(text)
    (file.parent / "bytes.py").write_bytes(b"x = '\xff\xfe'\n")
    written, words = WRONG[name]
    before, modules = sorted(tmp_path.rglob("*")), set(sys.modules)
    keys = {key: value for key, value in keys.items() if key != "use_peft"} | {"model_name_or_path": "/nowhere"}
    keys["fed_alg"] = written.format(folder=file.parent, file=file)
    assert main(["sft", *flags(keys)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert not any(getattr(sys.modules[new], "__file__", "") in BROKEN for new in set(sys.modules) - modules)


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        ("split_strategy", "Mine = 3", "is no split strategy: write a function of two arguments"),
        ("split_strategy", "def Mine(rows): ...", "is no split strategy: write a function of two arguments"),
        ("template", "Mine = 'text'", "is no template: write a value of the class weft.data.templates.Template"),
        (
            "aggregator",
            "from weft.core.exchange import Aggregator\nclass Mine(Aggregator): ...",
            "is no aggregator: its class must define combine",
        ),
        (
            "objective",
            "from weft.core.objective import Objective\nclass Mine(Objective): ...",
            "is no objective: its class must define collate and loss",
        ),
    ],
)
def test_the_form_of_a_part_is_checked_before_the_model_is_looked_for(key, code, words, keys, tmp_path: Path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ConfigError, match=words):
        weft.train(keys | {key: f"{tmp_path}/mine.py:Mine", "model_name_or_path": "/nowhere"})
    assert not Path(keys["output_dir"]).exists()


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("3", "returns no Shares"),
        ("Shares(['a'])", "returns no Shares"),
        ("Shares([[0, 1], [1]])", "deals a row twice"),
        ("Shares([[0], [10 ** 6]])", "deals rows that there are not"),
        ("Shares([[0], [1]], ['a', 'a'])", "give each a name of its own"),
    ],
)
def test_what_a_split_of_ones_own_deals_is_checked(result: str, words: str, keys, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        f"from weft.data.splits import Shares\ndef halves(rows, how):\n    return {result}\n"
    )
    with pytest.raises(DataError, match=words):
        weft.train(once(keys) | {"split_strategy": f"{tmp_path}/mine.py:halves"}, quiet=True)


def test_a_changed_part_is_another_module_and_the_same_one_is_loaded_once(file: Path):
    config = build({"dataset_name": "d", "fed_alg": f"{file}:MyAlgorithm"})
    first = kinds.load_part("fed_alg", config.fed_alg)
    assert kinds.load_part("fed_alg", config.fed_alg) is first
    file.write_text(PARTS.replace("keep: float = 0.5", "keep: float = 0.75"))
    second = kinds.load_part("fed_alg", config.fed_alg)
    assert (first().keep, second().keep) == (0.5, 0.75)
    assert first.__module__ != second.__module__


def test_a_run_does_not_go_on_with_an_edited_part_unless_that_is_accepted(keys, file: Path, capsys):
    run = weft.train(once(keys) | {"codec": f"{file}:MyCodec"}, quiet=True)
    file.write_text(PARTS + "\n# edited\n")
    capsys.readouterr()
    words = ["sft", "--output_dir", str(run.path), "--resume", "--num_rounds", "2", "--quiet"]
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(words) == 2
    assert f"the codec '{file}:MyCodec' changed since" in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in before} == before
    assert main([*words, "--accept_changed"]) == 0
    assert "changed since the run was made; the run continues" in capsys.readouterr().err
    assert weft.open_run(run.path).summary["rounds"] == 2


@pytest.mark.parametrize("key", [key for key in NAMES if key != "reward"])
def test_the_content_of_every_part_is_known(key: str, file: Path):
    config = build({"dataset_name": "d", key: f"{file}:{NAMES[key]}"})
    name = f"the {kinds.PARTS[key].word} '{file}:{NAMES[key]}'"
    assert provenance.parts_of(config) == {name: plugins.digest_of(PARTS.encode())}
    assert provenance.parts_of(build({"dataset_name": "d", "fed_alg": "local1"})) == {}


def test_a_run_whose_part_is_gone_can_still_be_used(keys, file: Path):
    run = weft.train(once(keys) | {"fed_alg": f"{file}:MyAlgorithm"}, quiet=True)
    file.unlink()
    assert weft.open_run(run.path).model is not None
    with pytest.raises(ConfigError, match=r"mine\.py', which is to hold MyAlgorithm, cannot be read"):
        weft.train(resume=True, output_dir=run.path, num_rounds=2, quiet=True)


def test_a_file_whose_name_begins_like_a_baseline_is_none(keys, file: Path):
    """`local` and `localN` are baselines; a file may be called local.py."""
    other = file.with_name("local.py")
    other.write_text(PARTS)
    own = {"fed_alg": f"{other}:MyAlgorithm", "runtime": "nvflare", "dataset_name": None}
    assert build(keys | own).fed_alg == f"{other}:MyAlgorithm"


def test_keys_of_the_class_that_a_part_is_derived_from_are_taken(keys, tmp_path: Path):
    code = "from weft.algorithms.fedprox import FedProx\nclass Mine(FedProx):\n    pass\n"
    (tmp_path / "mine.py").write_text(code)
    run = weft.train(once(keys) | {"fed_alg": f"{tmp_path}/mine.py:Mine", "prox_mu": 0.5}, quiet=True)
    assert run.config.prox_mu == 0.5


def test_a_file_may_be_given_wherever_a_name_is(file: Path):
    for key, name in NAMES.items():
        value = [f"{file}:{name}"] if key == "reward" else f"{file}:{name}"
        objective = {"objective": "grpo"} if key == "reward" else {}
        assert getattr(build({"dataset_name": "d", key: value} | objective), key) in (value, [value])
    assert set(NAMES) <= set(RunConfig.model_fields)
