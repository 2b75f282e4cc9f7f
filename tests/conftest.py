"""What the tests share: a tiny model with its tokenizer, tiny data, and shared data where it is there."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from support.fork_server import ForkServer
from support.paths import DATA, quick_folder
from support.rows import colour_rows, write_rows

# A tiny run waits for the disk fifty times, 6 ms each: as long as it computes. `--basetemp` and pytest's own variable
# go before.
if "PYTEST_DEBUG_TEMPROOT" not in os.environ and (folder := quick_folder()):
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep the tests of a group in one process."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from support.schedule import ByGroup

    return ByGroup(config, log)


def pytest_collectstart() -> None:
    """Look for no garbage while modules are imported; the process that shares tests out never begins this."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Look no more through what was imported: a million objects, half a second each time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept beyond the tests."""
    os.environ["WEFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two test processes on two cores: each has one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """A process that has imported everything, to begin others from."""
    made = ForkServer()
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of a few hundred tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    from weft.data.templates import ALPACA, VICUNA

    texts = [row["instruction"] + " " + row["output"] for row in colour_rows(200)]
    fixed = [text for t in (ALPACA, VICUNA) for text in (t.preamble, t.question, t.answer)]
    tokenizer.train_from_iterator(texts + fixed * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """The folder of a random Llama of 30 k parameters with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 120 questions with three possible answers."""
    return write_rows(tmp_path_factory.mktemp("data") / "colours.jsonl", colour_rows(120))


@pytest.fixture
def keys(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> dict[str, object]:
    """The keys of a run of seconds."""
    return {
        "model_name_or_path": str(tiny_model),
        "dataset_name": str(tiny_data),
        "template": "vicuna",
        "use_peft": True,
        "num_clients": 3,
        "sample_clients": 2,
        "num_rounds": 3,
        "max_steps": 2,
        "batch_size": 4,
        "seq_length": 128,
        "learning_rate": 1e-3,
        "eval_fraction": 0.1,
        "eval_every": 2,
        "report": False,  # most tests look at no page; those that do ask for it
        "output_dir": str(tmp_path / "run"),
    }


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared data sets; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no shared data in {DATA}: set WEFT_DATA to its folder")
    return DATA


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    """The folder of a real pre-trained Llama of 260 k parameters, beside the shared data."""
    folder = shared_data.parent / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no model in {folder}")
    return folder


@pytest.fixture(autouse=True)
def third_party_warnings():
    """Warnings that libraries raise about themselves, which nobody here can mend."""
    from weft.models.noise import quiet_libraries

    with quiet_libraries():
        yield


@pytest.fixture
def sites(keys, tmp_path: Path):
    """Three sites of 24, 27 and 30 rows, over a fake line."""
    import yaml

    from support.fake_sites import NAMES, FakeSites
    from weft.sites.policy import read_policy

    policies = {}
    for number, name in enumerate(NAMES):
        folder = tmp_path / "sites" / name
        folder.mkdir(parents=True)
        write_rows(folder / "rows.jsonl", colour_rows(24 + 3 * number, number))
        accept = {"models": [keys["model_name_or_path"]], "min_report_rows": 1}  # they hold out two or three rows
        policy = {"data": "rows.jsonl", "accept": accept, "threads": 1}
        (folder / "site.yaml").write_text(yaml.safe_dump(policy))
        policies[name] = read_policy(folder / "site.yaml")
    return FakeSites(policies, tmp_path / "work")


@pytest.fixture
def run(keys, tmp_path: Path) -> dict[str, object]:
    """The keys of a run of these sites."""
    from support.fake_sites import NAMES

    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    own = {"runtime": "nvflare", "sites": list(NAMES), "sample_clients": 3, "threads": 1, "silence_timeout": 3.0}
    return left | own | {"choices": ["red", "green", "blue"], "eval_every": 1, "output_dir": str(tmp_path / "runs/run")}
