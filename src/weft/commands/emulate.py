"""`weft emulate MODEL`: a smaller stand-in for a model that may not be given away, to be tuned by clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.arguments import Parser
from weft.core.files import new_folder
from weft.errors import ConfigError


def run(argv: list[str]) -> int:
    """Write the emulator."""
    parser = Parser(
        prog="weft emulate", description="Leave layers of a model out, for offsite tuning.", allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="a hub name, a folder, or a run")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the emulator is written")
    parser.add_argument("--keep_layers", type=int, required=True, metavar="N", help="layers that the emulator has")
    parser.add_argument("--ends", type=int, default=2, metavar="K", help="layers at either end that are trained [2]")
    parser.add_argument(
        "--distil", metavar="TEXT", help="public text on which the middle learns to say what the model says"
    )
    parser.add_argument("--distil_steps", type=int, default=200, metavar="S", help="AdamW steps of that [200]")
    parser.add_argument("--distil_rate", type=float, default=1e-4, metavar="R", help="their learning rate [1e-4]")
    parser.add_argument("--batch_size", type=int, default=8, help="lines a step [8]")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens a line [128]")
    arguments = parser.parse(argv)
    out = Path(arguments.out)
    for name in ("keep_layers", "ends"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"{name} is {getattr(arguments, name)}, but must be 1 or more.")
    with new_folder(out):
        make(arguments, out)
    print(out)
    return 0


def make(arguments: Any, out: Path) -> None:
    """Load the model, leave layers out, distil if asked to, and write."""
    import copy

    from weft.config import build
    from weft.models.emulator import Emulator, choose_layers, decoder_layers, distil, keep_layers, write
    from weft.models.load import base_model
    from weft.models.tokenizer import load_tokenizer

    config = build({"model_name_or_path": arguments.model, "dataset_name": "none", "dtype": "float32", "device": "cpu"})
    tokenizer = load_tokenizer(config)
    model = base_model(config, note=lambda sentence: print(f"weft: {sentence}", file=sys.stderr))
    count = len(decoder_layers(model)[2])
    emulator = Emulator(
        arguments.model, count, choose_layers(count, arguments.keep_layers, arguments.ends), arguments.ends
    )
    teacher = copy.deepcopy(model).eval() if arguments.distil else None
    keep_layers(model, emulator.layer_numbers)
    if teacher is not None:
        batches = _batches(tokenizer, arguments)
        seen = distil(model, teacher, emulator, batches, arguments.distil_rate)
        if seen:
            print(f"divergence from the model: {seen[0]:.4f} to {seen[-1]:.4f} nats a token in {len(seen)} steps")
    model.requires_grad_(True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write(out, emulator)


def _batches(tokenizer: Any, arguments: Any) -> Iterator[Any]:
    """Yield as many batches of public text as there are steps, over and over."""
    import torch

    from weft.data.load import whole_rows

    texts = [text for row in whole_rows(arguments.distil) if isinstance(text := row.get("text"), str) and text]
    if not texts:
        raise ConfigError(f"'{arguments.distil}' has no column 'text': name a file of plain text.")
    ids = [token for text in texts for token in (*tokenizer.encode(text), tokenizer.eos_token_id)]
    size = arguments.batch_size * arguments.seq_length
    while len(ids) < size:
        ids = ids + ids
    for step in range(arguments.distil_steps):
        at = step * size % (len(ids) - size + 1)
        yield torch.tensor(ids[at : at + size]).view(arguments.batch_size, arguments.seq_length)
