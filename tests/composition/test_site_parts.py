"""Parts in files, in a run of sites: no code travels, and each party loads its own file with the same content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import weft
from support.fake_sites import NAMES, FakeSites
from support.own_parts import PARTS
from weft import plugins
from weft.config import build
from weft.errors import ConfigError
from weft.sites.part_files import to_send
from weft.sites.policy import read_policy
from weft.sites.server import serve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of whoever submits the run."""
    made = tmp_path / "admin" / "mine.py"
    made.parent.mkdir()
    made.write_text(PARTS)
    return made


@pytest.fixture
def folder(file: Path, tmp_path: Path) -> Path:
    """The folder of the server's kit, with the same file by another name."""
    made = tmp_path / "kit" / "parts"
    made.mkdir(parents=True)
    (made / "allowed.py").write_bytes(file.read_bytes())
    return made


def submitted(run: dict[str, object], **keys: object) -> dict[str, object]:
    return to_send(build(run | keys)).model_dump(mode="json") | {"output_dir": run["output_dir"]}


def accept_file(sites: FakeSites, name: str, text: str, **more: object) -> Path:
    """Put a file at a site, and list it in its site.yaml."""
    place = sites.folder.parent / "sites" / name
    (place / "theirs.py").write_text(text)
    policy = yaml.safe_load((place / "site.yaml").read_text())
    policy["accept"] |= {"parts": {"theirs.py": plugins.digest_of(text.encode())}} | more
    (place / "site.yaml").write_text(yaml.safe_dump(policy))
    sites.policies[name] = read_policy(place / "site.yaml")
    sites.begin(name)
    return place / "theirs.py"


def test_a_run_is_submitted_with_the_name_and_the_content_of_the_file_and_no_folder(run, file: Path):
    sent = to_send(build(run | {"fed_alg": f"{file}:MyAlgorithm"}))
    assert sent.fed_alg == f"mine.py:MyAlgorithm@sha256:{plugins.digest_of(PARTS.encode())}"
    assert to_send(build(run)) == build(run)
    with pytest.raises(ConfigError, match="cannot be read"):
        to_send(build(run | {"codec": "nowhere.py:Mine"}))


def test_each_party_uses_its_own_file_of_the_content(run, sites: FakeSites, file: Path, folder: Path, tmp_path: Path):
    """The result is that of one process; each part ran from the file of its own party."""
    own = {"fed_alg": f"{file}:MyAlgorithm", "codec": f"{file}:MyCodec", "fed_args": {"keep": 0.25}, "num_rounds": 2}
    theirs = [accept_file(sites, name, PARTS, algorithms=["fedavg"]) for name in NAMES]
    done = serve(submitted(run, **own), sites, list(NAMES), "1", parts=folder)
    assert done.summary["clients"].keys() == set(NAMES)
    assert (folder / "seen").read_text().splitlines() == ["fed_alg 0.25"] * 2
    for path in theirs:
        assert (path.parent / "seen").read_text().splitlines() == ["codec 0.5"] * 2
    assert not (file.parent / "seen").exists()
    clients = [{"name": name, "data": sites.policies[name].data.path} for name in NAMES]
    left = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    one = weft.train(left | own | {"clients": clients, "output_dir": str(tmp_path / "here")}, quiet=True)
    assert (done.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    (folder / "allowed.py").rename(folder / "renamed.py")
    again = serve(submitted(run, **own), sites, list(NAMES), "1", resume=True, parts=folder)
    assert again.summary["rounds"] == 2


def test_a_site_that_does_not_list_the_content_refuses(run, sites: FakeSites, file: Path, folder: Path):
    accept_file(sites, "hospital_a", PARTS)
    accept_file(sites, "hospital_c", PARTS + "\n# edited\n")
    keys = submitted(run, fed_alg=f"{file}:MyAlgorithm", min_clients=2)
    with pytest.raises(ConfigError, match="1 of 3 sites take part") as stopped:
        serve(keys, sites, list(NAMES), "1", parts=folder)
    for name in ("hospital_b", "hospital_c"):
        assert f"{name}: \"the run names code of its own for its algorithm ('mine.py:MyAlgorithm'" in str(stopped.value)
    assert "this site does not list that file under accept: parts" in str(stopped.value)
    assert not (sites.folder / "hospital_b").exists()


def test_a_file_that_was_edited_at_a_site_is_not_loaded(run, sites: FakeSites, file: Path, folder: Path):
    """What site.yaml was read with is compared again with what is loaded."""
    theirs = [accept_file(sites, name, PARTS) for name in NAMES]
    theirs[1].write_text(PARTS + "\nnote('edited', 1)\n")
    keys = submitted(run, fed_alg=f"{file}:MyAlgorithm", min_clients=2)
    done = serve(keys, sites, list(NAMES), "1", parts=folder)
    assert done.summary["clients"].keys() == {"hospital_a", "hospital_c"}
    assert not (theirs[1].parent / "seen").exists()


@pytest.mark.parametrize("key", ["fed_alg", "codec", "privacy", "template", "reward"])
def test_a_server_refuses_what_is_not_in_its_folder(key: str, run, sites: FakeSites, file: Path, folder: Path):
    name = {"fed_alg": "MyAlgorithm", "codec": "MyCodec", "privacy": "MyPrivacy", "template": "MY_TEMPLATE"}.get(key)
    value = f"{file}:{name}" if name else [f"{file}:my_reward"]
    more = {"objective": "grpo", "max_new_tokens": 4} if key == "reward" else {}
    keys = submitted(run, **{key: value}, **more)
    (folder / "allowed.py").write_text("# another file\n")
    for parts in (folder, None):
        with pytest.raises(ConfigError, match=r"no code travels: its file of the SHA-256 .* is not in the folder"):
            serve(keys, sites, list(NAMES), "1", parts=parts)
    assert sites.asked == []
    assert not Path(str(run["output_dir"])).exists()


HOSTILE = {
    "a path of the site": "/etc/mine.py:Mine",
    "the site's own path, without its content": "{path}:MyAlgorithm",
    "a content that is not listed": "mine.py:MyAlgorithm@sha256:" + "0" * 64,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("key", ["fed_alg", "codec", "template", "reward"])
def test_a_hostile_server_makes_a_site_load_nothing(key: str, name: str, run, sites: FakeSites):
    path = accept_file(sites, "hospital_a", PARTS)
    value = HOSTILE[name].format(path=path)
    keys = run | {key: [value] if key == "reward" else value}
    handshake = {"run": keys, "id": "run", "index": 0, "clients": 3, "base": "00"}
    said = json.loads(sites.site_clients["hospital_a"].work(json.dumps(handshake).encode()))
    assert "no code travels" in said["refused"]
    assert str(path.parent) not in said["refused"] or "path of the site" not in name
    assert not (path.parent / "seen").exists()


def test_a_reward_must_be_written_in_the_file_that_a_site_accepts(tmp_path: Path):
    from weft.rewards.child import load

    text = "from shutil import move\n\n\ndef reward(prompt, completion, answer):\n    return 1.0\n"
    (tmp_path / "mine.py").write_text(text)
    digest = plugins.digest_of(text.encode())
    assert load(f"{tmp_path}/mine.py:reward@sha256:{digest}", {})("", "", "") == 1.0
    with pytest.raises(ImportError, match="'move' is not defined in it"):
        load(f"{tmp_path}/mine.py:move@sha256:{digest}", {})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"theirs.py": "0" * 64}, "has the SHA-256"),
        ({"nowhere.py": "0" * 64}, "cannot be read"),
        ({"theirs.py": "12"}, "no SHA-256 beside it"),
    ],
)
def test_a_site_yaml_that_lists_another_content_is_refused_when_the_site_is_started(
    parts, words: str, sites: FakeSites, tmp_path: Path
):
    (tmp_path / "theirs.py").write_text(PARTS)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "site.yaml").write_text(
        yaml.safe_dump({"data": "rows.jsonl", "accept": {"models": [], "parts": parts}})
    )
    with pytest.raises(ConfigError, match=words):
        read_policy(tmp_path / "site.yaml")


def test_a_local_federation_gives_each_party_the_file(run, file: Path, tmp_path: Path):
    """`weft up` is one person's: what the run names is what its sites accept."""
    from weft.sites.local_federation import _write_policies

    left = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    config = build(left | {"clients": {"a": str(file)}, "fed_alg": f"{file}:MyAlgorithm"})
    made = _write_policies(config, tmp_path / "up", ["a"])
    assert read_policy(made["a"]).accept.parts == {str(file): plugins.digest_of(PARTS.encode())}
