"""Parts of installed packages: entry points, which are chosen by their names as Weft's own parts are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import weft
from support.own_parts import BESIDE, NAMES, PARTS, once
from weft import kinds
from weft.config import build
from weft.errors import ConfigError
from weft.sites.agreement import refusal
from weft.sites.policy import read_policy


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that offers one part of every kind."""
    folder = tmp_path / "site-packages"
    made = folder / "weft_extras-1.5.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: weft-extras\nVersion: 1.5\n")
    points = (f"[{kinds.PARTS[key].group}]\nmine = weft_extras:{name}\n" for key, name in NAMES.items())
    (made / "entry_points.txt").write_text("".join(points) + "[weft.nothing]\n")
    (folder / "weft_extras.py").write_text(PARTS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(weft.__file__).parent.parent}")
    yield folder
    sys.modules.pop("weft_extras", None)


@pytest.mark.parametrize("key", NAMES)
def test_a_part_of_an_installed_package_takes_part_by_its_name(key: str, keys, package: Path):
    weft.train(once(keys) | BESIDE.get(key, {}) | {key: "mine"}, quiet=True)
    assert {line.split()[0] for line in (package / "seen").read_text().splitlines()} == {key}


def test_names_of_packages_are_among_those_that_an_error_lists(keys, package: Path):
    with pytest.raises(ConfigError, match=r"named 'mime'\. Did you mean 'mine'\? Known: .*, mine; or a Python file"):
        build(keys | {"fed_alg": "mime"})
    points = package / "weft_extras-1.5.dist-info" / "entry_points.txt"
    points.write_text("[weft.algorithms]\nmine = weft_extras:MyCodec\n")
    with pytest.raises(ConfigError, match="'mine' is no algorithm"):
        kinds.load_part("fed_alg", "mine")
    points.write_text("[weft.algorithms]\nmine = weft_extras:Gone\n")
    with pytest.raises(ConfigError, match=r"algorithm 'mine' of the package weft-extras 1\.5 cannot be loaded"):
        kinds.load_part("fed_alg", "mine")


def test_two_packages_of_one_name_and_weft_s_own_names(keys, package: Path):
    other = package / "weft_more-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: weft-more\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[weft.algorithms]\nmine = weft_more:Mine\nfedavg = weft_more:Mine\n")
    with pytest.raises(ConfigError, match=r"weft-extras 1\.5 and weft-more 2\.0|weft-more 2\.0 and weft-extras 1\.5"):
        build(keys | {"fed_alg": "mine"})
    assert kinds.load_part("fed_alg", "fedavg").__module__ == "weft.algorithms.fedavg"


def test_another_version_of_the_package_is_a_change(keys, package: Path):
    run = weft.train(once(keys) | {"fed_alg": "mine"}, quiet=True)
    metadata = package / "weft_extras-1.5.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.5", "1.6"))
    with pytest.raises(ConfigError, match="the algorithm 'mine' changed since"):
        weft.train(resume=True, output_dir=run.path, num_rounds=2, quiet=True)


def test_packages_are_looked_for_only_where_a_name_is_not_wefts_own():
    """Neither the help nor a run of Weft's own parts reads what is installed."""
    code = (
        "import sys; from weft import cli\n"
        "assert cli.main(['--help']) == 0 and 'weft.plugins' not in sys.modules\n"
        "import weft.plugins; weft.plugins.installed_parts = None\n"
        "from weft.config import build; build({'dataset_name': 'd', 'fed_alg': 'fedadam'})\n"
        "try: cli.main(['sft', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("package")
def test_a_site_takes_a_part_that_is_installed_there_where_its_list_names_it(tmp_path: Path, keys):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    accept = {"models": [keys["model_name_or_path"]], "algorithms": ["fedavg", "mine"]}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"data": "rows.jsonl", "accept": accept}))
    policy = read_policy(tmp_path / "site.yaml")
    run = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    config = build(run | {"runtime": "nvflare", "fed_alg": "mine"})
    assert refusal(policy, config, 2) is None
    narrow = policy.model_copy(update={"accept": policy.accept.model_copy(update={"algorithms": ["fedavg"]})})
    assert "the algorithm 'mine' is not among what this site accepts" in str(refusal(narrow, config, 2))
    text = (tmp_path / "site.yaml").read_text().replace("- mine", "- mime")
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ConfigError, match="there is no 'mime'"):
        read_policy(tmp_path / "site.yaml")
