"""Text on disk: the speed of tokenizing beside the library's own, and the memory of training on far more of it.

    python benchmarks/text.py

Memory is the highest resident size of a process that trains on a text that is tokenized already: 100 MB, and 100 GB
whose tokens are a file with holes (all of them the token 0), in documents of 1 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, make_model, median, report, seconds

TRAIN = """
import json, resource, sys
import weft
weft.train(json.loads(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
DOCUMENT = 1_000_000


def speed(folder: Path, model: Path) -> None:
    """Tokenize 30 MB of made-up words."""
    import os

    from common import make_rows
    from transformers import AutoTokenizer

    from weft.data.store import open_store
    from weft.data.texts import TextSource
    from weft.data.tokens import TextTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    rows = make_rows(folder / "rows.jsonl", 15_000, words=(150, 350))
    texts = [json.loads(line)["output"] for line in rows.read_text(encoding="utf-8").splitlines()]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(model)
    backend = tokenizer.backend_tokenizer
    number = iter(range(100))
    made: list[int] = []

    def library() -> None:
        for at in range(0, len(texts), 1500):
            backend.encode_batch_fast(texts[at : at + 1500], add_special_tokens=False)

    def ours() -> None:
        store = open_store(TextSource(str(path)), TextTokenizer(tokenizer), folder / f"cache{next(number)}")
        made[:] = [int(store.documents[:, 0].sum())]

    theirs, mine = median(seconds(library, times=3)), median(seconds(ours, times=3))
    cores = os.cpu_count() or 1
    rates = [made[0] / taken / cores / 1e6 for taken in (theirs, mine)]
    print(f"the library's tokenizing alone: {rates[0]:.2f} M tokens/s a core; with reading and writing {rates[1]:.2f}")
    report("tokenizing, reading and writing / the library's tokenizing alone", rates[1] / rates[0], 0.8, most=False)
    fast = rates[0] >= 1
    needs = "a core on which the library itself reaches it"
    report("M tokens/s a core, read and written", rates[1] if fast else None, 1, most=False, unit=" M", needs=needs)


def holes(folder: Path, size: int, tokenizer_folder: Path) -> Path:
    """Make a text of `size` bytes that is tokenized already, both with holes; return its path."""
    import os

    import numpy as np
    from transformers import AutoTokenizer

    from weft.data import store
    from weft.data.texts import TextSource
    from weft.data.tokens import TextTokenizer

    path = folder / f"{size}.txt"
    path.touch()
    os.truncate(path, size)
    source, tokenizer = TextSource(str(path)), TextTokenizer(AutoTokenizer.from_pretrained(tokenizer_folder))
    writer_folder = store.place_of(source, tokenizer, folder / "tokens")
    writer_folder.mkdir(parents=True)
    shards = []
    for number in range(-(-size // (100 * DOCUMENT))):
        documents = np.full((100, 3), (DOCUMENT // 4, DOCUMENT, 0), dtype=np.int64)
        files = {}
        for name, length in ((f"{number:06d}.tokens", DOCUMENT // 4 * 100 * 2), (f"{number:06d}.docs", 0)):
            file = writer_folder / name
            if length:
                file.touch()
                os.truncate(file, length)
            else:
                file.write_bytes(documents.tobytes())
            seen = file.stat()
            files[name] = {"size": seen.st_size, "mtime_ns": seen.st_mtime_ns, "crc32": 0}
        part = {"tokens": DOCUMENT // 4 * 100, "documents": 100, "read": 0, "counts": {}, "dtype": "uint16"}
        shards.append(part | {"files": files})
    manifest = {"shards": shards, "values": [""], "done": True}
    (writer_folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def memory(folder: Path, model: Path) -> None:
    peaks = []
    for size in (10**8, 10**11):
        path = holes(folder, size, model)
        keys = {
            "objective": "causal_lm",
            "model_name_or_path": str(model),
            "dataset_name": str(path),
            "dataset_sample": None,
            "token_cache": str(folder / "tokens"),
            "num_clients": 4,
            "sample_clients": 4,
            "num_rounds": 3,
            "max_steps": 5,
            "batch_size": 4,
            "seq_length": 128,
            "eval_rows": 1,
            "eval_every": 0,
            "output_dir": str(folder / f"run{size}"),
        }
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, json.dumps(keys)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))
        print(f"{size / 1e9:g} GB of text: {peaks[-1] / 1e6:.1f} MB resident at most")
    report("memory on 100 GB / memory on 100 MB", peaks[1] / peaks[0], 1.05, most=True)


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as made:
        base = make_model(Path(made) / "model", hidden=64, layers=2)
        speed(Path(made), base)
        memory(Path(made), base)
