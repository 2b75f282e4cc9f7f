"""`weft export RUN`: write the adapter or model of a run as a folder that transformers or peft can load."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from weft.arguments import Parser
from weft.core.files import new_folder
from weft.errors import ConfigError
from weft.launch.run import Run, add_use_flags, open_to_use
from weft.runs.card import write_card


def run(argv: list[str]) -> int:
    """Copy the adapter or model, or merge the adapter into its base."""
    parser = Parser(prog="weft export", description="Write a run's adapter or merged model.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run directory, or, to merge it, a folder with an adapter")
    parser.add_argument("--out", metavar="DIR", help="where to (default: RUN/merged or RUN/exported)")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the base: a whole model, no peft")
    parser.add_argument(
        "--plug_in", metavar="MODEL", help="the model that the run's emulator stands for: put the ends back"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of a merged model [float32]"
    )
    add_use_flags(parser)
    arguments = parser.parse(argv)
    from weft.launch.merging import adapter_folder

    folder = adapter_folder(arguments.run)
    if folder is not None and arguments.merge:
        return _merge_folder(arguments.run, folder, arguments.dtype, arguments.out)
    opened = open_to_use(arguments)
    out = Path(arguments.out or opened.path / ("merged" if arguments.merge else "exported"))
    if arguments.merge and opened.config.prompt_method is not None:
        raise ConfigError(
            "A prompt stands before a model and cannot be merged into it: leave out --merge, and load the "
            "exported folder with peft."
        )
    with new_folder(out):
        _write(opened, arguments, out)
    print(out)
    return 0


def _merge_folder(name: str, folder: Path, dtype: str, target: str | None) -> int:
    """Merge the adapter in a folder that is no run, and print where the model is."""
    from weft.launch.merging import merge_folder

    out = Path(target or Path(name) / "merged")
    with new_folder(out):
        merge_folder(folder, dtype, out)
    print(out)
    return 0


def _write(opened: Run, arguments: argparse.Namespace, out: Path) -> None:
    """Write the weights that the arguments ask for to `out`, with a model card."""
    weights, personal = opened.weights(arguments.client), arguments.client is not None
    # Merging checks the base itself.
    if opened.config.adapts and arguments.plug_in is None and not arguments.merge:
        opened.check_base()
    if arguments.plug_in is not None:
        from weft.launch.emulator_export import plug_in

        plug_in(opened, arguments.client, arguments.plug_in, out, merge=arguments.merge, dtype=arguments.dtype)
        whole = arguments.merge or not opened.config.use_peft
        write_card(opened.directory, out, whole=whole, of_client=personal, base=arguments.plug_in)
        return
    if arguments.merge and opened.config.use_peft:
        _merge(opened, arguments.client, arguments.dtype, out)
    elif weights.is_file():
        shutil.copyfile(weights, out / weights.name)
        return
    else:
        shutil.copytree(weights, out, dirs_exist_ok=True)
    write_card(
        opened.directory, out, whole=arguments.merge or not opened.config.adapts, of_client=personal, original=weights
    )


def _merge(opened: Run, client: str | None, dtype: str, out: Path) -> None:
    from weft.models.merge import write_merged

    model = opened.load_model(client, full_precision=True)
    write_merged(model, opened.tokenizer, dtype, out, trust_remote_code=opened.config.trust_remote_code)
