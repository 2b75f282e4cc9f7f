import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.runs.layout import RunDir, path_component

CONFIG = {"fed_alg": "fedavg", "learning_rate": 1e-5, "num_rounds": 3, "clients": [{"name": "a", "data": "x.jsonl"}]}
VOLATILE = frozenset({"num_rounds"})


def create(path: Path, config: dict = CONFIG, *, resume: bool = False, overwrite: bool = False) -> RunDir:
    return RunDir.create(path, config, resume=resume, overwrite=overwrite, volatile=VOLATILE)


def test_a_new_run_holds_its_config_and_a_used_one_is_refused(tmp_path):
    with create(tmp_path / "deep" / "run") as run:
        assert run.holds_run
        assert run.read_config() == CONFIG
    with pytest.raises(ConfigError, match="holds a run already: add --resume"):
        create(run.path)


def test_resume_names_every_differing_key_and_ignores_the_volatile(tmp_path):
    create(tmp_path / "run").close()
    with create(tmp_path / "run", CONFIG | {"num_rounds": 9}, resume=True) as run:
        assert run.read_config()["num_rounds"] == 9
    changed = {key: value for key, value in CONFIG.items() if key != "clients"} | {"learning_rate": 2e-5, "seed": 1}
    with pytest.raises(ConfigError) as caught:
        create(tmp_path / "run", changed, resume=True)
    for words in ("learning_rate was 1e-05 and is now 2e-05", "seed was not set and is now 1", "clients was"):
        assert words in str(caught.value)
    create(tmp_path / "run", resume=True).close()


def test_resume_without_a_run_says_so(tmp_path):
    with pytest.raises(ConfigError, match="holds no run to resume"):
        create(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    (tmp_path / "model").mkdir()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds files that do not belong to a run"):
            create(tmp_path, overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "model"]
    with pytest.raises(ConfigError, match="is a file"):
        create(tmp_path / "config.yaml")


def test_overwrite_deletes_only_what_a_run_writes(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    with create(tmp_path / "run") as run:
        run.metrics_file.write_text("{}\n")
        (run.checkpoints / "round_000001").mkdir(parents=True)
        run.model.symlink_to(elsewhere)
        (run.path / "my notes.txt").write_text("mine")
    with create(run.path, CONFIG | {"fed_alg": "local"}, overwrite=True) as again:
        assert again.read_config()["fed_alg"] == "local"
        assert sorted(os.listdir(run.path)) == [".lock", "config.yaml", "my notes.txt"]
    assert (elsewhere / "kept").exists()
    with pytest.raises(ConfigError, match="give one of them"):
        create(run.path, resume=True, overwrite=True)


def test_a_directory_that_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match="cannot be written"):
        create(Path("/proc/no-such-place/run"))


def test_one_process_at_a_time_until_it_is_killed(tmp_path):
    program = (
        "import sys, time; from weft.runs.layout import RunDir\n"
        "run = RunDir.create(sys.argv[1], {}, resume=False, overwrite=False, volatile=frozenset())\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        for flags in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=f"in use by another run \\(process {other.pid}\\)"):
                create(tmp_path / "run", {}, **flags)
        other.send_signal(signal.SIGKILL)
        other.wait()
    create(tmp_path / "run", {}, resume=True).close()


def test_a_run_killed_before_its_config_was_written_can_be_begun_again(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.123.tmp").touch()
    create(tmp_path).close()
    assert {path.name for path in tmp_path.glob("*config.yaml*")} == {"config.yaml"}


def test_reading_the_config_of_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no run in"):
        RunDir(tmp_path).read_config()


def test_write_atomic_replaces_whole_and_leaves_nothing_behind(tmp_path):
    write_atomic(tmp_path / "file", b"old")
    write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "directory", b"x")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_the_config_of_a_run_is_plain_yaml(tmp_path):
    with create(tmp_path / "run") as run:
        assert yaml.safe_load(run.config_file.read_text()) == CONFIG


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b", "\ud800", "Ä" * 500, ".lock", "~x"]
)
def test_folders_of_clients_with_hostile_names_stay_inside_the_run(name):
    run = RunDir("run")
    assert run.client_dir(name).parent == run.clients
    assert not run.client_dir(name).name.startswith("..") or "~" in run.client_dir(name).name
    assert len(run.client_dir(name).name.encode()) <= 255


def test_plain_client_names_are_readable():
    assert RunDir("run").client_dir("client_0") == Path("run/clients/client_0")
    assert path_component("NIDDK").startswith("NIDDK~")


NAMES = st.text(st.characters(), max_size=20) | st.text("aA~%./_-é", max_size=6)


@given(NAMES, NAMES)
def test_distinct_clients_have_distinct_directories_even_where_case_is_ignored(one, other):
    assert (path_component(one).lower() == path_component(other).lower()) == (one == other)
    for name in (one, other):
        component = path_component(name)
        assert component not in ("", ".", "..")
        assert component.isascii()
        assert not set(component) & set("/\\\0")
