"""`weft up` deletes nothing that it did not make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from weft.cli import main
from weft.errors import ConfigError, RunInUse
from weft.sites.local_federation import LocalFederation
from weft.sites.provisioning import add_kit, make_kits
from weft.sites.work_folder import MARK, own_folder

pytest.importorskip("nvflare")
SITES = ("hospital_a", "hospital_b")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def federation(work: Path, sites: tuple[str, ...] = SITES) -> LocalFederation:
    return LocalFederation(work, {name: work / f"{name}.yaml" for name in sites}, port=8123)


@pytest.fixture(scope="module")
def real_kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kits = tmp_path_factory.mktemp("real") / "kits"
    make_kits("federation.example.org", SITES, kits)
    return kits


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial: its kits were made by Weft."""
    return federation(tmp_path_factory.mktemp("trial")).work


@pytest.fixture
def work(trial: Path, tmp_path: Path) -> Path:
    shutil.copytree(trial, tmp_path / "work")
    return tmp_path / "work"


def test_real_kits_and_their_authority_are_left_as_they_are(keys, real_kits: Path, tmp_path: Path, capsys):
    """The folder of the kits itself, and a folder with kits in it, by the command."""
    shutil.copytree(real_kits, tmp_path / "mine" / "kits")
    before = content(tmp_path / "mine")
    words = ["up", "--model_name_or_path", str(keys["model_name_or_path"]), "--dataset_name", str(keys["dataset_name"])]
    for folder in (tmp_path / "mine", tmp_path / "mine" / "kits"):
        assert main([*words, "--clients", "2", "--work", str(folder)]) == 2
        said = capsys.readouterr().err
        assert f"'{folder}' holds what `weft up` did not make, and is left as it is" in said
    with pytest.raises(ConfigError, match="was not made by `weft up`, and is left as it is"):
        federation(tmp_path / "mine")
    assert content(tmp_path / "mine") == before


def real_site(work: Path, real: Path) -> None:
    shutil.rmtree(work / "kits" / "hospital_a")
    shutil.copytree(real / "hospital_a", work / "kits" / "hospital_a")


def real_authority(work: Path, real: Path) -> None:
    shutil.rmtree(work / "kits" / "authority")
    shutil.copytree(real / "authority", work / "kits" / "authority")


def real_behind_a_link(work: Path, real: Path) -> None:
    shutil.move(work / "kits", work / "elsewhere")
    (work / "kits").symlink_to(work / "elsewhere")


def another_file(work: Path, real: Path) -> None:
    (work / "kits" / "notes.txt").write_text("mine")


def another_folder_in_place_of_a_kit(work: Path, real: Path) -> None:
    shutil.rmtree(work / "kits" / "admin" / "startup")
    (work / "kits" / "admin" / "mine").mkdir()


def a_broken_mark(work: Path, real: Path) -> None:
    (work / "kits" / MARK).write_text("[]")


def one_more_site(work: Path, real: Path) -> None:
    add_kit(work / "kits", "hospital_c")


PUT = [
    real_site,
    real_authority,
    real_behind_a_link,
    another_file,
    another_folder_in_place_of_a_kit,
    a_broken_mark,
    one_more_site,
]


@pytest.mark.parametrize("put", PUT, ids=lambda put: put.__name__)
def test_what_was_put_among_the_kits_of_a_trial_is_left_as_it_is(put, work: Path, real_kits: Path):
    put(work, real_kits)
    before = content(work)
    with pytest.raises(ConfigError, match=r"left as it is"):
        federation(work)
    assert content(work) == before


def test_kits_of_other_sites_are_left_as_they_are(work: Path):
    before = content(work)
    with pytest.raises(ConfigError, match=r"other sites \(hospital_a, hospital_b\).*--work"):
        federation(work, ("hospital_a", "hospital_c"))
    assert content(work) == before


def test_a_second_trial_keeps_runs_and_what_sites_keep_of_them(work: Path):
    kept = ["server/runs/run/metrics.jsonl", "server/parts/mine.py", "hospital_a/weft/run/adapter/weights"]
    for name in kept:
        (work / "kits" / name).parent.mkdir(parents=True)
        (work / "kits" / name).write_text(name)
    (work / "kits" / "server" / "jobs" / "store").mkdir(parents=True)
    old = (work / "kits" / "server" / "startup" / "rootCA.pem").read_bytes()
    federation(work)
    assert all((work / "kits" / name).read_text() == name for name in kept)
    assert not (work / "kits" / "server" / "jobs").exists()  # else the jobs of earlier runs would go on
    new = (work / "kits" / "server" / "startup" / "rootCA.pem").read_bytes()
    assert new != old
    assert (work / "kits" / "hospital_a" / "startup" / "rootCA.pem").read_bytes() == new
    assert (work / "kits" / "authority").stat().st_mode & 0o077 == 0
    assert not list(work.glob(".kits-*"))


def test_kits_whose_making_was_interrupted_are_made_anew(work: Path, tmp_path: Path):
    """Some kits are new, one is empty of certificates, the others are old; the mark names both authorities."""
    shutil.copytree(work, tmp_path / "next")
    federation(tmp_path / "next")
    old, new = (json.loads((folder / "kits" / MARK).read_text()) for folder in (work, tmp_path / "next"))
    both = new | {key: [*old[key], *new[key]] for key in ("authorities", "roots")}
    (work / "kits" / MARK).write_text(json.dumps(both))
    for name in ("admin", "authority"):
        shutil.rmtree(work / "kits" / name)
        shutil.copytree(tmp_path / "next" / "kits" / name, work / "kits" / name)
    shutil.rmtree(work / "kits" / "hospital_a")
    (work / "kits" / "hospital_a" / "weft").mkdir(parents=True)
    federation(work)
    roots = [path.read_bytes() for path in (work / "kits").rglob("rootCA.pem")]
    assert len(roots) == 5
    assert len(set(roots)) == 1


def test_a_folder_is_used_by_one_trial_at_a_time(tmp_path: Path):
    with (
        own_folder(tmp_path / "work"),
        pytest.raises(RunInUse, match="Another `weft up` uses"),
        own_folder(tmp_path / "work"),
    ):
        pass
    with own_folder(tmp_path / "work"):
        pass


def test_a_mistake_leaves_no_folder(keys, tmp_path: Path, capsys):
    assert main(["up", "--model_name_or_path", "m", "--work", str(tmp_path / "a" / "b")]) == 2
    assert "No data is named" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
