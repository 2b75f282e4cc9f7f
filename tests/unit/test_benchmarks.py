"""The benchmarks name what there is: what they import, and keys that have an effect in the arm that sets them."""

from __future__ import annotations

import ast
import gzip
import importlib
import importlib.util
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT
from weft.config import gather, settle
from weft.studies.cells import cells_of, cells_to_choose, check_effects, first_settings
from weft.studies.study import read_study

FILES = sorted((ROOT / "benchmarks").glob("*.py"))


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, found)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_of_weft_is_there(file: Path):
    """Also within functions, which no test runs."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("weft"):
            if node.module == "weft.sites.flare" or "flare" in str(node.module):
                pytest.importorskip("nvflare")
            there = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(there, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize(("task", "metric"), [("tfns", "macro_f1"), ("medquad", "loss")])
def test_the_algorithms_are_a_study_of_which_every_run_can_be(task: str, metric: str, monkeypatch: pytest.MonkeyPatch):
    study = read_study(module("algorithms", monkeypatch).study(task, ROOT / "tests"))
    check_effects(study, study.arms)
    assert len(study.arms) == 31
    assert len(cells_to_choose(study)) == 3 * 31
    assert len(cells_of(study, first_settings(study))) == 3 * 31
    assert study.choice is not None
    assert (study.choice.seed, study.choice.metric) == (0, metric)


@pytest.mark.parametrize(("name", "keys"), [("arithmetic", "GRPO"), ("preference", "KEYS"), ("codecs", "RUN")])
def test_the_arms_of_a_study_set_keys_that_work(name: str, keys: str, monkeypatch: pytest.MonkeyPatch):
    study = module(name, monkeypatch)
    for changes in study.ARMS.values():
        settle(*gather({"dataset_name": "any"} | getattr(study, keys) | changes, {}))


def test_the_benchmark_of_commits_measures_a_wait(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """With a state of 8 KB. The control: rounds that wait for each checkpoint wait longer."""
    commits = module("commits", monkeypatch)
    commits.main(rounds=3, seconds=0.05, tensors=2, numbers=1000, side=8)
    told = {line.partition(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    thread, wait = (float(told[name].split(": ")[1].split(" %")[0]) for name in ("in a thread", "rounds wait"))
    assert thread < wait


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """With tiny sizes, so that it works at the first call where a GPU is lent."""
    module("gpu", monkeypatch).main(["--tiny", "--parts", "acdef", "--deadline", "60"])
    printed = capsys.readouterr().out
    assert "failed" not in printed
    for words in ("TFLOP/s", "round / bare steps", "tokens/s, transformers", "20 losses against float32", "a step"):
        assert words in printed


def test_the_benchmark_of_a_gpu_ends_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module("gpu", monkeypatch).main(["--tiny", "--deadline", "-1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(line.endswith("not measured, the deadline has come") for line in lines)


def domains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder of two domains of some words."""
    source = folder / "source"
    source.mkdir()
    for name, words in (("fruit", "apple pear plum fig"), ("sky_valid_test", "sun moon star cloud")):
        lines = [json.dumps({"text": f"{words} {number} " * 60}) + "\n" for number in range(40)]
        (source / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    prepared = folder / "prepared"
    module("domains", monkeypatch).prepare(prepared, source=source, largest=30_000, held=3_000, vocabulary=300)
    return prepared


def test_the_frontier_runs_what_its_file_lacks_and_goes_on_after_a_kill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, frontier = domains(tmp_path, monkeypatch), module("frontier", monkeypatch)
    parse = module("frontier_arms", monkeypatch).parse
    assert sorted(file.name for file in (data / "train").iterdir()) == ["fruit.jsonl.gz", "sky.jsonl.gz"]
    out, arms = tmp_path / "out.jsonl", tmp_path / "arms"
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "cache"))
    lines = [
        "algorithm=central clients=1 inner=0 lr=0.004",
        "algorithm=central clients=1 inner=0 lr=0.001 optimizer=muon",
    ]
    arms.write_text("\n".join([*lines, "inner=5 codec=int4 outer=light"]))
    words = ["run", str(out), "--data", str(data), "--setting", "tiny", "--device", "cpu", "--workers", "1"]
    frontier.main([*words, "--arms", str(arms), "--deadline", "-1"])
    assert not frontier.read(out)
    frontier.main([*words, "--arms", str(arms)])
    rows = frontier.read(out)
    assert [row["arm"] for row in rows] == [parse(line).name for line in arms.read_text().splitlines()]
    assert rows[2]["lr"] == 0.004  # of central training: no arm of several clients was run
    # 4 clients, 10 steps, both ways; 2 exchanges of 4 bits.
    assert 20 < rows[2]["data_parallel_bytes"] / rows[2]["bytes"] < 80
    out.write_text(out.read_text().rpartition('{"arm"')[0] + '{"arm": "cut o')
    frontier.main([*words, "--arms", str(arms)])
    again = frontier.read(out)
    assert len(again) == 3
    assert again[2]["loss"] == rows[2]["loss"]
    assert "against central" in capsys.readouterr().out
    frontier.main(["picture", str(out), str(tmp_path / "frontier.png")])
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_every_arm_of_the_frontier_is_a_run_that_is_not_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Its keys work, and its parts go together."""
    from weft.launch import compose

    data, arms = domains(tmp_path, monkeypatch), module("frontier_arms", monkeypatch)
    found = arms.default_arms()
    assert len({arm.name for arm in found}) == len(found)
    for arm in found:
        assert arms.parse(arm.name) == arm
        config, warning = settle(
            *gather(arms.keys_of(replace(arm, lr="0.001", outer="light"), arms.FULL, data, "cpu"), {})
        )
        assert warning is None
        compose.plan(config)
        steps = config.num_rounds * config.max_steps
        assert steps == (arm.steps or arms.FULL.steps)
        assert 60 <= config.batch_size * arm.clients <= 64


def test_the_frontier_takes_what_was_best_for_its_kind(monkeypatch: pytest.MonkeyPatch):
    frontier, parse = module("frontier", monkeypatch), module("frontier_arms", monkeypatch).parse

    def row(line: str, loss: float | None) -> dict[str, object]:
        return frontier.facts(parse(line), line) | {"loss": loss}

    rows = [
        row("optimizer=muon lr=0.001 outer=mean", 5.0),
        row("optimizer=muon lr=0.004 outer=mean", 4.0),
        row("optimizer=muon lr=0.008 outer=mean", None),
        row("optimizer=muon lr=0.002 outer=decay", 4.5),
    ]
    assert frontier.chosen(rows, parse("optimizer=muon clients=8")) == parse(
        "optimizer=muon clients=8 lr=0.004 outer=mean"
    )
    assert frontier.chosen(rows, parse("optimizer=muon lr=0.01 outer=law")).lr == "0.01"
    # Of one client no arm was run: the rate of several stands for it. Of AdamW none at all.
    assert frontier.chosen(rows, parse("optimizer=muon clients=1 outer=law")).lr == "0.004"
    assert frontier.chosen(rows, parse("clients=8")) == parse("clients=8 lr=0.004 outer=mean")


def test_every_benchmark_of_make_bench_adds_to_its_table(monkeypatch: pytest.MonkeyPatch):
    run = module("run", monkeypatch)
    texts = {file.stem: file.read_text(encoding="utf-8") for file in FILES}
    assert all("report(" in texts[name.split()[0]] for name in run.NAMES)
    assert all(result.value is None and result.needs for result in run.ELSEWHERE)


def test_the_table_says_which_bounds_hold_and_what_cannot_be_measured_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, common = module("run", monkeypatch), importlib.import_module("common")
    monkeypatch.setenv(common.RESULTS, str(tmp_path / "results.jsonl"))
    common.report("a round", 1.04, 1.05, most=True)
    common.report("another", 1.06, 1.05, most=True)
    common.report("a rate", 2.4, 2.5, most=False)
    common.report("bf16", None, 2.5, most=False, needs="AVX512-BF16")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1].strip() for line in printed[:3]] == ["held", "NOT HELD", "NOT HELD"]
    assert printed[3].endswith("not here: AVX512-BF16")
    results = run.table(tmp_path / "results.jsonl")
    assert [result.line() for result in results[:4]] == printed
    assert results[4:] == run.ELSEWHERE


def test_a_benchmark_that_fails_or_hangs_leaves_the_table_and_nothing_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The programs are fakes; the second one has begun a process of its own, which does not outlive it."""
    run = module("run", monkeypatch)
    say = (
        "import json, os, signal, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "def say(name):\n"
        "    line = dict(name=name, value=1.0, bound=2.0, most=True)\n"
        "    Path(os.environ['WEFT_BENCH_RESULTS']).open('a').write(json.dumps(line) + '\\n')\n"
    )
    child = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    programs = {
        "fails": "say('before the error')\nraise SystemExit(3)",
        "hangs": f"say('before it hung')\nchild = subprocess.Popen({child})\n"
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\ntime.sleep(60)",
        "works": "say(f'{sys.argv[1]}, the last one')",
        "ends": "say('before the interrupt')\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)",
    }
    for name, text in programs.items():
        (tmp_path / f"{name}.py").write_text(f"{say}{text}\n", encoding="utf-8")
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    assert run.main(["--limit", "3", "fails", "hangs", "works too"]) == 2
    printed = capsys.readouterr().out
    for name in ("before the error", "before it hung", "too, the last one"):
        assert any(line.startswith(name) and line.endswith("held") for line in printed.splitlines())
    assert "FAILED: it ended with exit code 3" in printed
    assert "FAILED: it took longer than 3 s" in printed
    assert not is_running(int((tmp_path / "pid").read_text()))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own processes ignore it
    try:
        assert run.main(["ends", "works too"]) == 2
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr().out
    assert "before the interrupt" in printed
    assert "FAILED: interrupted before its turn" in printed


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that was killed may wait for being reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_figure_of_bf16_is_not_taken_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch):
    module("wire", monkeypatch)
    common = importlib.import_module("common")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert common.capability().endswith("bfloat16 emulated: float32 is used")


def test_the_benchmark_of_messages_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    module("wire", monkeypatch).main(matrices=3, size=16, times=1)
    printed = capsys.readouterr().out
    assert all(f" / copying {what}" in printed for what in ("it to new memory", "them"))


@pytest.mark.slow
def test_the_benchmark_of_the_population_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Commands in processes of their own, whose CPU seconds are read while they run."""
    module("population", monkeypatch).main(rows=400, few=4, many=200, turns=1, times=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("4 clients: ")
    assert sum("200 clients / 4, the same 400 rows" in line for line in lines) == 3


@pytest.fixture
def continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The benchmark of continued pre-training, with little text of its own in the place of the shared data."""
    study = module("continued", monkeypatch)
    source = tmp_path / "pretrain"
    source.mkdir()
    for name in (*study.PRIVATE, study.PUBLIC, study.TINY_PUBLIC):
        lines = [json.dumps({"text": f"{name} had {number} red apples.\n" * 40}) for number in range(30)]
        (source / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setattr(study, "SOURCE", source)
    study.prepare(tmp_path / "data", largest=9000, held=3000)
    return study


def test_the_arms_of_continued_pre_training_set_keys_that_work(continued: ModuleType, tmp_path: Path):
    bench = continued.Bench(tmp_path / "data", tmp_path / "out.jsonl", model="any", device="cpu", seed=0, tiny=False)
    for way, public in continued.ARMS.values():
        keys = bench.keys(way, bool(public), continued.PRIVATE)
        assert settle(*gather(keys, {}))
    held, trained = ({path.name for path in (tmp_path / "data" / part).iterdir()} for part in ("held", "train"))
    assert (
        held
        == trained
        == {f"{name}.jsonl.gz" for name in (*continued.PRIVATE, "wikitext2_valid_test", "stories_synthetic")}
    )


def test_continued_pre_training_ends_at_its_deadline_and_goes_on(
    continued: ModuleType, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["run", str(tmp_path / "data"), str(tmp_path / "out.jsonl"), "--model", str(tiny_model), "--tiny", "--arms"]
    continued.main([*words, "federated, public", "--deadline", "-1"])
    assert "federated, public: not measured" in capsys.readouterr().out
    continued.main([*words, "federated, public"])
    continued.main([*words, "federated, public", "start"])
    rows = continued.read(tmp_path / "out.jsonl")
    assert [row["arm"] for row in rows] == ["federated, public", "start"]
    assert set(rows[0]["private"]) == set(continued.PRIVATE)
    assert rows[0]["public"] != rows[1]["public"]
    continued.main(["table", str(tmp_path / "out.jsonl")])
    assert "| federated, public | 1 |" in capsys.readouterr().out
